#include "core/device_wait.hpp"

#include <future>
#include <thread>

#include "core/back_off.hpp"
#include "core/cuda_memory.hpp"

namespace kvmesh {
namespace {

[[noreturn]] void fail_late(const DeviceWait& wait) {
  throw Timeout(wait.waiter, {}, std::string(wait.operation), wait.deadline);
}

}  // namespace

void wait_for_stream(Stream stream, const DeviceWait& wait) {
  if (!wait_until_done([&] { return cuda_memory::is_done(stream); }, wait.deadline)) {
    fail_late(wait);
  }
}

void wait_for_device(int device, const DeviceWait& wait) {
  std::promise<void> promise;
  std::future<void> done = promise.get_future();
  // Not joined where it is late: it ends when the GPU does.
  std::thread([device, promise = std::move(promise)]() mutable {
    try {
      cuda_memory::use_device(device);
      cuda_memory::synchronize_device();
      promise.set_value();
    } catch (...) {
      promise.set_exception(std::current_exception());
    }
  }).detach();
  if (done.wait_for(wait.deadline) != std::future_status::ready) fail_late(wait);
  done.get();
}

}  // namespace kvmesh
