// Pools and copies among ranks that are processes.
#include <sys/resource.h>

#include <fstream>

#include "tests/runtime/cache/moves/page_transfer_contract.hpp"
#include "tests/runtime/memory/pools_contract.hpp"

namespace kvmesh::test {
namespace {

INSTANTIATE_TYPED_TEST_SUITE_P(Processes, PoolsContract, MpiPlaces, PlaceNames);
INSTANTIATE_TYPED_TEST_SUITE_P(Processes, PageTransferContract, MpiPlaces, PlaceNames);

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kLimitsWork = false;  // the sanitizer's shadow exceeds any limit
#else
constexpr bool kLimitsWork = true;
#endif

/// Lets this process have `bytes` more of address space, while it lives.
class AddressSpaceLimit {
 public:
  explicit AddressSpaceLimit(std::int64_t bytes) {
    std::int64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    getrlimit(RLIMIT_AS, &before_);
    rlimit limit = before_;
    limit.rlim_cur = static_cast<rlim_t>(pages * 4096 + bytes);
    setrlimit(RLIMIT_AS, &limit);
  }
  ~AddressSpaceLimit() { setrlimit(RLIMIT_AS, &before_); }
  AddressSpaceLimit(const AddressSpaceLimit&) = delete;
  AddressSpaceLimit& operator=(const AddressSpaceLimit&) = delete;

 private:
  rlimit before_{};
};

TEST(PoolsOfProcesses, AllNameARankThatCannotAllocate) {
  if (!kLimitsWork) GTEST_SKIP() << "under a sanitizer";
  MpiRanks::run([](Communicator& comm) {
    Mesh mesh(comm, {.threads = 1});
    const int last = mesh.size() - 1;
    constexpr std::int64_t kBytes = std::int64_t{1} << 30;  // taken only as it is written
    {
      std::optional<AddressSpaceLimit> limit;
      if (mesh.rank().value == last) limit.emplace(kBytes / 2);
      try {
        KvCache cache(mesh, cache_of_bytes(kBytes));
        ADD_FAILURE() << "made pools on a rank without memory";
      } catch (const OutOfMemory& error) {
        EXPECT_EQ(error.rank().value, last);
        EXPECT_LE(error.asked_bytes(), kBytes);
        EXPECT_GT(error.asked_bytes(), kBytes - kBytesOfPage - kMostPadding);
      }
    }
    KvCache cache(mesh, cache_of_bytes(kBytes));  // without the limit there is room
    barrier(mesh.world());
  });
}

}  // namespace
}  // namespace kvmesh::test
