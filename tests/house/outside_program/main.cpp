// Two ranks each hold a partial over one key; merged, every rank has attention over both.
#include <cmath>
#include <cstdio>
#include <mutex>

#include <kvmesh/allocator.hpp>
#include <kvmesh/combine.hpp>
#include <kvmesh/communicator.hpp>

namespace {

// Equal scores and the values 1 and 3: the exact output is 2, the merged LSE log(2).
bool merged_is_exact(kvmesh::Communicator& comm) {
  float value = comm.rank().value == 0 ? 1.0F : 3.0F;
  float lse = 0.0F;
  float merged = NAN;
  float merged_lse = NAN;
  kvmesh::Combiner combine(comm);
  combine({kvmesh::tensor(&value, {1, 1, 1}), kvmesh::tensor(&lse, {1, 1})}, {},
          {kvmesh::tensor(&merged, {1, 1, 1}), kvmesh::tensor(&merged_lse, {1, 1})});
  std::printf("rank %d: %g, log-sum-exp %g\n", comm.rank().value, merged, merged_lse);
  return std::abs(merged - 2.0F) < 1e-6F && std::abs(merged_lse - std::log(2.0F)) < 1e-6F;
}

bool allocator_places_pages() {
  kvmesh::PageAllocator allocator({.ranks = 2, .pages_per_rank = 8, .page_size = 4});
  const kvmesh::SequenceId sequence = allocator.create();
  allocator.append(sequence, 10);
  return allocator.pages(sequence).size() == 3 && allocator.free_pages() == 13;
}

}  // namespace

int main() {
  std::mutex mutex;
  int exact = 0;
  kvmesh::run_loopback(2, [&](kvmesh::Communicator& comm) {
    const bool is_exact = merged_is_exact(comm);
    const std::scoped_lock lock(mutex);
    exact += is_exact ? 1 : 0;
  });
  return exact == 2 && allocator_places_pages() ? 0 : 1;
}
