#include "kernels/jit/cubin_cache.hpp"

#include <system_error>
#include <utility>

#include "core/posix/whole_file.hpp"
#include "kernels/jit/cubin_file.hpp"

namespace kvmesh::jit {
namespace fs = std::filesystem;

CubinCache::CubinCache(fs::path directory, const CacheLimits& limits)
    : directory_(std::move(directory)), limits_(limits) {}

CubinCache::Found CubinCache::get(const Program& program) {
  const ProgramKey key = key_of(program, compiler_version());
  Entry& entry = entry_of(key);
  const std::lock_guard guard(entry.mutex);
  if (entry.cubin) return {entry.cubin, Origin::kMemory};
  const Found found = load_or_compile(program, key);
  dump_.write(program, key, *found.cubin);
  entry.cubin = found.cubin;
  return found;
}

CubinCache::Found CubinCache::load_or_compile(const Program& program, const ProgramKey& key) const {
  const auto shared = [](Cubin&& cubin) { return std::make_shared<const Cubin>(std::move(cubin)); };
  if (auto stored = load(key)) return {shared(*std::move(stored)), Origin::kDisk};
  const std::optional<FileLock> alone = lock(key);
  // The previous holder of the lock may have stored it.
  if (auto stored = load(key)) return {shared(*std::move(stored)), Origin::kDisk};
  const auto compiled = shared(compile(program));
  store(key, *compiled);
  return {compiled, Origin::kCompiler};
}

std::optional<Cubin> CubinCache::load(const ProgramKey& key) const {
  if (directory_.empty()) return std::nullopt;
  const fs::path path = path_of(key);
  const std::optional<std::vector<std::byte>> file = read_file(path);
  std::optional<Cubin> cubin = file ? unpack(key, *file) : std::nullopt;
  if (cubin) touch(path);
  return cubin;
}

bool CubinCache::store(const ProgramKey& key, const Cubin& cubin) const {
  if (!make_directory()) return false;
  const bool is_stored = write_file_atomically(path_of(key), pack(key, cubin));
  tidy(directory_, limits_.bytes);
  return is_stored;
}

fs::path CubinCache::path_of(const ProgramKey& key) const {
  return directory_ / to_string(key).append(kCubinSuffix);
}

std::optional<FileLock> CubinCache::lock(const ProgramKey& key) const {
  if (!make_directory()) return std::nullopt;
  return FileLock::acquire(directory_ / to_string(key).append(kLockSuffix), limits_.wait);
}

bool CubinCache::make_directory() const {
  if (directory_.empty()) return false;
  std::error_code failed;
  fs::create_directories(directory_, failed);
  return !failed;
}

CubinCache::Entry& CubinCache::entry_of(const ProgramKey& key) {
  const std::lock_guard lock(mutex_);
  return entries_[key];
}

}  // namespace kvmesh::jit
