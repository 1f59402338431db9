#include "kernels/jit/cubin_cache.hpp"

#include <cstdlib>
#include <string_view>
#include <system_error>
#include <utility>

#include "kernels/jit/cubin_file.hpp"

namespace kvmesh::jit {
namespace fs = std::filesystem;

fs::path default_cache_directory() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return fs::path(value ? value : "");
  };
  if (const fs::path own = variable("KVMESH_CACHE_DIR"); !own.empty()) return own;
  // A relative one is to be ignored: so says the XDG base directory specification.
  if (const fs::path caches = variable("XDG_CACHE_HOME"); caches.is_absolute()) {
    return caches / "kvmesh";
  }
  if (const fs::path home = variable("HOME"); !home.empty()) return home / ".cache" / "kvmesh";
  return {};
}

CubinCache::CubinCache(fs::path directory) : directory_(std::move(directory)) {}

CubinCache::Found CubinCache::get(const Program& program) {
  const ProgramKey key = key_of(program, compiler_version());
  Entry& entry = entry_of(key);
  const std::lock_guard lock(entry.mutex);
  if (entry.cubin) return {entry.cubin, Origin::kMemory};
  if (std::optional<Cubin> stored = load(key)) {
    entry.cubin = std::make_shared<const Cubin>(*std::move(stored));
    return {entry.cubin, Origin::kDisk};
  }
  entry.cubin = std::make_shared<const Cubin>(compile(program));
  store(key, *entry.cubin);
  return {entry.cubin, Origin::kCompiler};
}

std::optional<Cubin> CubinCache::load(const ProgramKey& key) const {
  if (directory_.empty()) return std::nullopt;
  const std::optional<std::vector<std::byte>> file = read_file(path_of(key));
  return file ? unpack(key, *file) : std::nullopt;
}

bool CubinCache::store(const ProgramKey& key, const Cubin& cubin) const {
  if (directory_.empty()) return false;
  std::error_code failed;
  fs::create_directories(directory_, failed);
  if (failed) return false;
  remove_abandoned_files(directory_);
  return write_file_atomically(path_of(key), pack(key, cubin));
}

fs::path CubinCache::path_of(const ProgramKey& key) const {
  return directory_ / (to_string(key) + ".cubin");
}

CubinCache::Entry& CubinCache::entry_of(const ProgramKey& key) {
  const std::lock_guard lock(mutex_);
  return entries_[key];
}

}  // namespace kvmesh::jit
