// Pages in files that other runs, and other programs, can read.
//
//   DIRECTORY/MODEL-<16 digits>-v1/layers-0-31/heads-0-7/ab/cd/<hash>.page
//
// The digits are of a hash of formats, sizes and hash rules; v1 is the version of the files; ab and
// cd begin the page's hash. A folder is named by the layers and heads that its files hold, never by
// a rank: a rank that has other heads puts its pages together from the files of several folders.
#pragma once

#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include "runtime/tiers/host_memory.hpp"
#include "runtime/tiers/job_queue.hpp"
#include "runtime/tiers/kept_files.hpp"
#include "runtime/tiers/page_copies.hpp"
#include "runtime/tiers/page_file.hpp"
#include "runtime/tiers/page_folders.hpp"
#include "runtime/tiers/tier.hpp"

namespace kvmesh {

/// This rank's view of the directory. Files are read and written on a thread of its own, loads
/// before stores. A store needs one of a few buffers; without one it is dropped. A file that cannot
/// be read, or is not what it should be, is counted and its page is a miss.
class FileTier final : public Tier {
 public:
  struct Options {
    std::string folder{};  ///< that of the model and the layers
    PageFileShape shape{};
    PageFormat format{};
    PageFileWay way{};
    FileSharers sharers{};
    Eviction eviction = Eviction::kHits;
    PageRank me{};
    Device device{};
  };
  static constexpr int kBuffers = 16;

  /// Finds the files of earlier runs. REQUIRES: all but the options outlive the tier.
  FileTier(const Options& options, FileCalls& calls, PageCopies& copies);

  TierAnswer lookup(const PageHash& hash) override;
  /// A rank that does not have the page trusts its file again, and leaves it to the other to count.
  TierJob submit_store(const PageHash& hash, const PageSource& from) override;
  TierJob submit_load(const PageHash& hash, PageId to) override;
  bool wait_for_stores(std::chrono::milliseconds most) override;
  /// Counts the files of these pages as used, the first page first, after the stores so far. `hit`:
  /// they were loaded; then their times on the disk change, too, for later runs. Call it on every
  /// rank: each counts its share of the files.
  void renew(std::vector<PageHash> pages, bool hit);
  /// Records that a page's file could not be read on some rank: the next store of the page replaces
  /// the file.
  void distrust(const PageHash& hash) { distrusted_.insert(hash); }
  /// Ends distrust on this rank: the file was read, or another rank knows whether it is sound.
  void trust(const PageHash& hash) { distrusted_.erase(hash); }
  /// Counts no more those of the pages' files that are gone: a rank removes a bad file that it has
  /// read, and another one may count it.
  void forget_removed(std::span<const PageHash> pages);
  bool is_distrusted(const PageHash& hash) const { return distrusted_.contains(hash); }
  /// Makes the loads under way fail, without a write to a page from now on. Counts `why`.
  void cancel_loads(FileFault why = FileFault::kNone);
  /// Cancels loads, and blocks until none uses the copies: at most for the read of one file.
  void end_loads();
  TierCounts counts() const override {
    const std::lock_guard lock(mutex_);
    TierCounts counts = counts_;
    counts.pages = kept_.files();
    return counts;
  }
  FileFaults faults() const {
    const std::lock_guard lock(mutex_);
    return faults_;
  }

  /// The path of a page's file with this rank's heads.
  std::string path(const PageHash& hash) const { return PageFolders::path(folders_.own(), hash); }

 private:
  bool is_cancelled(std::uint64_t wave) {
    const std::lock_guard lock(mutex_);
    return wave != wave_;
  }
  bool unpack(std::int32_t page, std::uint64_t wave);
  void find_files();
  void recount(const PageHash& hash);
  void add(const PageHash& hash, std::int64_t bytes);
  std::shared_ptr<HostMemory> take_buffer(const PageHash& hash);
  TierJob store_later(const PageHash& hash, const PageSource& from,
                      const std::shared_ptr<HostMemory>& buffer);
  bool store(const PageHash& hash, const HostMemory& buffer);
  bool load(const PageHash& hash, std::byte* image);
  bool read_part(const PageFolder& folder, const PageHash& hash, std::byte* image);
  FileFault remove(const PageHash& hash);
  FileFault remove(const std::string& path);
  void count(FileFault fault);
  std::int64_t& counter(FileFault fault);

  Options options_;
  FileCalls& calls_;
  PageCopies& copies_;
  PageFolders folders_;
  HostMemory loaded_;  // the image of the page that is being loaded
  std::unordered_set<PageHash, FirstBytes> distrusted_;
  TierJob last_load_ = job_done();  // earlier loads end before it

  mutable std::mutex mutex_;  // guards all below
  std::vector<HostMemory> free_;
  std::unordered_set<PageHash, FirstBytes> under_way_;  // stores
  KeptFiles kept_;
  std::uint64_t wave_ = 0;  // of loads that may write to pages
  TierCounts counts_;
  FileFaults faults_;
  JobQueue jobs_;  // last: its thread uses the others
};

}  // namespace kvmesh
