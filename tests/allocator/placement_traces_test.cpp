// Measures how evenly the policies fill the ranks with requests as long as those of public traces.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <random>
#include <vector>

#include "kvmesh/allocator.hpp"
#include "launch/replay/statistics.hpp"

namespace kvmesh::test {
namespace {

constexpr int kTracePage = 16;

struct Outcome {
  double max_over_mean = 0;  ///< tokens per rank; the median over the steps
  double holders = 0;        ///< ranks that hold keys of a sequence, the mean
  double tokens = 0;         ///< of all sequences together, the mean
};

/// Serves `alive` requests at a time: a finished one makes room for the next. `is_modular`: counts
/// as if page i of every sequence were on rank i mod ranks.
class Server {
 public:
  Server(const replay::Statistics& trace, int ranks, std::size_t alive, Placement placement,
         bool is_modular)
      : trace_(trace),
        ranks_(ranks),
        alive_(alive),
        is_modular_(is_modular),
        allocator_({.ranks = ranks,
                    .pages_per_rank = 4'000'000 / ranks,
                    .page_size = kTracePage,
                    .placement = placement}) {}

  Outcome serve(int steps) {
    for (int step = 0; step < steps; ++step) {
      while (requests_.size() < alive_) admit(step == 0);
      for (Request& request : requests_) {
        allocator_.append(request.sequence, 1);
        --request.left;
      }
      if (step >= steps / 2 && step % 10 == 0) count();
      std::erase_if(requests_, [&](const Request& request) {
        if (request.left > 0) return false;
        allocator_.erase(request.sequence);
        return true;
      });
    }
    std::ranges::sort(ratios_);
    const auto counts = static_cast<double>(ratios_.size());
    return {ratios_[ratios_.size() / 2], holders_ / counts, tokens_ / counts};
  }

 private:
  struct Request {
    SequenceId sequence;
    std::int64_t left = 0;
  };

  // The first requests start in the middle of their answer.
  void admit(bool is_first) {
    Request request{allocator_.create(),
                    std::max<std::int64_t>(1, replay::draw(trace_.answer, random_))};
    allocator_.append(request.sequence, replay::draw(trace_.prompt, random_));
    if (is_first)
      request.left =
          1 + static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(request.left));
    requests_.push_back(request);
  }

  void count() {
    std::vector<double> on(static_cast<std::size_t>(ranks_));
    double holders = 0;
    for (const Request& request : requests_) {
      std::vector<bool> holds(on.size());
      std::int64_t left = allocator_.length(request.sequence);
      std::size_t logical = 0;
      for (const PageId page : allocator_.pages(request.sequence)) {
        const auto rank =
            is_modular_ ? logical % on.size() : static_cast<std::size_t>(page.rank().value);
        on[rank] += static_cast<double>(std::min<std::int64_t>(kTracePage, left));
        holds[rank] = true;
        left -= kTracePage;
        ++logical;
      }
      holders += static_cast<double>(std::ranges::count(holds, true));
    }
    double sum = 0;
    for (const double tokens : on) sum += tokens;
    ratios_.push_back(std::ranges::max(on) / (sum / ranks_));
    holders_ += holders / static_cast<double>(requests_.size());
    tokens_ += sum;
  }

  const replay::Statistics& trace_;
  int ranks_;
  std::size_t alive_;
  bool is_modular_;
  PageAllocator allocator_;
  std::mt19937_64 random_{1};
  std::vector<Request> requests_;
  std::vector<double> ratios_;
  double holders_ = 0, tokens_ = 0;
};

void print(const replay::Statistics& trace, int ranks, std::size_t alive, const char* policy,
           const Outcome& outcome) {
  std::cout << trace.name << ", " << alive << " on " << ranks << " ranks, " << policy
            << ": max/mean " << outcome.max_over_mean << ", holders " << outcome.holders
            << ", tokens " << outcome.tokens << std::endl;
}

// Balanced placement keeps short sequences whole, and still fills ranks evenly where there are
// many sequences, or long ones, for each rank.
TEST(PlacementOfTraces, BalancedIsEvenAndKeepsShortSequencesWhole) {
  for (const replay::Statistics& trace : replay::kTraces) {
    for (const auto& [ranks, alive] : {std::pair{2, 64u}, {2, 256u}, {8, 64u}, {8, 256u}}) {
      const Outcome balanced = Server(trace, ranks, alive, Placement::kBalanced, false).serve(500);
      const Outcome striped = Server(trace, ranks, alive, Placement::kStriped, false).serve(500);
      const Outcome modular = Server(trace, ranks, alive, Placement::kStriped, true).serve(500);
      print(trace, ranks, alive, "balanced", balanced);
      print(trace, ranks, alive, "striped", striped);
      print(trace, ranks, alive, "modular", modular);
      const bool has_long_sequences = trace.prompt[5] > 2048;
      if (ranks == 2 || has_long_sequences) {
        EXPECT_LE(balanced.max_over_mean, 1.02) << trace.name << ", " << ranks << ", " << alive;
      } else {
        EXPECT_LE(balanced.max_over_mean, alive == 256 ? 1.04 : 1.15) << trace.name;
      }
      EXPECT_LT(balanced.holders, striped.holders);
    }
  }
}

}  // namespace
}  // namespace kvmesh::test
