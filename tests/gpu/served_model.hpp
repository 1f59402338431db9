// A model of 32 layers that tests on GPUs serve: the inputs and outputs of each layer.
#pragma once

#include <vector>

#include "kvmesh/kvmesh.hpp"
#include "tests/gpu/gpu_support.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {

inline constexpr int kLayers = 32;
inline constexpr int kQHeads = 8;
inline constexpr int kKvHeads = 2;
inline constexpr int kDim = 64;
inline constexpr std::int64_t kNumbers = 8 << 20;

inline CacheOptions cache_options() {
  return {.layers = kLayers,
          .q_heads = kQHeads,
          .kv_heads = kKvHeads,
          .k_dim = kDim,
          .page_size = 16,
          .pages_per_rank = 1200,
          .dtype = Dtype::kBFloat16,
          .home_threshold_tokens = 64};
}

inline DeviceMemory device_memory(const Mesh& mesh, std::int64_t bytes) {
  return DeviceMemory(mesh.device(), static_cast<std::size_t>(bytes));
}

/// Numbers of the sizes that models have, the same on every rank.
inline DeviceMemory random_numbers(const Mesh& mesh) {
  Random random(11);
  std::vector<std::uint16_t> bits(kNumbers);
  for (std::uint16_t& number : bits) {
    number =
        static_cast<std::uint16_t>(random.integer(0x3C00, 0x4000) | random.integer(0, 1) << 15);
  }
  DeviceMemory memory = device_memory(mesh, kNumbers * 2);
  copy_bytes(memory.data(), bits.data(), bits.size() * 2);
  return memory;
}

/// Outputs of every layer.
class Outputs {
 public:
  Outputs(const Mesh& mesh, std::int64_t tokens)
      : device_(mesh.device()),
        o_(device_memory(mesh, kLayers * tokens * kQHeads * kDim * 2)),
        lse_(device_memory(mesh, kLayers * tokens * kQHeads * 4)),
        tokens_(tokens) {}

  CombineOutput layer(int layer, std::int64_t tokens) const {
    return {.o = {static_cast<char*>(o_.data()) + layer * tokens_ * kQHeads * kDim * 2,
                  Dtype::kBFloat16,
                  {tokens, kQHeads, kDim},
                  device_},
            .lse = {static_cast<char*>(lse_.data()) + layer * tokens_ * kQHeads * 4,
                    Dtype::kFloat32,
                    {tokens, kQHeads},
                    device_}};
  }
  /// The bits of the first tokens of a layer.
  std::vector<std::byte> bits(int layer_number, std::int64_t tokens) const {
    const CombineOutput output = layer(layer_number, tokens);
    const auto o_bytes = static_cast<std::size_t>(tokens * kQHeads * kDim * 2);
    const auto lse_bytes = static_cast<std::size_t>(tokens * kQHeads * 4);
    std::vector<std::byte> bits(o_bytes + lse_bytes);
    copy_bytes(bits.data(), output.o.data, o_bytes);
    copy_bytes(bits.data() + o_bytes, output.lse.data, lse_bytes);
    return bits;
  }

 private:
  Device device_;
  DeviceMemory o_, lse_;
  std::int64_t tokens_;
};

/// New rows of every layer, at the same addresses for all steps.
class Inputs {
 public:
  Inputs(const Mesh& mesh, std::int64_t tokens)
      : device_(mesh.device()),
        tokens_(tokens),
        rows_(device_memory(mesh, kLayers * layer_bytes())) {}

  /// Other numbers, from `numbers` on.
  void change(const DeviceMemory& numbers, std::int64_t first) {
    const std::size_t bytes = static_cast<std::size_t>(kLayers * layer_bytes());
    copy_bytes(rows_.data(), static_cast<const char*>(numbers.data()) + first * 2, bytes);
  }
  LayerInput layer(int layer, std::int64_t tokens) const {
    char* at = static_cast<char*>(rows_.data()) + layer * layer_bytes();
    const auto rows = [&](std::int64_t heads) {
      const ConstTensorView view(at, Dtype::kBFloat16, {tokens, heads, kDim}, device_);
      at += tokens_ * heads * kDim * 2;
      return view;
    };
    const ConstTensorView q = rows(kQHeads), k = rows(kKvHeads);
    return {.q = q, .k = k, .v = rows(kKvHeads)};
  }
  /// A layer's queries alone.
  TensorView queries(int layer, std::int64_t tokens) const {
    return {static_cast<char*>(rows_.data()) + layer * layer_bytes(),
            Dtype::kBFloat16,
            {tokens, kQHeads, kDim},
            device_};
  }

 private:
  std::int64_t layer_bytes() const { return tokens_ * (kQHeads + 2 * kKvHeads) * kDim * 2; }

  Device device_;
  std::int64_t tokens_;
  DeviceMemory rows_;
};

/// A cache and the sequences in it.
struct Served {
  KvCache cache;
  std::vector<SequenceId> living{};
  /// [kLayers, kQHeads] float32; empty: none.
  ConstTensorView sinks{};

  void run(StepPlan& step, const Inputs& inputs, const Outputs& outputs, cudaStream_t stream) {
    for (int layer = 0; layer < kLayers; ++layer) {
      LayerInput input = inputs.layer(layer, step.append_tokens());
      input.sinks = sinks_of(layer);
      step.run(layer, input, outputs.layer(layer, step.query_tokens()), {stream});
    }
  }

  /// The same, but this rank knows the queries of `heads` alone, and gathers those of all heads
  /// into `gathered`.
  void gather_and_run(StepPlan& step, IndexRange heads, const Inputs& inputs,
                      const Inputs& gathered, const Outputs& outputs, cudaStream_t stream) {
    const std::int64_t tokens = step.query_tokens();
    for (int layer = 0; layer < kLayers; ++layer) {
      LayerInput input = inputs.layer(layer, tokens);
      ConstTensorView share = input.q;
      share.data = static_cast<const char*>(share.data) + heads.begin * kDim * 2;
      share.shape[1] = heads.size();
      const TensorView q = gathered.queries(layer, tokens);
      step.gather_queries(layer, share, q, {stream});
      input.q = q;
      input.sinks = sinks_of(layer);
      step.run(layer, input, outputs.layer(layer, tokens), {stream});
    }
  }

 private:
  ConstTensorView sinks_of(int layer) const {
    if (sinks.empty()) return {};
    const auto* of_layer = static_cast<const float*>(sinks.data) + layer * kQHeads;
    return {of_layer, Dtype::kFloat32, {kQHeads}, sinks.device};
  }
};

}  // namespace kvmesh::test
