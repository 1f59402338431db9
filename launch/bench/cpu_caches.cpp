#include "launch/bench/cpu_caches.hpp"

#include <unistd.h>

#include <fstream>
#include <string>

namespace kvmesh::bench {
namespace {

// "32768K" -> 33554432; 0 for a text that is not a size.
std::int64_t size_in(const std::filesystem::path& file) {
  std::ifstream stream(file);
  std::int64_t size = 0;
  char unit = ' ';
  if (!(stream >> size)) return 0;
  stream >> unit;
  return unit == 'K' ? size << 10 : unit == 'M' ? size << 20 : size;
}

std::int64_t level_in(const std::filesystem::path& file) {
  std::ifstream stream(file);
  std::int64_t level = 0;
  return stream >> level ? level : 0;
}

std::int64_t library_says() {
  for (const int level : {_SC_LEVEL4_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE, _SC_LEVEL2_CACHE_SIZE}) {
    if (const long bytes = ::sysconf(level); bytes > 0) return bytes;
  }
  return 32 << 20;
}

}  // namespace

std::int64_t last_level_cache_bytes(const std::filesystem::path& folder) {
  std::int64_t last = 0;
  std::int64_t bytes = 0;
  for (int index = 0; std::filesystem::exists(folder / ("index" + std::to_string(index)));
       ++index) {
    const std::filesystem::path cache = folder / ("index" + std::to_string(index));
    const std::int64_t level = level_in(cache / "level");
    const std::int64_t size = size_in(cache / "size");
    if (level > last && size > 0) {
      last = level;
      bytes = size;
    }
  }
  return bytes > 0 ? bytes : library_says();
}

}  // namespace kvmesh::bench
