// Compiled kernels, kept in memory and on disk.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "kernels/jit/compiler.hpp"

namespace kvmesh::jit {

/// $KVMESH_CACHE_DIR, else $XDG_CACHE_HOME/kvmesh, else $HOME/.cache/kvmesh; empty without any. The
/// code in it is run: it must be writable only by who may run code as this user.
std::filesystem::path default_cache_directory();

/// Gives a program's machine code, compiled at most once for all processes that share a directory,
/// but for those that start at the same time.
///
/// A file holds one program, found by a hash of all that it was compiled from; nothing ever changes
/// it. It is renamed into place when it is complete, and its checksum is verified when it is read:
/// a process that is killed in the middle of a write, or a damaged disk, costs a compilation. Where
/// the directory cannot be used, the cache is in memory only. Files may be removed at any time.
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
  explicit CubinCache(std::filesystem::path directory = default_cache_directory());

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

  std::filesystem::path directory_;
  std::mutex mutex_;  ///< of the map; entries stay where they are
  std::map<ProgramKey, Entry> entries_;
};

}  // namespace kvmesh::jit
