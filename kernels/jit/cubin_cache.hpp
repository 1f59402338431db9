// Compiled kernels, kept in memory and on disk.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "core/posix/cache_directory.hpp"
#include "kernels/jit/cache_folder.hpp"
#include "kernels/jit/compiler.hpp"
#include "kernels/jit/dump.hpp"
#include "kernels/jit/file_lock.hpp"

namespace kvmesh::jit {

struct CacheLimits {
  /// Most bytes of all files together. The least recently used are removed first.
  std::uintmax_t bytes = default_cache_bytes();
  /// How long to wait for another process that compiles the same program, before compiling it too.
  std::chrono::milliseconds wait{30'000};
};

/// Returns a program's machine code, compiled at most once for all processes that share a
/// directory: processes that need it at the same time wait until one has compiled it, or has died.
///
/// A file holds one program, found by a hash of all that it was compiled from, and never changes.
/// It is renamed into place when it is complete, and its checksum is verified when it is read: a
/// process killed in the middle of a write, or a damaged disk, costs a compilation. If the
/// directory cannot be used, the cache is in memory only. Files may be removed at any time.
///
/// With $KVMESH_DUMP, programs that are compiled or read are also dumped for people to read.
///
/// Threads may share one. Threads that need the same program wait for the first; different programs
/// are compiled side by side.
class CubinCache {
 public:
  enum class Origin { kMemory, kDisk, kCompiler };
  struct Found {
    std::shared_ptr<const Cubin> cubin;
    Origin origin;
  };

  /// With an empty path the cache is in memory only.
  explicit CubinCache(std::filesystem::path directory = default_cache_directory(),
                      const CacheLimits& limits = {});

  /// @throws what compile() throws; the next call tries again.
  Found get(const Program& program);

  /// Uses the disk alone. `store` returns false if it failed; callers may ignore that.
  std::optional<Cubin> load(const ProgramKey& key) const;
  bool store(const ProgramKey& key, const Cubin& cubin) const;
  std::filesystem::path path_of(const ProgramKey& key) const;

 private:
  struct Entry {
    std::mutex mutex;  ///< held while the program is loaded or compiled
    std::shared_ptr<const Cubin> cubin;
  };
  Entry& entry_of(const ProgramKey& key);
  Found load_or_compile(const Program& program, const ProgramKey& key) const;
  std::optional<FileLock> lock(const ProgramKey& key) const;
  bool make_directory() const;

  std::filesystem::path directory_;
  CacheLimits limits_;
  Dump dump_;
  std::mutex mutex_;  ///< guards the map; addresses of entries are constant
  std::map<ProgramKey, Entry> entries_;
};

}  // namespace kvmesh::jit
