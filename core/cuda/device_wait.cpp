#include "core/cuda/device_wait.hpp"

#include <future>
#include <thread>

#include "core/cuda/memory.hpp"
#include "core/threads/back_off.hpp"

namespace kvmesh {

void wait_until(const std::function<bool()>& is_done, const DeviceWait& wait) {
  if (wait_until_done(is_done, wait.deadline)) return;
  throw Timeout(wait.waiter, {}, std::string(wait.operation), wait.deadline);
}

std::function<bool()> whole_device_done(int device) {
  std::promise<void> promise;
  std::shared_future<void> done = promise.get_future().share();
  // The thread is not joined after a timeout: it ends when the GPU's work ends.
  std::thread([device, promise = std::move(promise)]() mutable {
    try {
      cuda_memory::use_device(device);
      cuda_memory::synchronize_device();
      promise.set_value();
    } catch (...) {
      promise.set_exception(std::current_exception());
    }
  }).detach();
  return [done] {
    if (done.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return false;
    done.get();
    return true;
  };
}

}  // namespace kvmesh
