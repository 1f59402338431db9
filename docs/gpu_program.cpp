// Decoding on GPUs: a step of all layers, captured once in a CUDA graph and replayed while the
// sequences grow. One rank per GPU: mpirun -np 4 ./gpu_program
#include <kvmesh/kvmesh.hpp>

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <vector>

#include "cuda_graph.hpp"

namespace {

constexpr int kLayers = 4, kHeads = 8, kKvHeads = 2, kDim = 128;
constexpr int kSequences = 8, kPrompt = 100, kSteps = 50;

/// A tensor [tokens, heads, kDim] of bfloat16 on the GPU, full of one value.
class DeviceTensor {
 public:
  DeviceTensor(kvmesh::Device device, int tokens, int heads, std::uint16_t bits)
      : memory_(device, sizeof bits * tokens * heads * kDim),
        view_(memory_.data(), kvmesh::Dtype::kBFloat16, {tokens, heads, kDim}, device) {
    const std::vector<std::uint16_t> host(memory_.size_bytes() / sizeof bits, bits);
    kvmesh::copy_bytes(memory_.data(), host.data(), memory_.size_bytes());
  }
  const kvmesh::TensorView& view() const { return view_; }

 private:
  kvmesh::DeviceMemory memory_;
  kvmesh::TensorView view_;
};

/// The tensors of a step, where a model would have its own. Here all layers use the same.
struct Tensors {
  Tensors(kvmesh::Device device, int tokens)
      : q(device, tokens, kHeads, 0x3F00),    // 0.5
        k(device, tokens, kKvHeads, 0x3F80),  // 1
        v(device, tokens, kKvHeads, 0x3E80),  // 0.25
        o(device, tokens, kHeads, 0x7FC0) {}  // NaN
  DeviceTensor q, k, v, o;
};

void run_layers(kvmesh::StepPlan& step, const Tensors& at, kvmesh::Stream stream) {
  for (int layer = 0; layer < kLayers; ++layer) {
    step.run(layer, {.q = at.q.view(), .k = at.k.view(), .v = at.v.view()}, {.o = at.o.view()},
             stream);
  }
}

void decode(kvmesh::Mesh& mesh) {
  kvmesh::KvCache cache(mesh, {.layers = kLayers,
                               .q_heads = kHeads,
                               .kv_heads = kKvHeads,
                               .k_dim = kDim,
                               .pages_per_rank = 256,
                               .placement = kvmesh::Placement::kStriped});
  const Tensors prompts(mesh.device(), kSequences * kPrompt), tokens(mesh.device(), kSequences);
  const CudaStream owner = make_stream();
  cudaStream_t stream = owner.get();

  std::vector<kvmesh::BatchEntry> prompt, token;
  for (int i = 0; i < kSequences; ++i) {
    const kvmesh::SequenceId sequence = cache.create();
    prompt.push_back({sequence, kPrompt});
    token.push_back({sequence, 1});
  }
  kvmesh::StepPlan prefill = cache.plan(prompt);
  run_layers(prefill, prompts, {stream});

  // With limits the arguments and launches of a run do not depend on the batch.
  kvmesh::StepPlan step =
      cache.plan(token, {.limits = kvmesh::StepLimits{.sequences = kSequences}});
  run_layers(step, tokens, {stream});  // once without a graph: compiles kernels, connects NCCL

  const auto run = [&] { run_layers(step, tokens, {stream}); };
  const bool has_graph = mesh.device_group().nccl() != nullptr;  // else through the host
  Graph graph(nullptr, cudaGraphExecDestroy);
  std::uint64_t captured = 0;
  for (int i = 1; i < kSteps; ++i) {
    cache.replan(step, token, {stream});  // on the stream: no wait
    if (!has_graph) {
      run();
      continue;
    }
    if (!graph || captured != step.generation()) {
      graph = capture(stream, run);
      captured = step.generation();
    }
    check(cudaGraphLaunch(graph.get(), stream));
  }
  mesh.wait({stream}, "decode");  // ends if a peer dies; cudaStreamSynchronize might not

  std::uint16_t bits = 0;
  kvmesh::copy_bytes(&bits, tokens.o.view().data, sizeof bits);
  std::printf("rank %d of %d, GPU %d: %d steps %s, %d tokens a sequence, o[0] is 0x%04X\n",
              mesh.rank().value, mesh.size(), mesh.device().index, kSteps,
              has_graph ? "in one graph" : "without a graph",
              static_cast<int>(cache.allocator().length(token[0].sequence)), bits);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    kvmesh::MpiSession mpi(argc, argv);
    kvmesh::Mesh mesh = kvmesh::Mesh::from_launcher({.device = kvmesh::DeviceChoice::kCuda});
    decode(mesh);
  } catch (const std::exception& error) {  // kvmesh::Unsupported where there is no GPU
    std::fprintf(stderr, "gpu_program: %s\n", error.what());
    return 2;
  }
}
