// What an exchange and a combine take, over MPI under mpirun, else over loopback threads:
//
//   mpirun --oversubscribe -np 4 combine_bench
//   combine_bench [RANKS]
//
// Times are of one call, the slowest rank's mean over a batch, the best and the median of the
// batches: all ranks call together without a pause, as the layers of a model do. The share of the
// ceiling compares the bytes that a rank receives with plain copies of as many bytes by all ranks
// at once in the same run.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "kvmesh/combine.hpp"

namespace {

using kvmesh::Communicator;

constexpr int kBatches = 9;
constexpr auto kBatchTime = std::chrono::milliseconds(20);

struct Micros {
  double best = 0;
  double median = 0;
};

double seconds_of(Communicator& comm, int calls, const std::function<void()>& call) {
  barrier(comm);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < calls; ++i) call();
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  all_reduce_max(comm, std::span(&seconds, 1));
  return seconds;
}

Micros time_of(Communicator& comm, const std::function<void()>& call) {
  const double warm_up = seconds_of(comm, 3, call) / 3;
  const double batch = std::chrono::duration<double>(kBatchTime).count();
  const int calls = std::clamp(static_cast<int>(batch / warm_up), 1, 2000);
  std::vector<double> micros;
  for (int i = 0; i < kBatches; ++i) micros.push_back(seconds_of(comm, calls, call) / calls * 1e6);
  std::sort(micros.begin(), micros.end());
  return {micros.front(), micros[micros.size() / 2]};
}

void print(Communicator& comm, const std::string& text) {
  if (comm.rank().value == 0) std::fputs(text.c_str(), stdout);
}

void bench_all_gather(Communicator& comm) {
  print(comm, "\nall_gather: bytes each rank gives; us best / median; share of the copy ceiling\n");
  for (std::size_t bytes : {64u, 2048u, 16384u, 262144u, 4194304u}) {
    const std::vector<std::byte> mine(bytes);
    std::vector<std::byte> all(bytes * static_cast<std::size_t>(comm.size()));
    const Micros copy = time_of(comm, [&] {
      for (std::size_t r = 0; r + 1 < static_cast<std::size_t>(comm.size()); ++r) {
        std::memcpy(all.data() + r * bytes, mine.data(), bytes);
      }
    });
    const Micros gather = time_of(comm, [&] { all_gather(comm, mine, all); });
    print(comm, fmt::format("  {:>8}  {:>9.1f} / {:>9.1f}  {:>4.0f} %\n", bytes, gather.best,
                            gather.median, 100 * copy.best / gather.best));
  }
}

void bench_combine(Communicator& comm, std::int64_t tokens, std::int64_t heads, std::int64_t dim) {
  std::vector<float> o(static_cast<std::size_t>(tokens * heads * dim), 1.0f);
  std::vector<float> lse(static_cast<std::size_t>(tokens * heads), 1.0f);
  std::vector<float> merged(o.size());
  const kvmesh::Partial mine{kvmesh::tensor(o.data(), {tokens, heads, dim}),
                             kvmesh::tensor(lse.data(), {tokens, heads})};
  kvmesh::Combiner combiner(comm);
  for (const auto scatter :
       {kvmesh::Scatter::kHeads, kvmesh::Scatter::kTokens, kvmesh::Scatter::kAll}) {
    const int me = comm.rank().value;
    const auto share = [&](kvmesh::Scatter axis, std::int64_t count) {
      return scatter == axis ? kvmesh::share_of(count, me, comm.size()).size() : count;
    };
    const kvmesh::CombineOutput output{
        kvmesh::tensor(merged.data(), {share(kvmesh::Scatter::kTokens, tokens),
                                       share(kvmesh::Scatter::kHeads, heads), dim}),
        {}};
    std::string line = fmt::format("  {:>6} {:>5} {:>4}  {:<6}", tokens, heads, dim, name(scatter));
    for (const auto strategy :
         {kvmesh::CombineStrategy::kAllToAll, kvmesh::CombineStrategy::kReduceScatter}) {
      const Micros micros = time_of(
          comm, [&] { combiner(mine, {.scatter = scatter, .strategy = strategy}, output); });
      line += fmt::format("  {:>9.1f} / {:>9.1f}", micros.best, micros.median);
    }
    print(comm, line + "\n");
  }
}

void bench(Communicator& comm) {
  print(comm, fmt::format("{} ranks over {}\n", comm.size(), comm.kind()));
  bench_all_gather(comm);
  print(comm,
        "\ncombine: tokens heads dim scatter; us best / median of all_to_all, reduce_scatter\n");
  for (std::int64_t tokens : {1, 4, 16, 64, 512}) bench_combine(comm, tokens, 9, 64);
  for (std::int64_t tokens : {1, 16}) bench_combine(comm, tokens, 32, 128);
}

}  // namespace

int main(int argc, char** argv) {
  if (kvmesh::MpiSession::launched_by_mpirun()) {
    kvmesh::MpiSession session(argc, argv);
    bench(*kvmesh::make_mpi_communicator());
  } else {
    kvmesh::run_loopback(argc > 1 ? std::atoi(argv[1]) : 4, bench);
  }
}
