#include "comm/tcp/rendezvous.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "comm/tcp/address.hpp"
#include "comm/tcp/host.hpp"

namespace kvmesh::tcp {
namespace {

constexpr auto kRetryEvery = std::chrono::milliseconds(20);
constexpr int kAttempts = 4;  // a deadline has time for at least this many
constexpr std::uint32_t kLongestAnswer = 1 << 20;

struct Table {
  std::uint64_t token = 0;
  std::vector<Address> listens;  // [rank]
};

/// The rendezvous as seen by every rank but 0.
class Visitor {
 public:
  Visitor(const TcpOptions& options, Links& links, const Waiting& waiting)
      : options_(&options), links_(&links), waiting_(&waiting), socket_(*links.io) {}

  /// Finds rank 0 and waits until all ranks have come. If rank 0 hangs up before that, it may be
  /// restarted, so this rank calls again.
  Table meet() {
    while (!wait_for_all()) {
      if (Clock::now() + kRetryEvery >= waiting_->until) {
        throw_timeout({Rank{0}}, fmt::format("{} ({})", waiting_->operation, obstacles()));
      }
      std::this_thread::sleep_for(kRetryEvery);
    }
    links_->peers[0] = Link{std::move(socket_), true};
    return table();
  }

  Reception& reception() { return *reception_; }

 private:
  /// Makes one attempt, up to the table. Returns false if another attempt may succeed.
  bool wait_for_all() {
    if (!introduce()) return false;
    while (answer_.say == Say::kWaiting) {
      missing_ = ranks_in(payload_);
      const ErrorCode error = read_answer(waiting_->until);
      if (error == asio::error::timed_out) throw_timeout(missing_, waiting_->operation);
      if (!error) continue;
      obstacle_ = fmt::format("rank 0 was there, but hung up: {}", error.message());
      return false;
    }
    return true;
  }

  /// Calls rank 0 and reads its first answer. The time is limited, since a stranger that listens
  /// there and sends nothing may leave before the deadline.
  bool introduce() {
    const Clock::time_point until =
        std::min(waiting_->until, Clock::now() + waiting_->deadline / kAttempts);
    if (!call(until)) return false;
    const asio::ip::address here = socket_.local_endpoint().address();
    links_->listens_on = own_address(here);
    require_allowed(links_->listens_on, options_->secret);
    reception_.reset();
    reception_.emplace(*links_->io, Endpoint(links_->listens_on, 0), links_->credentials,
                       options_->size);
    const Endpoint place(links_->listens_on.is_unspecified() ? here : links_->listens_on,
                         reception_->endpoint().port());
    const Claim claim{.size = static_cast<std::uint32_t>(options_->size),
                      .rank = static_cast<std::uint32_t>(options_->rank),
                      .listens = address_of(place)};
    const Greeting greeting = greet(*links_->io, socket_, links_->credentials, claim, until);
    if (!greeting.complaint.empty()) {
      obstacle_ = complaint_ = fmt::format("{} listens there", greeting.complaint);
      return false;
    }
    const ErrorCode error = greeting.error ? greeting.error : read_answer(until);
    if (error == asio::error::timed_out) {
      late("something listens there, but says nothing", until);
    } else if (error) {
      obstacle_ = fmt::format("something listens there, but hangs up: {}", error.message());
    }
    return !error;
  }

  /// Returns why the attempts failed. A listener's complaint is kept: when that listener gives up
  /// and closes its port, the attempts after it fail for reasons that explain nothing.
  std::string obstacles() const {
    if (complaint_.empty() || obstacle_ == complaint_) return obstacle_;
    return fmt::format("{}; at last: {}", complaint_, obstacle_);
  }

  /// Notes a timeout. If the deadline has cut the attempt short, the reason of the attempt before
  /// it is kept.
  void late(std::string obstacle, Clock::time_point until) {
    if (until < waiting_->until || obstacle_.empty()) obstacle_ = std::move(obstacle);
  }

  /// Connects to the first of rank 0's addresses that answers, of those that are allowed.
  bool call(Clock::time_point until) {
    ErrorCode error;
    const std::vector<Endpoint> all = resolve(*links_->io, options_->host, options_->port, error);
    const auto allowed = [this](const Endpoint& at) {
      return is_allowed(at.address(), options_->secret);
    };
    if (!all.empty() && std::ranges::none_of(all, allowed)) {
      require_allowed(all.front().address(), options_->secret);
    }
    for (const Endpoint& at : all) {
      if (!allowed(at)) continue;
      socket_ = Socket(*links_->io);
      error = connect(*links_->io, socket_, at, until);
      if (!error) return true;
    }
    if (error == asio::error::timed_out) {
      late(error.message(), until);
    } else {
      obstacle_ = error.message();
    }
    return false;
  }

