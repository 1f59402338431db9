#include "launch/cli/agree.hpp"

#include <algorithm>
#include <array>
#include <exception>
#include <string>

namespace kvmesh::launch {
namespace {

// Message of a failed rank; empty: it succeeded. Longer ones are cut.
using Message = std::array<char, 1024>;

Message message_of(const std::function<void()>& local) {
  Message message{};
  try {
    local();
  } catch (const std::exception& error) {
    const std::string text = *error.what() ? error.what() : "unknown error";
    std::copy_n(text.begin(), std::min(text.size(), message.size() - 1), message.begin());
  }
  return message;
}

}  // namespace

void agree(Communicator& comm, const std::function<void()>& local) {
  const Message mine = message_of(local);
  std::vector<Message> all(static_cast<std::size_t>(comm.size()));
  all_gather(comm, std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)), "agree");
  const auto failed = std::ranges::find_if(all, [](const Message& m) { return m[0] != '\0'; });
  if (failed != all.end()) throw AgreedError(failed->data());
}

}  // namespace kvmesh::launch
