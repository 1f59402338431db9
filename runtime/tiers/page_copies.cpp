#include "runtime/tiers/page_copies.hpp"

#include <utility>

#include "core/cuda/device_wait.hpp"

namespace kvmesh {

PageCopies::PageCopies(const PoolStorage& pools, std::unique_ptr<MoveStream> stream,
                       const Communicator& world, std::size_t group)
    : mover_(pools, group),
      page_size_(pools.layout().groups()[group].format.page_size),
      page_bytes_(mover_.bytes(mover_.layers(), page_size_)),
      world_(world),
      me_(world.rank()),
      deadline_(world.deadline()),
      stream_(std::move(stream)) {}

PageCopies::~PageCopies() {
  try {
    wait_all(me_, deadline_);
  } catch (const std::exception&) {
    // Callers that needed the copies have waited for them.
  }
}

/// A batch has one direction, and no page and no image twice, because its copies run concurrently.
TierJob PageCopies::copy(std::int32_t page, std::byte* image, bool packs) {
  const std::lock_guard lock(mutex_);
  if (gave_up_) return job_done(false);
  if (batch_.packs != packs || batch_.pages.contains(page) || batch_.places.contains(image))
    start_batch();
  if (batch_.moves.empty()) {
    batch_.packs = packs;
    batch_done_ = {};
    batch_job_ = batch_done_.get_future().share();
  }
  batch_.moves.push_back({.source = page, .destination = page, .tokens = page_size_});
  batch_.images.push_back(image);
  batch_.pages.insert(page);
  batch_.places.insert(image);
  return batch_job_;
}

/// REQUIRES: the lock, as start_call.
void PageCopies::start_batch() {
  if (batch_.moves.empty()) return;
  const Batch batch = std::exchange(batch_, {});
  try {
    mover_.start(mover_.layers(), batch.moves, batch.images, batch.packs, *stream_);
  } catch (...) {
    failed(!batch.packs);
    return batch_done_.set_value(false);
  }
  const auto result = [this, packs = batch.packs] { return !packs || !has_lost_page(); };
  start_call(result, std::move(batch_done_), false, !batch.packs);
}

void PageCopies::start_call(std::function<bool()> work, std::promise<bool> done, bool holds,
                            bool unpacks) {
  const auto kept = std::make_shared<std::promise<bool>>(std::move(done));
  try {
    const auto call = [this, work = std::move(work), kept, unpacks](bool moved) {
      bool succeeded = false;
      try {
        if (!moved) throw Error("tiers: pages could not be copied");
        succeeded = work();
      } catch (...) {
        failed(unpacks);
      }
      kept->set_value(succeeded);
    };
    stream_->call(call, holds);
  } catch (...) {
    failed(unpacks);
    kept->set_value(false);
  }
}

TierJob PageCopies::then(std::function<bool()> work) {
  const std::lock_guard lock(mutex_);
  start_batch();
  std::promise<bool> done;
  const TierJob job = done.get_future().share();
  start_call(std::move(work), std::move(done), true, false);
  return job;
}

void PageCopies::start() {
  const std::lock_guard lock(mutex_);
  start_batch();
}

void PageCopies::give_up() {
  const std::lock_guard lock(mutex_);
  gave_up_ = true;
}

void PageCopies::after(Stream stream) {
  const std::lock_guard lock(mutex_);
  start_batch();
  stream_->after(stream);
}

void PageCopies::before(Stream stream) {
  {
    const std::lock_guard lock(mutex_);
    start_batch();
    stream_->before(stream);
  }
  throw_error();
}

void PageCopies::wait_all() { wait_all(world_.rank(), world_.deadline()); }

void PageCopies::wait_all(Rank me, std::chrono::milliseconds deadline) {
  start();
  const auto is_done = [this] {
    const std::lock_guard lock(mutex_);
    return stream_->is_done();
  };
  wait_until(is_done, {me, deadline, "copy pages of tiers"});
  throw_error();
}

bool PageCopies::wait(const TierJob& job) {
  start();
  const auto is_done = [&] {
    if (completed(job)) return true;
    const std::lock_guard lock(mutex_);
    static_cast<void>(stream_->is_done());  // a device that has failed completes no job
    return completed(job);
  };
  wait_until(is_done, {me_, deadline_, "copy pages of tiers"});
  return job.get();
}

/// Called in a handler.
void PageCopies::failed(bool unpacks) {
  const std::lock_guard lock(errors_);
  if (!error_) error_ = std::current_exception();
  has_lost_page_ |= unpacks;
}

bool PageCopies::has_lost_page() {
  const std::lock_guard lock(errors_);
  return has_lost_page_;
}

void PageCopies::throw_error() {
  const std::lock_guard lock(errors_);
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

}  // namespace kvmesh
