// Times StepPlan::run of a step that is as small as can be, so that calls themselves are what takes
// time: beside it bench/python_overhead.py times the same step in Python.
//
//   run_bench cpu|cuda CALLS      for each line of its input it makes CALLS calls, and prints
//                                 microseconds per call
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "kvmesh/kvmesh.hpp"

namespace {

using namespace kvmesh;

constexpr int kDim = 8;

/// A tensor [1, 1, kDim] of zeros.
class Row {
 public:
  Row(Device device, Dtype dtype)
      : memory_(device, kDim * size_bytes(dtype)),
        view_(memory_.data(), dtype, {1, 1, kDim}, device) {
    const std::vector<std::byte> zeros(memory_.size_bytes());
    copy_bytes(memory_.data(), zeros.data(), zeros.size());
  }
  const TensorView& view() const { return view_; }

 private:
  DeviceMemory memory_;
  TensorView view_;
};

void time_turns(Mesh& mesh, int calls) {
  const Dtype dtype = mesh.device().kind == DeviceKind::kCuda ? Dtype::kBFloat16 : Dtype::kFloat32;
  KvCache cache(mesh, {.layers = 1,
                       .q_heads = 1,
                       .kv_heads = 1,
                       .k_dim = kDim,
                       .pages_per_rank = 8,
                       .dtype = dtype});
  StepPlan step = cache.plan({{cache.create(), 1}});
  const Row q(mesh.device(), dtype), k(mesh.device(), dtype), v(mesh.device(), dtype),
      o(mesh.device(), dtype);
  const auto run = [&] { step.run(0, {q.view(), k.view(), v.view()}, {.o = o.view()}); };
  run();
  for (std::string line; std::getline(std::cin, line);) {
    mesh.wait({}, "turn");
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < calls; ++i) run();
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
    std::printf("%.4f\n", took.count() / calls);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: run_bench cpu|cuda CALLS\n");
    return 2;
  }
  try {
    Mesh mesh(make_single_communicator(), {.threads = 1, .device = device_choice_from(argv[1])});
    time_turns(mesh, std::atoi(argv[2]));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "run_bench: %s\n", error.what());
    return 2;
  }
}
