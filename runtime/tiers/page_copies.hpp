// All copies of tiers between this rank's pools and host memory.
#pragma once

#include <chrono>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <vector>

#include "kvmesh/communicator.hpp"
#include "runtime/memory/page_mover.hpp"
#include "runtime/tiers/tier.hpp"

namespace kvmesh {

/// Copies whole pages in the order of the calls. So a page or its image may be reused as soon as
/// its copy is submitted, if all later uses wait for the copies (`before`, `wait_all`) or are
/// copies of this class. An image is a page's planes, layer after layer, plane after plane, each
/// [heads, page_size, elements].
///
/// Copies are gathered to batches, each one call of the stream. After a failed unpack no pack
/// succeeds, because it might copy the page that the unpack has left unfinished. Threads may share
/// it.
class PageCopies {
 public:
  /// Copies pages of one layer group. Keeps the rank and the deadline that `world` has now, for
  /// waits of other threads and of the destructor. REQUIRES: `pools` outlives this object; `world`
  /// lives as long as calls other than these waits are made.
  PageCopies(const PoolStorage& pools, std::unique_ptr<MoveStream> stream,
             const Communicator& world, std::size_t group = 0);
  /// Waits for the copies, at most for the deadline.
  ~PageCopies();
  PageCopies(const PageCopies&) = delete;
  PageCopies& operator=(const PageCopies&) = delete;

  std::size_t page_bytes() const { return page_bytes_; }
  TierJob pack(std::int32_t page, std::byte* image) { return copy(page, image, true); }
  TierJob unpack(const std::byte* image, std::int32_t page) {
    return copy(page, const_cast<std::byte*>(image), false);
  }
  /// Runs `work` on some thread after all copies so far and before later ones. REQUIRES: `work`
  /// makes no call of the device.
  TierJob then(std::function<bool()> work);
  /// Starts the gathered batch, as every wait does, too.
  void start();

  /// Makes no further copies: later calls return failed jobs.
  void give_up();

  /// Later copies run after the work that is on `stream` now.
  void after(Stream stream);
  /// Later work on `stream` runs after the copies so far; on the CPU the call blocks until they are
  /// done. @throws the first error of a copy since the last call.
  void before(Stream stream);
  /// Blocks until all copies are done. @throws as before; Timeout.
  void wait_all();
  /// Blocks until the job is done. Returns its result. Any thread. @throws Timeout.
  bool wait(const TierJob& job);

 private:
  struct Batch {
    bool packs = false;
    std::vector<PageMove> moves{};
    std::vector<std::byte*> images{};
    std::set<std::int32_t> pages{};
    std::set<const std::byte*> places{};
  };
  TierJob copy(std::int32_t page, std::byte* image, bool packs);
  void start_batch();
  void start_call(std::function<bool()> work, std::promise<bool> done, bool holds, bool unpacks);
  void wait_all(Rank me, std::chrono::milliseconds deadline);
  void failed(bool unpacks);
  bool has_lost_page();
  void throw_error();

  PageMover mover_;
  int page_size_;
  std::size_t page_bytes_;
  const Communicator& world_;
  Rank me_;  // kept, as the deadline, for the destructor: a cache may outlive `world_`
  std::chrono::milliseconds deadline_;
  std::mutex errors_;  // guards the next two alone, since the stream's thread takes it
  std::exception_ptr error_;
  bool has_lost_page_ = false;  // the content of some page of the pools is unknown
  std::mutex mutex_;            // guards all below
  bool gave_up_ = false;
  Batch batch_;  // gathered
  std::promise<bool> batch_done_;
  TierJob batch_job_;
  std::unique_ptr<MoveStream> stream_;  // ends first: its thread uses the others
};

}  // namespace kvmesh
