// Copies on write, of drafts, and of the rows of streams, each of which fails once on one rank.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <functional>

#include "tests/runtime/cache/faulty_backend.hpp"
#include "tests/runtime/streams/sequence_stream_case.hpp"

namespace kvmesh::test {
namespace {

constexpr int kRanks = 3;
constexpr std::int64_t kPage = 4, kTokens = 22, kWhole = kTokens / kPage * kPage;

CacheOptions copied_groups() {
  CacheOptions options = options_of({.ranks = kRanks});
  options.pages_per_rank = 16;
  options.groups = {{.layers = {1}}};
  return options;
}

/// A cache of two groups with a sequence of kTokens tokens, and streams of what sequences of other
/// lengths hold.
class Copying {
 public:
  Copying(Mesh& mesh, int failing)
      : mesh_(mesh), is_failing_(mesh.rank().value == failing), cache_(mesh, copied_groups()) {
    for (CacheGroup& group : inside(cache_).groups)
      group.backend = std::make_unique<FaultyBackend>(std::move(group.backend), faults_);
    inside(cache_).staging.batch_bytes = 1;  // one record
    parent_ = cache_.create();
    append_numbers(mesh_, cache_, parent_, kTokens);
  }

  KvCache& cache() { return cache_; }
  SequenceId parent() const { return parent_; }

  /// Runs `call` with each of its steps failing on the failing rank in turn, and `check` after each
  /// failure, which gets the error of this rank, if it has one. Returns the number of steps.
  int fail_each_step(const std::function<void()>& prepare, const std::function<void()>& call,
                     const std::function<void(const Error*)>& check,
                     const std::function<void()>& finish) {
    for (int fails = 0;; ++fails) {
      SCOPED_TRACE("step " + std::to_string(fails));
      prepare();
      faults_ = {.fails = is_failing_ ? fails : -1};
      std::optional<Error> error;
      try {
        call();
      } catch (const Error& thrown) {
        error = thrown;
      }
      const auto injected = static_cast<std::uint8_t>(is_failing_ && faults_.steps > fails);
      faults_ = {};
      const auto all = all_gather_value(mesh_.world(), injected, "was it injected");
      cache_.check_replicas();
      for (int g = 0; g < cache_.groups(); ++g) cache_.allocator(g).verify_integrity();
      EXPECT_EQ(stream_of(parent_), stream_of_length(kTokens)) << "another sequence";
      if (std::ranges::find(all, 1) == all.end()) {
        EXPECT_FALSE(error);
        finish();
        return fails;
      }
      if (is_failing_) {
        EXPECT_TRUE(error);
        EXPECT_STREQ(error ? error->what() : "", "injected");
      }
      check(error ? &*error : nullptr);
      finish();
    }
  }

  Stream stream_of(SequenceId sequence) { return export_of(mesh_, cache_, sequence); }
  /// Returns the export of a sequence that was never copied.
  Stream stream_of_length(std::int64_t tokens) {
    const SequenceId plain = cache_.create();
    append_numbers(mesh_, cache_, plain, tokens);
    Stream stream = stream_of(plain);
    cache_.erase(plain);
    return stream;
  }
  /// Goes back to the whole pages before a copy, and appends again.
  void expect_way_back(SequenceId sequence, std::int64_t whole) {
    cache_.truncate(sequence, whole);
    EXPECT_EQ(stream_of(sequence), stream_of_length(whole));
    append_numbers(mesh_, cache_, sequence, 9);
    EXPECT_EQ(stream_of(sequence), stream_of_length(whole + 9));
  }
  /// Leaves no free page where the parent's last one is, so that its copy is on another rank.
  std::vector<SequenceId> fill_last_rank() {
    const PageRank last = cache_.allocator().pages(parent_).back().rank();
    std::vector<SequenceId> made, stay;
    while (cache_.allocator().free_pages() > 0) {
      made.push_back(cache_.create());
      cache_.reserve(made.back(), kPage);
    }
    for (const SequenceId id : made) {
      if (cache_.allocator().pages(id)[0].rank() == last) {
        stay.push_back(id);
      } else {
        cache_.erase(id);
      }
    }
    return stay;
  }

