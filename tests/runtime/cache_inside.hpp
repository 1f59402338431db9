// The state behind a KvCache, for tests that let its parts fail.
#pragma once

#include "runtime/cache_state.hpp"

namespace kvmesh::test {

// An explicit instantiation may name a private member: no friend is needed in a public header.
auto& inside(KvCache& cache);
template <auto Member>
struct Opened {
  friend auto& inside(KvCache& cache) { return *(cache.*Member); }
};
template struct Opened<&KvCache::state_>;

}  // namespace kvmesh::test
