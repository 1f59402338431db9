#include "runtime/tiers/file_tier.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <new>

#include "core/aligned_buffer.hpp"
#include "core/check.hpp"
#include "kvmesh/device_memory.hpp"

namespace kvmesh {
namespace {

/// The member that counts each FileFault. A file that another rank has removed meanwhile is
/// missing.
constexpr std::int64_t FileFaults::*kCountOf[] = {
    nullptr,          // kNone
    &FileFaults::io,  // kMissing
    &FileFaults::corrupt,
    &FileFaults::truncated,
    &FileFaults::foreign,
    &FileFaults::full,
    &FileFaults::denied,
    &FileFaults::io,
};
static_assert(std::size(kCountOf) == static_cast<std::size_t>(FileFault::kIo) + 1);

/// A store gives up after this many files over the limit that it could not remove: in a read-only
/// folder it can remove none.
constexpr int kMostFailures = 8;

std::size_t bytes_of_head(const PagePlane& plane, int page_size) {
  return static_cast<std::size_t>(plane.elements) * static_cast<std::size_t>(page_size) *
         size_bytes(plane.dtype);
}

}  // namespace

FileTier::FileTier(const Options& options, FileCalls& calls, PageCopies& copies)
    : options_(options),
      calls_(calls),
      copies_(copies),
      folders_(options.folder, options.shape.first_head, options.shape.heads, options.sharers.part),
      loaded_(options.device, options.shape.image_bytes()),
      kept_(options.eviction, options.sharers.bytes_per_rank(),
            static_cast<std::int64_t>(options.shape.file_bytes())),
      jobs_([device = options.device] { use_device(device); }) {
  count(make_page_folder(calls_, folders_.own().path, options_.way));
  folders_.find();
  find_files();
  for (int i = 0; i < kBuffers; ++i)
    free_.emplace_back(options_.device, file_buffer_bytes(options_.shape.file_bytes()));
}

/// Counts this rank's share of the files, and removes its share of those over the limit. Removes
/// parts of files that killed processes have left.
void FileTier::find_files() {
  const FoundShare share = share_found(merge_found(folders_.files(calls_)), options_.sharers);
  const std::lock_guard lock(mutex_);
  for (const FoundPage& page : share.excess) {
    if (remove(page.hash) == FileFault::kNone) {
      ++counts_.removed;
    } else {
      kept_.add(page.hash, page.bytes);
    }
  }
  // Without a look at the rank's own limit: all ranks together are within theirs.
  for (const FoundPage& page : share.kept) kept_.add(page.hash, page.bytes);
}

/// Counts what there is of a page, after a file of it was removed. REQUIRES: the lock.
void FileTier::recount(const PageHash& hash) {
  if (!kept_.used(hash)) return;  // another rank counts it, or none
  const std::int64_t bytes = folders_.bytes_of(hash);
  if (bytes == 0) {
    kept_.forget(hash);
  } else {
    kept_.add(hash, bytes);
  }
}

/// Counts a page's files, and removes those over the limit. A page that cannot be removed still
/// counts, and the next one is removed instead. REQUIRES: the lock.
void FileTier::add(const PageHash& hash, std::int64_t bytes) {
  kept_.add(hash, bytes);
  for (int failures = 0; failures < kMostFailures;) {
    const std::optional<PageHash> first = kept_.excess();
    if (!first) return;
    if (remove(*first) != FileFault::kNone) {
      kept_.used(*first);
      ++failures;
      continue;
    }
    kept_.left(*first);
    ++counts_.removed;
  }
}

/// Removes the files that counted_paths names. Returns the last fault. REQUIRES: the lock.
FileFault FileTier::remove(const PageHash& hash) {
  FileFault fault = FileFault::kNone;
  for (const std::string& path : folders_.counted_paths(hash)) {
    const FileFault its = remove(path);
    if (its != FileFault::kNone) fault = its;
  }
  return fault;
}

/// Removes a file, and counts a fault. A file that is gone already is no fault. REQUIRES: the lock.
FileFault FileTier::remove(const std::string& path) {
  const FileFault fault = remove_page_file(calls_, path);
  if (fault != FileFault::kNone) ++counter(fault);
  return fault;
}

void FileTier::renew(std::vector<PageHash> pages, bool hit) {
  copies_.then([this, pages = std::move(pages), hit] {
    jobs_.submit([this, pages, hit] {
      for (const PageHash& hash : pages) {
        const std::lock_guard lock(mutex_);
        if (!hit) {
          kept_.used(hash);
        } else if (kept_.hit(hash)) {
          for (const std::string& path : folders_.counted_paths(hash)) calls_.touch(path.c_str());
        }
      }
      return true;
    });
    return true;
  });
}

TierAnswer FileTier::lookup(const PageHash& hash) {
  {
    const std::lock_guard lock(mutex_);
    if (under_way_.contains(hash)) return TierAnswer::kRetry;
  }
  return folders_.cover(hash) ? TierAnswer::kHit : TierAnswer::kMiss;
}

TierJob FileTier::submit_store(const PageHash& hash, const PageSource& from) {
  const bool replaces = distrusted_.erase(hash) > 0;
  if (from.bytes == nullptr && from.page.rank() != options_.me) {
    const std::lock_guard lock(mutex_);
    if (replaces) kept_.forget(hash);  // the other rank counts it
    return job_done();
  }
  const TierAnswer known = lookup(hash);
  if (known == TierAnswer::kRetry || (known == TierAnswer::kHit && !replaces)) {
    const std::lock_guard lock(mutex_);
    kept_.used(hash);
    return job_done();
  }
  if (const auto buffer = take_buffer(hash)) return store_later(hash, from, buffer);
  if (replaces) distrust(hash);
  return job_done(false);
}

void FileTier::forget_removed(std::span<const PageHash> pages) {
  const std::lock_guard lock(mutex_);
  for (const PageHash& hash : pages) recount(hash);
}

/// Takes a free buffer for a page, whose store is under way from then on. Returns null if no buffer
/// is free: the page is dropped.
std::shared_ptr<HostMemory> FileTier::take_buffer(const PageHash& hash) {
  const std::lock_guard lock(mutex_);
  if (free_.empty()) {
    ++counts_.drops;
    return nullptr;
  }
  auto buffer = std::make_shared<HostMemory>(std::move(free_.back()));
  free_.pop_back();
  under_way_.insert(hash);
  return buffer;
}

/// Stores the page after it was copied into the buffer, and frees the buffer afterwards.
TierJob FileTier::store_later(const PageHash& hash, const PageSource& from,
                              const std::shared_ptr<HostMemory>& buffer) {
  std::byte* const image = buffer->data() + kPageFileHeader;
  const TierJob packed =
      from.bytes == nullptr ? copies_.pack(from.page.index(), image) : from.written;
  return copies_.then([this, hash, bytes = from.bytes, image, packed, buffer] {
    if (bytes != nullptr) std::memcpy(image, bytes, options_.shape.image_bytes());
    jobs_.submit([this, hash, packed, buffer] {
      // The copy is done, so its result comes soon; but a failed device never gives one.
      const bool has_page =
          packed.wait_for(std::chrono::seconds(60)) == std::future_status::ready && packed.get();
      const bool stored = has_page && store(hash, *buffer);
      const std::lock_guard lock(mutex_);
      free_.push_back(std::move(*buffer));
      under_way_.erase(hash);
      return stored;
    });
    return true;
  });
}

bool FileTier::store(const PageHash& hash, const HostMemory& buffer) {
  const std::string name = path(hash);
  const std::size_t size = options_.shape.file_bytes();
  const std::span<std::byte> bytes(buffer.data(), buffer.size_bytes());
  std::ranges::fill(bytes.subspan(size), std::byte{});
  FileFault fault = FileFault::kIo;
  try {
    fault = write_page_file(calls_, name, options_.shape, hash, bytes, options_.way);
  } catch (const std::exception&) {  // no memory
  }
  count(fault);
  if (fault != FileFault::kNone) return false;
  const std::lock_guard lock(mutex_);
  ++counts_.stores;
  add(hash, folders_.bytes_of(hash));
  return true;
}

TierJob FileTier::submit_load(const PageHash& hash, PageId to) {
  if (to.rank() != options_.me) return job_done();
  std::uint64_t wave = 0;
  {
    const std::lock_guard lock(mutex_);
    wave = wave_;
  }
  return last_load_ = jobs_.submit(
             [this, hash, wave, page = to.index()] {
               try {
                 return !is_cancelled(wave) && load(hash, loaded_.data()) && unpack(page, wave);
               } catch (const std::bad_alloc&) {
                 count(FileFault::kIo);
                 return false;
               }
             },
             true);
}

/// Submits the copy under the lock, so that cancel_loads comes before it or after it; in the second
/// case later uses of the page wait for the copy.
bool FileTier::unpack(std::int32_t page, std::uint64_t wave) {
  TierJob unpacked;
  {
    const std::lock_guard lock(mutex_);
    if (wave != wave_) return false;
    unpacked = copies_.unpack(loaded_.data(), page);
  }
  if (!copies_.wait(unpacked)) return false;
  const std::lock_guard lock(mutex_);
  ++counts_.loads;
  return true;
}

void FileTier::cancel_loads(FileFault why) {
  count(why);
  const std::lock_guard lock(mutex_);
  ++wave_;
}

void FileTier::end_loads() {
  cancel_loads();
  last_load_.wait();
}

bool FileTier::load(const PageHash& hash, std::byte* image) {
  const auto parts = folders_.cover(hash);
  if (!parts) return false;
  return std::ranges::all_of(
      *parts, [&](const PageFolder* folder) { return read_part(*folder, hash, image); });
}

/// Reads a file and copies this rank's heads into the image.
bool FileTier::read_part(const PageFolder& folder, const PageHash& hash, std::byte* image) {
  PageFileShape shape = options_.shape;
  shape.first_head = static_cast<std::uint16_t>(folder.first_head);
  shape.heads = static_cast<std::uint16_t>(folder.heads);
  AlignedBuffer buffer(file_buffer_bytes(shape.file_bytes()) + kFileBlock);
  const std::span<std::byte> bytes(static_cast<std::byte*>(buffer.data()), buffer.size_bytes());
  const std::string name = PageFolders::path(folder, hash);
  const FileFault fault = read_page_file(calls_, name, shape, hash, bytes, options_.way);
  count(fault);
  if (fault != FileFault::kNone) {
    // A foreign file may be another program's, until a store of the page replaces it.
    if (fault != FileFault::kCorrupt && fault != FileFault::kTruncated) return false;
    const std::lock_guard lock(mutex_);
    if (remove(name) == FileFault::kNone) recount(hash);
    return false;
  }
  const PageFolder& own = folders_.own();
  const int first = std::max(folder.first_head, own.first_head);
  const int last = std::min(folder.first_head + folder.heads, own.first_head + own.heads);
  const std::byte* from = bytes.data() + kPageFileHeader;
  for (int layer = 0; layer < shape.layers; ++layer) {
    for (const PagePlane& plane : options_.format.planes) {
      const std::size_t head = bytes_of_head(plane, shape.page_size);
      std::memcpy(image + static_cast<std::size_t>(first - own.first_head) * head,
                  from + static_cast<std::size_t>(first - folder.first_head) * head,
                  static_cast<std::size_t>(last - first) * head);
      image += static_cast<std::size_t>(own.heads) * head;
      from += static_cast<std::size_t>(folder.heads) * head;
    }
  }
  return true;
}

void FileTier::count(FileFault fault) {
  if (fault == FileFault::kNone) return;
  const std::lock_guard lock(mutex_);
  ++counter(fault);
}

std::int64_t& FileTier::counter(FileFault fault) {
  return faults_.*kCountOf[static_cast<std::size_t>(fault)];
}

bool FileTier::wait_for_stores(std::chrono::milliseconds most) {
  std::exception_ptr failure;
  try {
    copies_.wait_all();
  } catch (const Error&) {
    failure = std::current_exception();
  }
  const bool is_done = jobs_.wait_all(most);  // jobs free the buffers, also after failed copies
  if (failure) std::rethrow_exception(failure);
  return is_done;
}

}  // namespace kvmesh
