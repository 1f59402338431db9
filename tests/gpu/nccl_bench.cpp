// How long a combine takes on GPUs, by strategy: run under mpirun, one process a GPU.
//   mpirun -np 2 nccl_bench [heads] [dim]
// Counts one combine, scattered by heads or to all, bfloat16 output, merged LSE, every rank taking
// part in every row. A graph of 20 combines is replayed 60 times after a warm-up; the number is the
// median of a replay over 20, of the slowest rank. Bytes: what a rank sends, in all-to-all.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "tests/gpu/device_combine_run.hpp"

namespace kvmesh::test {
namespace {

constexpr int kCombinesPerGraph = 20;
constexpr int kReplays = 60;

class Event {
 public:
  Event() { check(cudaEventCreate(&event_)); }
  ~Event() { static_cast<void>(cudaEventDestroy(event_)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(cudaStream_t stream) const { check(cudaEventRecord(event_, stream)); }
  float milliseconds_since(const Event& earlier) const {
    float result = 0;
    check(cudaEventElapsedTime(&result, earlier.event_, event_));
    return result;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Microseconds of one combine.
double measure(Communicator& comm, NcclGroup& group, CombineCase& test, CombineStrategy strategy) {
  const OwnStream stream;
  const DeviceCase on_device(test, comm.rank().value, Dtype::kBFloat16);
  DeviceCombiner combiner(group);
  combiner.plan(test.tokens, test.heads, test.dim, options_of(test, strategy), stream.view());
  combiner.run(on_device.partial(), on_device.output(), stream.view());
  group.wait(stream.view(), "warm-up");
  const Graph graph(stream.get(), [&] {
    for (int i = 0; i < kCombinesPerGraph; ++i) {
      combiner.run(on_device.partial(), on_device.output(), stream.view());
    }
  });
  const Event begin;
  const Event end;
  std::vector<double> times;
  for (int replay = -5; replay < kReplays; ++replay) {
    begin.record(stream.get());
    graph.launch(stream.get());
    end.record(stream.get());
    group.wait(stream.view(), "replay");
    if (replay >= 0) times.push_back(1000.0 * end.milliseconds_since(begin) / kCombinesPerGraph);
  }
  std::nth_element(times.begin(), times.begin() + kReplays / 2, times.end());
  double slowest = times[kReplays / 2];
  all_reduce_max(comm, std::span(&slowest, 1));
  return slowest;
}

void sweep(Communicator& comm, NcclGroup& group, Scatter scatter, std::int64_t heads,
           std::int64_t dim) {
  const bool prints = comm.rank().value == 0;
  if (prints) {
    std::printf(
        "%d GPUs, NCCL %s, scatter %s, %ld heads, dim %ld: us a combine\n%8s %10s %12s %16s %12s\n",
        comm.size(), nccl_version().c_str(), std::string(name(scatter)).c_str(),
        static_cast<long>(heads), static_cast<long>(dim), "rows", "KiB sent", "all_to_all",
        "reduce_scatter", "all_reduce");
  }
  for (std::int64_t rows = heads; rows <= 16384; rows *= rows < 512 ? 4 : 2) {
    CombineCase test = full_case(comm.size(), rows / heads, heads, dim, scatter);
    const double a = measure(comm, group, test, CombineStrategy::kAllToAll);
    const double b = measure(comm, group, test, CombineStrategy::kReduceScatter);
    const double c = measure(comm, group, test, CombineStrategy::kAllReduce);
    const int owners = scatter == Scatter::kAll ? 1 : comm.size();
    const double sent = static_cast<double>(rows * (dim + 1) * 4) * (comm.size() - 1) / owners;
    if (prints) {
      std::printf("%8ld %10.1f %12.2f %16.2f %12.2f\n", static_cast<long>(rows), sent / 1024, a, b,
                  c);
      std::fflush(stdout);
    }
  }
}

int run(int argc, char** argv) {
  MpiSession session(argc, argv);
  const std::unique_ptr<Communicator> comm = make_mpi_communicator();
  check(cudaSetDevice(comm->rank().value));
  NcclGroup group(*comm, comm->rank().value);
  for (Scatter scatter : {Scatter::kHeads, Scatter::kAll}) {
    sweep(*comm, group, scatter, argc > 1 ? std::atol(argv[1]) : 8,
          argc > 2 ? std::atol(argv[2]) : 128);
  }
  group.close();
  return 0;
}

}  // namespace
}  // namespace kvmesh::test

int main(int argc, char** argv) {
  try {
    return kvmesh::test::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
