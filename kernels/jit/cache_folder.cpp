#include "kernels/jit/cache_folder.hpp"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <string_view>
#include <system_error>
#include <vector>

#include "core/check.hpp"
#include "core/posix/whole_file.hpp"
#include "kernels/jit/cubin_file.hpp"

namespace kvmesh::jit {
namespace {

namespace fs = std::filesystem;
using Clock = fs::file_time_type::clock;

/// No write and no compilation takes this long, so an older temporary or lock file is abandoned.
constexpr std::chrono::hours kAbandonedAfter{1};

struct StoredFile {
  fs::path path;
  fs::file_time_type used;
  std::uintmax_t bytes;
};

}  // namespace

std::uintmax_t default_cache_bytes() {
  const char* text = std::getenv("KVMESH_CACHE_BYTES");
  if (text == nullptr || *text == '\0') return std::uintmax_t{512} << 20;
  std::uintmax_t bytes = 0;
  const std::string_view digits(text);
  const auto [end, error] = std::from_chars(text, text + digits.size(), bytes);
  require(error == std::errc{} && end == text + digits.size(),
          "KVMESH_CACHE_BYTES is '{}', not a number of bytes", digits);
  return bytes;
}

void touch(const fs::path& file) {
  std::error_code ignored;  // a folder of another owner is used all the same
  fs::last_write_time(file, Clock::now(), ignored);
}

void tidy(const fs::path& directory, std::uintmax_t bytes) {
  std::vector<StoredFile> cubins;
  std::uintmax_t total = 0;
  std::error_code ignored;
  for (fs::directory_iterator entry(directory, ignored), end; entry != end;
       entry.increment(ignored)) {
    const fs::path& path = entry->path();
    std::error_code gone;
    const auto used = fs::last_write_time(path, gone);
    if (gone) continue;
    if (path.extension() == kTemporarySuffix || path.extension() == kLockSuffix) {
      if (used < Clock::now() - kAbandonedAfter) fs::remove(path, gone);
    } else if (path.extension() == kCubinSuffix) {
      const std::uintmax_t size = fs::file_size(path, gone);
      if (gone) continue;
      cubins.push_back({path, used, size});
      total += size;
    }
  }
  std::ranges::sort(cubins, {}, &StoredFile::used);
  for (const StoredFile& cubin : cubins) {
    if (total <= bytes) return;
    fs::remove(cubin.path, ignored);
    total -= cubin.bytes;
  }
}

}  // namespace kvmesh::jit
