#include "comm/tcp/host.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "comm/tcp/address.hpp"

namespace kvmesh::tcp {
namespace {

// Rank 0 sends the missing ranks to all that have come this often per deadline, so that ranks whose
// deadline ends before rank 0's can name them; it sends at most kNamed of them.
constexpr int kNewsPerDeadline = 20;
constexpr std::size_t kNamed = 32;
// Ranks with rank 0's deadline that started earlier give up earlier. So for this many news a rank
// that has left counts as one that waited for the others, unless no other is missing.
constexpr int kNewsWithoutLeft = 2;

template <class T>
std::string_view bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

/// Ranks send nothing while they wait, so a socket with something to read has been closed.
bool has_left(Link& link) {
  ErrorCode error;
  link.socket.non_blocking(true, error);
  char byte = 0;
  link.socket.receive(asio::buffer(&byte, 1), Socket::message_peek, error);
  return error != asio::error::would_block;
}

/// Sends without waiting: what the socket does not take at once is lost.
void say(Socket& socket, Say what, std::string_view payload) {
  const Answer answer{.say = what, .bytes = static_cast<std::uint32_t>(payload.size())};
  ErrorCode ignored;
  socket.non_blocking(true, ignored);
  socket.write_some(
      std::vector<asio::const_buffer>{asio::buffer(&answer, sizeof(answer)), asio::buffer(payload)},
      ignored);
}

Endpoint place_of(asio::io_context& io, const TcpOptions& options) {
  const Endpoint place =
      where_to_listen(io, options.address.empty() ? options.host : options.address, options.port);
  require_allowed(place.address(), options.secret);
  return place;
}

}  // namespace

Host::Host(const TcpOptions& options, Links& links, const Waiting& waiting)
    : options_(&options),
      links_(&links),
      waiting_(&waiting),
      reception_(*links.io, place_of(*links.io, options), links.credentials, options.size),
      table_(static_cast<std::size_t>(options.size)),
      left_(table_.size()) {}

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

/// A rank that left before all had come may come again, if its process is restarted.
void Host::forget_who_left() {
  for (int r = 1; r < options_->size; ++r) {
    auto& link = links_->peers[static_cast<std::size_t>(r)];
    if (link && has_left(*link)) forget(Rank{r});
  }
}

void Host::forget(Rank rank) {
  links_->peers[static_cast<std::size_t>(rank.value)].reset();
  left_[static_cast<std::size_t>(rank.value)] = Clock::now();
}

void Host::admit(Guest guest) {
  forget_who_left();
  if (const std::string reason = complaint_about(guest.claim); !reason.empty()) {
    return refuse(std::move(guest), reason);
  }
  links_->peers[guest.claim.rank] = Link{std::move(guest.socket), false};
  table_[guest.claim.rank] = guest.claim.listens;
  if (const std::vector<Rank> others = missing(); !others.empty()) {
    tell(Rank{static_cast<std::int32_t>(guest.claim.rank)}, Say::kWaiting, bytes_of(others));
  }
}

std::string Host::complaint_about(const Claim& claim) const {
  const auto size = static_cast<std::uint32_t>(options_->size);
  if (claim.size != size) {
    return fmt::format("rank {} of {} ranks, where rank 0 has a job of {}", claim.rank, claim.size,
                       size);
  }
  if (claim.rank >= size) return fmt::format("rank {} of {}", claim.rank, size);
  if (claim.rank == 0 || links_->peers[claim.rank]) {
    return fmt::format("another rank {}, which is here already", claim.rank);
  }
  return {};
}

void Host::refuse(Guest guest, const std::string& reason) {
  reception_.note("refused as " + reason, guest.socket);
  const std::string text = fmt::format("{} is {}", other_end(guest.socket), reason);
  say(guest.socket, Say::kRefused, text);
}

/// Returns the missing ranks to name: empty only if none is missing.
std::vector<Rank> Host::missing() const {
  const auto lately = Clock::now() - options_->deadline * kNewsWithoutLeft / kNewsPerDeadline;
  std::vector<Rank> ranks, have_left_lately;
  for (int r = 1; r < options_->size && ranks.size() < kNamed; ++r) {
    const auto i = static_cast<std::size_t>(r);
    if (links_->peers[i]) continue;
    const bool has_left_lately = left_[i] && *left_[i] > lately;
    (has_left_lately ? have_left_lately : ranks).push_back(Rank{r});
  }
  if (!ranks.empty()) return ranks;
  have_left_lately.resize(std::min(have_left_lately.size(), kNamed));
  return have_left_lately;
}

void Host::tell(Rank rank, Say say, std::string_view payload) {
  auto& link = links_->peers[static_cast<std::size_t>(rank.value)];
  const Answer answer{.say = say, .bytes = static_cast<std::uint32_t>(payload.size())};
  const ErrorCode error =
      write(*links_->io, link->socket,
            {asio::buffer(&answer, sizeof(answer)), asio::buffer(payload)}, waiting_->until);
  if (!error) return;
  forget(rank);
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

/// Sends the reason why rank 0 gives up to all ranks that have come.
void Host::say_farewell(Say what, std::string_view payload) {
  for (auto& link : links_->peers) {
    if (link) say(link->socket, what, payload);
  }
}

}  // namespace kvmesh::tcp
