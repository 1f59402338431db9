#include "core/posix/descriptors.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <random>

namespace kvmesh {
namespace {

constexpr timeval kPatience{.tv_sec = 10, .tv_usec = 0};

DescriptorPlace new_place() {
  std::random_device random;
  DescriptorPlace place{};
  const std::string name = fmt::format("kvmesh-{:08x}{:08x}{:08x}", random(), random(), random());
  std::ranges::copy(name, place.begin());
  return place;
}

struct Address {
  explicit Address(const DescriptorPlace& place) {
    const std::size_t length = std::strlen(place.data());
    std::memcpy(name.sun_path + 1, place.data(), length);  // the 0 before it: abstract
    size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
  }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&name); }
  sockaddr_un name{.sun_family = AF_UNIX, .sun_path = {}};
  socklen_t size = 0;
};

bool is_of_this_user(int connection) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
         peer.uid == geteuid();
}

void set_patience(int connection) {
  for (const int which : {SO_RCVTIMEO, SO_SNDTIMEO})
    static_cast<void>(setsockopt(connection, SOL_SOCKET, which, &kPatience, sizeof kPatience));
}

/// A message: a piece and its descriptor. An empty piece without one ends them.
struct Message {
  Message() {
    part = {&piece, sizeof piece};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
  }
  Message(const Message&) = delete;

  ByteRange piece{};
  iovec part{};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))]{};
  msghdr header{};
};

bool send_piece(int connection, const ByteRange& piece, int descriptor) {
  Message message;
  message.piece = piece;
  cmsghdr* const rights = CMSG_FIRSTHDR(&message.header);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(sizeof descriptor);
  std::memcpy(CMSG_DATA(rights), &descriptor, sizeof descriptor);
  return sendmsg(connection, &message.header, MSG_NOSIGNAL) == sizeof piece;
}

}  // namespace

DescriptorServer::DescriptorServer(std::vector<ByteRange> pieces,
                                   std::function<int(const ByteRange&)> open)
    : pieces_(std::move(pieces)),
      open_(std::move(open)),
      listener_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)),
      wake_(eventfd(0, EFD_CLOEXEC)) {
  const DescriptorPlace place = new_place();
  const Address address(place);
  if (listener_.get() < 0 || wake_.get() < 0 ||
      bind(listener_.get(), address.get(), address.size) != 0 ||
      listen(listener_.get(), SOMAXCONN) != 0)
    return;
  place_ = place;
  thread_ = std::thread([this] { serve(); });
}

DescriptorServer::~DescriptorServer() {
  if (!thread_.joinable()) return;
  const std::uint64_t one = 1;
  static_cast<void>(!write(wake_.get(), &one, sizeof one));
  thread_.join();
}

void DescriptorServer::serve() {
  for (;;) {
    pollfd events[] = {{listener_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    if (poll(events, 2, -1) < 0 && errno != EINTR) return;
    if (events[1].revents != 0) return;
    if ((events[0].revents & POLLIN) == 0) continue;
    const Descriptor connection(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (connection.get() >= 0 && is_of_this_user(connection.get())) give(connection.get());
  }
}

void DescriptorServer::give(int connection) const {
  set_patience(connection);
  for (const ByteRange& piece : pieces_) {
    const Descriptor descriptor(open_(piece));
    if (descriptor.get() < 0 || !send_piece(connection, piece, descriptor.get())) return;
  }
  const ByteRange end{};
  static_cast<void>(send(connection, &end, sizeof end, MSG_NOSIGNAL));
}

bool take_descriptors(const DescriptorPlace& place,
                      const std::function<bool(const ByteRange&, int)>& take) {
  if (place.front() == 0) return false;
  const Descriptor connection(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const Address address(place);
  if (connection.get() < 0) return false;
  set_patience(connection.get());
  if (connect(connection.get(), address.get(), address.size) != 0 ||
      !is_of_this_user(connection.get()))
    return false;
  for (;;) {
    Message message;
    const ssize_t size = recvmsg(connection.get(), &message.header, MSG_CMSG_CLOEXEC);
    const cmsghdr* const rights = size < 0 ? nullptr : CMSG_FIRSTHDR(&message.header);
    Descriptor descriptor;
    if (rights != nullptr && rights->cmsg_type == SCM_RIGHTS) {
      int number = -1;
      std::memcpy(&number, CMSG_DATA(rights), sizeof number);
      descriptor = Descriptor(number);
    }
    if (size != sizeof message.piece) return false;
    if (message.piece == ByteRange{}) return true;
    if (descriptor.get() < 0 || !take(message.piece, descriptor.get())) return false;
  }
}

}  // namespace kvmesh