  /// Returns where to listen for the others, for a rank that reaches rank 0 from `here`. If that is
  /// a loopback address, this rank is on rank 0's machine, and ranks of other machines call it
  /// there (where_to_call).
  asio::ip::address own_address(const asio::ip::address& here) {
    if (!options_->address.empty()) {
      return where_to_listen(*links_->io, options_->address, 0).address();
    }
    const bool from_outside = here.is_loopback() && is_name_for_others(*links_->io, options_->host);
    return from_outside ? any_like(here) : here;
  }

  /// Reads `answer_` and `payload_`.
  /// @throws RendezvousError if rank 0 refuses this rank; Timeout if it gives up.
  ErrorCode read_answer(Clock::time_point until) {
    asio::io_context& io = *links_->io;
    ErrorCode error = read(io, socket_, asio::buffer(&answer_, sizeof(answer_)), until);
    if (error) return error;
    if (answer_.magic != kMagic || answer_.bytes > kLongestAnswer) throw_foreign();
    payload_.resize(answer_.bytes);
    error = read(io, socket_, asio::buffer(payload_), until);
    if (error) return error;
    if (answer_.say == Say::kRefused) {
      throw RendezvousError(
          fmt::format("{}: rank 0 refuses: {}", waiting_->operation, printable(payload_)));
    }
    if (answer_.say == Say::kLate) throw_timeout(ranks_in(payload_), waiting_->operation);
    if (answer_.say != Say::kWaiting && answer_.say != Say::kTable) throw_foreign();
    return {};
  }

  Table table() const {
    Table table;
    table.listens.resize(static_cast<std::size_t>(options_->size));
    const std::size_t bytes = table.listens.size() * sizeof(Address);
    if (payload_.size() != sizeof(table.token) + bytes) throw_foreign();
    std::memcpy(&table.token, payload_.data(), sizeof(table.token));
    std::memcpy(table.listens.data(), payload_.data() + sizeof(table.token), bytes);
    return table;
  }

  static std::vector<Rank> ranks_in(const std::string& payload) {
    std::vector<Rank> ranks(payload.size() / sizeof(Rank));
    std::memcpy(ranks.data(), payload.data(), ranks.size() * sizeof(Rank));
    return ranks;
  }

  [[noreturn]] void throw_timeout(std::vector<Rank> late, std::string operation) const {
    throw Timeout(waiting_->me, std::move(late), std::move(operation), waiting_->deadline);
  }
  [[noreturn]] void throw_foreign() const {
    throw RendezvousError(
        fmt::format("{}: rank 0 says what no version of kvmesh says", waiting_->operation));
  }

  const TcpOptions* options_;
  Links* links_;
  const Waiting* waiting_;
  Socket socket_;
  std::optional<Reception> reception_;
  Answer answer_{};
  std::string payload_;
  std::vector<Rank> missing_;  // as rank 0 last reported
  std::string obstacle_;       // why the last attempt failed
  std::string complaint_;      // what the last listener that was no rank of this job was
};

void visit(const TcpOptions& options, Links& links, const Waiting& waiting) {
  Visitor visitor(options, links, waiting);
  const Table table = visitor.meet();
  const asio::ip::address rank_0 = links.peers[0]->socket.remote_endpoint().address();
  std::vector<Peer> below;
  for (int r = 1; r < options.rank; ++r) {
    const Endpoint place = endpoint_of(table.listens[static_cast<std::size_t>(r)]);
    below.push_back({Rank{r}, where_to_call(place, rank_0)});
  }
  std::vector<Rank> above;
  for (int r = options.rank + 1; r < options.size; ++r) above.push_back(Rank{r});
  connect_pairs(links, visitor.reception(), below, above, table.token, waiting);
}

}  // namespace

Links rendezvous(const TcpOptions& options) {
  const Waiting waiting(Rank{options.rank},
                        fmt::format("the rendezvous at {}:{}", options.host, options.port),
                        options.deadline);
  Links links;
  links.io = std::make_unique<asio::io_context>(1);
  links.peers.resize(static_cast<std::size_t>(options.size));
  links.credentials = {options.secret, options.job};
  if (options.rank == 0) {
    Host(options, links, waiting).gather();
  } else {
    visit(options, links, waiting);
  }
  return links;
}

}  // namespace kvmesh::tcp
