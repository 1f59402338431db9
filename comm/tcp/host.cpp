#include "comm/tcp/host.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "comm/tcp/address.hpp"

namespace kvmesh::tcp {
namespace {

// Everyone is told this often who is missing, so that ranks whose deadline ends before rank 0's can
// name them; and of many missing ranks, this many.
constexpr int kNewsPerDeadline = 20;
constexpr std::size_t kNamed = 32;

template <class T>
std::string_view bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

/// Guests say nothing more while they wait: what there is to read is the end.
bool has_left(Link& link) {
  ErrorCode error;
  link.socket.non_blocking(true, error);
  char byte = 0;
  link.socket.receive(asio::buffer(&byte, 1), Socket::message_peek, error);
  return error != asio::error::would_block;
}

}  // namespace

Host::Host(const TcpOptions& options, Links& links, const Waiting& waiting)
    : options_(&options),
      links_(&links),
      waiting_(&waiting),
      reception_(*links.io, where_to_listen(
                                *links.io, options.address.empty() ? options.host : options.address,
                                options.port)),
      table_(static_cast<std::size_t>(options.size)) {}

void Host::gather() {
  const auto news_every = options_->deadline / kNewsPerDeadline;
  Clock::time_point next_news = Clock::now() + news_every;
  while (!all_are_here()) {
    std::optional<Guest> guest = reception_.next(std::min(next_news, waiting_->until));
    if (guest) {
      admit(std::move(*guest));
      continue;
    }
    forget_who_left();
    if (Clock::now() >= waiting_->until) {
      const std::vector<Rank> late = missing();
      say_farewell(Say::kLate, bytes_of(late));
      throw Timeout(Rank{0}, late, waiting_->operation + reception_.strangers(),
                    options_->deadline);
    }
    tell_everyone(Say::kWaiting, bytes_of(missing()));
    next_news = Clock::now() + news_every;
  }
  const std::uint64_t token = make_token();
  std::string payload(reinterpret_cast<const char*>(&token), sizeof(token));
  payload += bytes_of(table_);
  tell_everyone(Say::kTable, payload);
  links_->listens_on = reception_.endpoint().address();
}

bool Host::all_are_here() {
  if (missing().empty()) forget_who_left();
  return missing().empty();
}

/// Someone who left before all were here may come again: a worker that was started anew.
void Host::forget_who_left() {
  for (auto& link : links_->peers) {
    if (link && has_left(*link)) link.reset();
  }
}

void Host::admit(Guest guest) {
  forget_who_left();
  if (const std::string reason = complaint_about(guest.hello); !reason.empty()) {
    const std::string all =
        fmt::format("{}: {} {}", waiting_->operation, other_end(guest.socket), reason);
    links_->peers.push_back(Link{std::move(guest.socket), false});  // to hear why, like the others
    say_farewell(Say::kRefused, all);
    throw RendezvousError(all);
  }
  links_->peers[guest.hello.rank] = Link{std::move(guest.socket), false};
  table_[guest.hello.rank] = guest.hello.listens;
  if (const std::vector<Rank> others = missing(); !others.empty()) {
    tell(Rank{static_cast<std::int32_t>(guest.hello.rank)}, Say::kWaiting, bytes_of(others));
  }
}

std::string Host::complaint_about(const Hello& hello) const {
  const auto size = static_cast<std::uint32_t>(options_->size);
  if (hello.version != kVersion) {
    return fmt::format("speaks version {}, rank 0 version {}", hello.version, kVersion);
  }
  if (hello.size != size) {
    return fmt::format("says that it is rank {} of {} ranks, rank 0 has a job of {}", hello.rank,
                       hello.size, size);
  }
  if (hello.rank >= size) return fmt::format("says that it is rank {} of {}", hello.rank, size);
  if (hello.rank == 0 || links_->peers[hello.rank]) {
    return fmt::format("says that it is rank {}, which is here already", hello.rank);
  }
  return {};
}

std::vector<Rank> Host::missing() const {
  std::vector<Rank> ranks;
  for (int r = 1; r < options_->size && ranks.size() < kNamed; ++r) {
    if (!links_->peers[static_cast<std::size_t>(r)]) ranks.push_back(Rank{r});
  }
  return ranks;
}

void Host::tell(Rank rank, Say say, std::string_view payload) {
  auto& link = links_->peers[static_cast<std::size_t>(rank.value)];
  const Answer answer{.say = say, .bytes = static_cast<std::uint32_t>(payload.size())};
  const ErrorCode error =
      write(*links_->io, link->socket,
            {asio::buffer(&answer, sizeof(answer)), asio::buffer(payload)}, waiting_->until);
  if (!error) return;
  link.reset();
  if (say == Say::kWaiting) return;  // see forget_who_left
  const PeerLost lost(Rank{0}, rank, waiting_->operation, error.message());
  say_farewell(Say::kRefused, lost.what());
  throw lost;
}

void Host::tell_everyone(Say say, std::string_view payload) {
  for (int r = 1; r < options_->size; ++r) {
    if (links_->peers[static_cast<std::size_t>(r)]) tell(Rank{r}, say, payload);
  }
}

/// Why rank 0 gives up, to all who came. It waits for nobody any more: what a socket does not take
/// at once is not said.
void Host::say_farewell(Say say, std::string_view payload) {
  const Answer answer{.say = say, .bytes = static_cast<std::uint32_t>(payload.size())};
  ErrorCode ignored;
  for (auto& link : links_->peers) {
    if (!link) continue;
    link->socket.non_blocking(true, ignored);
    link->socket.write_some(std::vector<asio::const_buffer>{asio::buffer(&answer, sizeof(answer)),
                                                            asio::buffer(payload)},
                            ignored);
  }
}

}  // namespace kvmesh::tcp
