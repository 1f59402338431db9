#include "core/log.hpp"

#include <cstdio>
#include <mutex>

namespace kvmesh {
namespace {

// One for the process, as standard error is, whose place it takes.
constinit std::mutex mutex;
constinit LogFunction receiver = nullptr;
constinit void* receiver_context = nullptr;

}  // namespace

void set_log(LogFunction function, void* context) noexcept {
  const std::scoped_lock lock(mutex);
  receiver = function;
  receiver_context = context;
}

void log_line(const std::string& line) noexcept {
  const std::scoped_lock lock(mutex);
  if (receiver != nullptr) {
    receiver(line.c_str(), receiver_context);
  } else {
    std::fprintf(stderr, "kvmesh: %s\n", line.c_str());
  }
}

}  // namespace kvmesh