 private:
  Mesh& mesh_;
  bool is_failing_;
  Faults faults_;
  KvCache cache_;
  SequenceId parent_;
};

/// `least_steps`: of all ranks together; a rank without a part in the copies may have none.
void on_each_failing_rank(const std::function<int(Copying&)>& run, int least_steps) {
  std::atomic<int> steps = 0;
  for (int failing = 0; failing < kRanks; ++failing) {
    SCOPED_TRACE("rank " + std::to_string(failing));
    run_on_threads(kRanks,
                   [&](Mesh& mesh) {
                     Copying copying(mesh, failing);
                     const int mine = run(copying);
                     if (mesh.rank().value == failing) steps += mine;
                   },
                   {.threads = 1, .device = DeviceChoice::kCpu});
  }
  EXPECT_GE(steps, least_steps);
}

/// A call that copies the last page of a fork: `length` is what the fork has afterwards.
int fail_copies(Copying& copying, bool to_another_rank, std::int64_t length,
                const std::function<void(SequenceId)>& call) {
  KvCache& cache = copying.cache();
  SequenceId fork;
  std::vector<SequenceId> fillers;
  return copying.fail_each_step(
      [&] {
        fork = cache.fork(copying.parent());
        if (to_another_rank) fillers = copying.fill_last_rank();
      },
      [&] { call(fork); },
      [&](const Error*) {
        EXPECT_EQ(cache.length(fork), length);
        for (const SequenceId id : std::exchange(fillers, {})) cache.erase(id);
        copying.expect_way_back(fork, kWhole);
      },
      [&] {
        for (const SequenceId id : std::exchange(fillers, {})) cache.erase(id);
        cache.erase(fork);
      });
}

// The steps of a plan are its waits, its kernels in both groups, and the copy.
TEST(CopyFaults, APlanLeavesTheNewLengthsAndTheWholePages) {
  for (const bool to_another_rank : {false, true}) {
    on_each_failing_rank(
        [&](Copying& copying) {
          std::vector<StepPlan> plans;  // whose destructors wait, too, but throw nothing
          return fail_copies(copying, to_another_rank, kTokens + 1, [&](SequenceId fork) {
            plans.push_back(copying.cache().plan({{fork, 1, 0}}));
          });
        },
        kRanks * 3 + 2);
  }
}

TEST(CopyFaults, AReplanLeavesTheNewLengthsAndTheWholePages) {
  for (const bool to_another_rank : {false, true}) {
    on_each_failing_rank(
        [&](Copying& copying) {
          StepPlan step = copying.cache().plan({{copying.parent(), 0, 1}});
          return fail_copies(copying, to_another_rank, kTokens + 1, [&](SequenceId fork) {
            copying.cache().replan(step, {{fork, 1, 0}});
          });
        },
        2);
  }
}

// A plan that all ranks refuse has changed nothing, though the refusal comes after a step that may
// fail.
TEST(CopyFaults, ARefusedPlanChangesNothing) {
  run_on_threads(kRanks,
                 [&](Mesh& mesh) {
                   Copying copying(mesh, 0);
                   const std::uint64_t before = copying.cache().digest();
                   EXPECT_THROW(static_cast<void>(copying.cache().plan({{copying.parent(), 1, 1}},
                                                                       {.scale = std::nanf("")})),
                                InvalidArgument);
                   EXPECT_EQ(copying.cache().digest(), before);
                   copying.cache().check_replicas();
                 },
                 {.threads = 1, .device = DeviceChoice::kCpu});
}

TEST(CopyFaults, MakeWritableLeavesTheWholePages) {
  for (const bool to_another_rank : {false, true}) {
    on_each_failing_rank(
        [&](Copying& copying) {
          return fail_copies(copying, to_another_rank, kTokens, [&](SequenceId fork) {
            copying.cache().make_writable(fork, kWhole, kTokens);
          });
        },
        2);
  }
}

TEST(CopyFaults, CompactLeavesTheNewLengthsAndThePagesBefore) {
  constexpr std::int64_t kBegin = 13;
  on_each_failing_rank(
      [&](Copying& copying) {
        KvCache& cache = copying.cache();
        SequenceId fork;
        return copying.fail_each_step(
            [&] { fork = cache.fork(copying.parent()); },
            [&] {
              cache.compact(std::vector<KeptTokens>{{fork, kBegin, {15, 18, 19, 21}}});
            },
            [&](const Error*) {
              EXPECT_EQ(cache.length(fork), kBegin + 4);
              copying.expect_way_back(fork, kBegin / kPage * kPage);
            },
            [&] { cache.erase(fork); });
      },
      2);
}

void expect_injected(const Error* error) {
  ASSERT_NE(error, nullptr) << "all ranks throw";
  EXPECT_STREQ(error->what(), "injected");
}

TEST(CopyFaults, AnExportEndsOnAllRanks) {
  on_each_failing_rank(
      [&](Copying& copying) {
        Stream made;
        return copying.fail_each_step([] {}, [&] { made = copying.stream_of(copying.parent()); },
                                      [](const Error* error) { expect_injected(error); }, [] {});
      },
      2);
}

TEST(CopyFaults, AnImportLeavesNothingBehind) {
  const Stream stream = exported(
      {},
      [] {
        CacheOptions options = copied_groups();
        options.pages_per_rank = 40;
        return options;
      }(),
      30);
  on_each_failing_rank(
      [&](Copying& copying) {
        KvCache& cache = copying.cache();
        const std::int64_t free = cache.allocator().free_pages();
        std::optional<SequenceId> imported;
        return copying.fail_each_step(
            [&] { imported.reset(); },
            [&] {
              MemorySource source(stream);
              imported = cache.import_sequence(cache.mesh().rank().value == 0 ? &source : nullptr)
                             .sequence;
            },
            [&](const Error* error) {
              expect_injected(error);
              EXPECT_EQ(cache.allocator().sequences(), 1);
              EXPECT_EQ(cache.allocator().free_pages(), free);
            },
            [&] {
              if (imported) cache.erase(*imported);
            });
      },
      2);
}

}  // namespace
}  // namespace kvmesh::test
