// Compiled kernels, kept in memory and on disk.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "kernels/jit/cache_folder.hpp"
#include "kernels/jit/compiler.hpp"
#include "kernels/jit/dump.hpp"
#include "kernels/jit/file_lock.hpp"

namespace kvmesh::jit {

struct CacheLimits {
  /// What the files take together, at most. The least recently used go first.
  std::uintmax_t bytes = default_cache_bytes();
  /// How long to wait for another process that compiles the same program, before compiling it too.
  std::chrono::milliseconds wait{30'000};
};

/// Gives a program's machine code, compiled at most once for all processes that share a directory:
/// those that want it at the same time wait for the one that compiles it, or for its death.
///
/// A file holds one program, found by a hash of all that it was compiled from; nothing ever changes
/// it. It is renamed into place when it is complete, and its checksum is verified when it is read:
/// a process that is killed in the middle of a write, or a damaged disk, costs a compilation. Where
/// the directory cannot be used, the cache is in memory only. Files may be removed at any time.
///
/// What is compiled or read is also dumped for people to read, if $KVMESH_DUMP says where.
///
/// Threads may share one. Those that ask for the same program wait for the first; different
/// programs compile side by side.
class CubinCache {
 public:
  enum class Origin { kMemory, kDisk, kCompiler };
  struct Found {
    std::shared_ptr<const Cubin> cubin;
    Origin origin;
  };

  /// With an empty path: in memory only.
  explicit CubinCache(std::filesystem::path directory = default_cache_directory(),
                      const CacheLimits& limits = {});

  /// @throws what compile() throws; the next call tries again.
  Found get(const Program& program);

  /// The disk alone. `store` gives false if it could not: nobody needs to mind.
  std::optional<Cubin> load(const ProgramKey& key) const;
  bool store(const ProgramKey& key, const Cubin& cubin) const;
  std::filesystem::path path_of(const ProgramKey& key) const;

 private:
  struct Entry {
    std::mutex mutex;  ///< held while it is loaded or compiled
    std::shared_ptr<const Cubin> cubin;
  };
  Entry& entry_of(const ProgramKey& key);
  Found load_or_compile(const Program& program, const ProgramKey& key) const;
  std::optional<FileLock> lock(const ProgramKey& key) const;
  bool make_directory() const;

  std::filesystem::path directory_;
  CacheLimits limits_;
  Dump dump_;
  std::mutex mutex_;  ///< of the map; entries stay where they are
  std::map<ProgramKey, Entry> entries_;
};

}  // namespace kvmesh::jit
