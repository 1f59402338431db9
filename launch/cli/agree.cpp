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
  const std::vector<Message> all = all_gather_value(comm, message_of(local), "agree");
  const auto failed = std::ranges::find_if(all, [](const Message& m) { return m[0] != '\0'; });
  if (failed != all.end()) throw AgreedError(failed->data());
}

}  // namespace kvmesh::launch
