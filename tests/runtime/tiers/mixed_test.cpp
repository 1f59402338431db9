// Random operations of caches with tiers on ranks that are threads, with their bytes: prefixes,
// forks, evictions, moves, drains, sizes of pools, drafts that are kept, and streams mixed. After
// each operation every rank checks the tokens that it holds.
#include "tests/allocator/seed.hpp"
#include "tests/runtime/tiers/mixed_serving.hpp"

namespace kvmesh::test {
namespace {

TEST(MixedProperties, EveryTokenIsWhereItsTableSays) {
  SCOPED_TRACE(seed_note());
  struct Case {
    int ranks;
    bool has_groups, has_files;
    int part;  // of all operations, in hundredths
    Placement placement = Placement::kBalanced;
  };
  for (const Case& it :
       {Case{1, false, false, 20}, Case{1, true, false, 26}, Case{1, true, true, 5},
        Case{2, false, false, 10}, Case{2, false, false, 10, Placement::kStriped},
        Case{2, false, false, 10, Placement::kPacked}, Case{3, true, false, 7},
        Case{3, true, false, 8, Placement::kStriped}, Case{2, true, true, 4}}) {
    SCOPED_TRACE(testing::Message() << it.ranks << " ranks, groups " << it.has_groups << ", files "
                                    << it.has_files << ", " << name(it.placement));
    const MixedFolder folder;
    run_on_threads(it.ranks,
                   [&](Mesh& mesh) {
                     CacheOptions options = mixed_options(it.ranks, it.has_groups);
                     options.placement = it.placement;
                     if (it.has_files) options.tiers.directory = folder.path();
                     options.tiers.file_bytes = 30 << 10;
                     Serving serving(mesh, options, seed() + static_cast<std::uint64_t>(it.part));
                     serving.run(operations(100'000) * it.part / 100);
                     EXPECT_GT(serving.hits, 50);
                     EXPECT_EQ(serving.loads > 0, it.has_files);
                     EXPECT_GT(serving.cache().tier_statistics().pages_back, 10);
                     EXPECT_GT(serving.compacted, 10);
                     EXPECT_GT(serving.imported, 5);
                     if (it.ranks > 1) {
                       EXPECT_GT(serving.moved, 20);
                       EXPECT_GT(serving.moved_beside, 20);
                     }
                     serving.cache().check_replicas();
                   },
                   {.threads = 1});
  }
}

}  // namespace
}  // namespace kvmesh::test
