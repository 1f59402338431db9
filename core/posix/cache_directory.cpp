#include "core/posix/cache_directory.hpp"

#include <cstdlib>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

fs::path variable(const char* name) {
  const char* value = std::getenv(name);
  return fs::path(value ? value : "");
}

}  // namespace

fs::path default_cache_directory() {
  if (const fs::path own = variable("KVMESH_CACHE_DIR"); !own.empty()) return own;
  // The XDG base directory specification says that a relative path is ignored.
  if (const fs::path caches = variable("XDG_CACHE_HOME"); caches.is_absolute()) {
    return caches / "kvmesh";
  }
  if (const fs::path home = variable("HOME"); !home.empty()) return home / ".cache" / "kvmesh";
  return {};
}

}  // namespace kvmesh
