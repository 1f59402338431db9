#include "launch/engine/workers.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "kvmesh/error.hpp"

namespace kvmesh::engine {

Workers::Workers(int threads) {
  if (threads < 1) throw InvalidArgument(fmt::format("{} threads: at least 1 is needed", threads));
  for (int i = 1; i < threads; ++i) helpers_.emplace_back([this] { help(); });
}

Workers::~Workers() {
  stop_ = true;
  ++round_;
  round_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
}

void Workers::for_ranges(std::int64_t items, std::int64_t grain,
                         const std::function<void(std::int64_t, std::int64_t)>& body) {
  if (items <= 0) return;
  body_ = &body;
  items_ = items;
  grain_ = std::max<std::int64_t>(grain, 1);
  next_ = 0;
  if (helpers_.empty() || items <= grain_) {
    take_ranges();
    return;
  }
  busy_ = static_cast<int>(helpers_.size());
  ++round_;
  round_.notify_all();
  take_ranges();
  for (int busy = busy_; busy > 0; busy = busy_) busy_.wait(busy);
}

void Workers::help() {
  for (std::uint32_t seen = 0;;) {
    round_.wait(seen);
    seen = round_;
    if (stop_) return;
    take_ranges();
    if (--busy_ == 0) busy_.notify_one();
  }
}

void Workers::take_ranges() {
  for (;;) {
    const std::int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= items_) return;
    (*body_)(begin, std::min(begin + grain_, items_));
  }
}

}  // namespace kvmesh::engine
