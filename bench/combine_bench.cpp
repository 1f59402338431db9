// Measures the combine to all over MPI, beside two plain all-reduces of the same number of floats:
// the maximum of the LSEs and the sum of the rows. That is the least that a merge by all-reduce
// sends.
//
//   mpirun -np 2 combine_bench [tokens ...]        each token has 32 heads of dim 128
//
// Turn by turn in one run; microseconds of the slowest rank, median (p10 - p90), and the median of
// the turns' ratios. `fresh`: the ranks write their rows anew before each call, inside the time, as
// attention does. Writing memory that a peer has read costs more, so both numbers are shown.
#include <mpi.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "kvmesh/combine.hpp"
#include "kvmesh/communicator.hpp"

namespace {

using namespace kvmesh;

constexpr std::int64_t kHeads = 32, kDim = 128;
constexpr int kTurns = 101, kCalls = 5;

double at(std::vector<double> values, double quantile) {
  std::ranges::sort(values);
  return values[static_cast<std::size_t>(quantile * static_cast<double>(values.size() - 1))];
}

/// Microseconds per call of the slowest rank.
double time_of(const std::function<void()>& call) {
  MPI_Barrier(MPI_COMM_WORLD);
  const double start = MPI_Wtime();
  for (int i = 0; i < kCalls; ++i) call();
  double micros = (MPI_Wtime() - start) / kCalls * 1e6;
  MPI_Allreduce(MPI_IN_PLACE, &micros, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return micros;
}

/// Combines rows, and reduces the same number of floats.
class Rows {
 public:
  Rows(Communicator& comm, std::int64_t tokens)
      : tokens_(tokens),
        combiner_(comm),
        o_(static_cast<std::size_t>(tokens * kHeads * kDim), 0.5f),
        lse_(static_cast<std::size_t>(tokens * kHeads), 1.0f),
        merged_o_(o_.size()),
        merged_lse_(lse_.size()),
        all_(o_.size() + lse_.size(), 0.5f),
        summed_(all_.size()) {}

  void write() { write(o_); }
  void write_all() { write(all_); }
  void combine() {
    combiner_({tensor(o_.data(), {tokens_, kHeads, kDim}), tensor(lse_.data(), {tokens_, kHeads})},
              {.scatter = Scatter::kAll},
              {tensor(merged_o_.data(), {tokens_, kHeads, kDim}),
               tensor(merged_lse_.data(), {tokens_, kHeads})});
  }
  void all_reduce() {
    MPI_Allreduce(lse_.data(), merged_lse_.data(), static_cast<int>(lse_.size()), MPI_FLOAT,
                  MPI_MAX, MPI_COMM_WORLD);
    MPI_Allreduce(all_.data(), summed_.data(), static_cast<int>(all_.size()), MPI_FLOAT, MPI_SUM,
                  MPI_COMM_WORLD);
  }

 private:
  static void write(std::vector<float>& rows) {
    for (float& value : rows) value = 1.0f - value;
  }

  std::int64_t tokens_;
  Combiner combiner_;
  std::vector<float> o_, lse_, merged_o_, merged_lse_, all_, summed_;
};

void measure(Communicator& comm, std::int64_t tokens, bool fresh) {
  Rows rows(comm, tokens);
  std::array<std::vector<double>, 3> times;
  for (int turn = -3; turn < kTurns; ++turn) {
    const double combined = time_of([&] {
      if (fresh) rows.write();
      rows.combine();
    });
    const double reduced = time_of([&] {
      if (fresh) rows.write_all();
      rows.all_reduce();
    });
    if (turn < 0) continue;
    times[0].push_back(combined);
    times[1].push_back(reduced);
    times[2].push_back(combined / reduced);
  }
  if (comm.rank().value != 0) return;
  std::printf("%6lld %s", static_cast<long long>(tokens), fresh ? "fresh" : "     ");
  for (const auto& values : times) {
    std::printf("  %8.2f (%.2f - %.2f)", at(values, 0.5), at(values, 0.1), at(values, 0.9));
  }
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  const MpiSession session(argc, argv);
  const auto comm = make_mpi_communicator();
  if (comm->rank().value == 0) {
    std::printf(
        "%d ranks, 32 heads, dim 128; us\ntokens    combine to all    two all-reduces    ratio\n",
        comm->size());
  }
  std::vector<std::int64_t> tokens{1, 4, 16, 64, 256};
  if (argc > 1) tokens.clear();
  for (int i = 1; i < argc; ++i) tokens.push_back(std::atoll(argv[i]));
  for (const std::int64_t n : tokens) {
    measure(*comm, n, false);
    measure(*comm, n, true);
  }
}
