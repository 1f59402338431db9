// The order of a layer's checks and kernels, with kernels that only keep a record.
#include "runtime/step/step_run.hpp"

#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "tests/runtime/cache/cache_fixture.hpp"
#include "tests/runtime/cache/cache_inside.hpp"
#include "tests/support/owned_tensor.hpp"

namespace kvmesh::test {
namespace {

using Calls = std::vector<std::string>;

struct Record {
  Calls calls;          // of functions that write
  std::string refuses;  // the name of a check
};

class RecordingStep : public StepKernels {
 public:
  explicit RecordingStep(Record& record) : record_(record) {}

  void check(std::span<const SequenceSize>) const override {}
  void plan(const StepBatch&, Stream) override {}
  void check_append(const KvPool&) const override { refuse_if("append"); }
  void check_attend_partial(const AttendInput&, const KvPool&) const override {
    refuse_if("attend_partial");
  }
  void check_combine(const Partial&, const CombineOutput&) const override { refuse_if("combine"); }
  void check_attend(const AttendInput&, const KvPool&, const Partial&,
                    const CombineOutput&) const override {
    refuse_if("attend");
  }
  void set_layer(int layer) override { record_.calls.push_back("layer " + std::to_string(layer)); }
  void append(const KvPool&, const ConstTensorView&, const ConstTensorView&, Stream) override {
    record_.calls.push_back("append");
  }
  void attend_partial(const AttendInput&, const KvPool&, const Partial&, Stream) override {
    record_.calls.push_back("attend_partial");
  }
  void combine(const Partial&, const CombineOutput&, Stream) override {
    record_.calls.push_back("combine");
  }
  void gather_queries(const QueryShares&, Stream) override {
    record_.calls.push_back("gather_queries");
  }
  bool needs_partial() const override { return false; }
  void attend(const AttendInput&, const KvPool&, const Partial&, const CombineOutput&,
              Stream) override {
    record_.calls.push_back("attend");
  }
  TileCounts tiles() const override { return {}; }
  std::int64_t workspace_bytes() const override { return 0; }
  std::int64_t host_bytes() const override { return 0; }
  std::uint64_t generation() const override { return 0; }

 private:
  void refuse_if(const std::string& name) const {
    if (record_.refuses == name) throw InvalidArgument("a check of the device: " + name);
  }

  Record& record_;
};

class RecordingBackend : public Backend {
 public:
  explicit RecordingBackend(Record& record) : record_(record) {}

  std::unique_ptr<StepKernels> make_step(const StepOptions&, std::span<const BatchEntry>) override {
    return std::make_unique<RecordingStep>(record_);
  }
  BlockMask make_block_mask(const MaskMod& mask, const BlockMaskShape& shape) override {
    return BlockMask::create(mask, shape);
  }
  void wait_idle() override {}
  void wait(Stream) override {}
  void write(const KvPool&, const ConstTensorView&, const ConstTensorView&,
             std::span<const TokenSlot>, Stream) override {}
  void move_tokens(const TokenPlanes&, std::span<const TokenSlot>, std::span<const TokenSlot>,
                   Stream) override {}
  void pack_tokens(const TokenPlanes&, std::span<const TokenSlot>, std::byte*, Stream) override {}
  void unpack_tokens(const TokenPlanes&, std::span<const TokenSlot>, const std::byte*,
                     Stream) override {}

 private:
  Record& record_;
};

/// A layer's tensors, for a step of 3 queries and 2 new tokens.
struct Layer {
  KvPool pool;
  LayerInput input;
  CombineOutput output;
};

class StepRunOrder : public testing::Test {
 protected:
  StepRunOrder() {
    batch_.add({.sequence = SequenceId(0, 0, 0),
                .size = {.queries = 3, .length = 5, .appended = 2, .first_query = 2},
                .pages = &pages_});
    run_.plan(batch_, {});
  }

  Layer good() {
    return {.pool = {k_.view(), v_.view()},
            .input = {.q = q_.view(),
                      .k = fresh_k_.view(),
                      .v = fresh_v_.view(),
                      .sinks = sinks_.view()},
            .output = {.o = o_.view()}};
  }
  void run(const Layer& layer) { run_.run(layer.pool, layer.input, layer.output, {}); }
  void expect_refused(const Layer& layer) {
    EXPECT_THROW(run(layer), InvalidArgument);
    EXPECT_EQ(record_.calls, Calls{});
  }

  Record record_;
  Mesh mesh_{make_single_communicator(), {.threads = 1}};
  RecordingBackend backend_{record_};
  StepRun run_{mesh_,
               backend_,
               {.shape = {.q_heads = 4, .kv_heads = 2, .k_dim = 8, .v_dim = 6, .page_size = 4},
                .format = {},
                .kinds = {AttentionOptions{}}},
               {}};
  LocalSequence pages_;
  StepBatch batch_;
  OwnedTensor k_{Dtype::kFloat32, {2, 2, 4, 8}}, v_{Dtype::kFloat32, {2, 2, 4, 6}};
  OwnedTensor q_{Dtype::kFloat32, {3, 4, 8}}, sinks_{Dtype::kFloat32, {4}};
  OwnedTensor fresh_k_{Dtype::kFloat32, {2, 2, 8}}, fresh_v_{Dtype::kFloat32, {2, 2, 6}};
  OwnedTensor o_{Dtype::kFloat32, {3, 4, 6}};
};

TEST_F(StepRunOrder, AppendsBeforeItAttends) {
  run(good());
  EXPECT_EQ(record_.calls, (Calls{"append", "attend"}));
}

TEST_F(StepRunOrder, ChecksEveryTensorBeforeItAppends) {
  const auto refuse = [&](const auto& spoil) {
    Layer layer = good();
    spoil(layer);
    expect_refused(layer);
  };
  static constexpr Device kElsewhere{DeviceKind::kCuda, 0};
  refuse([](Layer& layer) { layer.input.q.shape[0] = 2; });
  refuse([](Layer& layer) { layer.input.q.device = kElsewhere; });
  refuse([](Layer& layer) { layer.input.sinks.shape[0] = 3; });
  refuse([](Layer& layer) { layer.input.sinks.device = kElsewhere; });
  refuse([](Layer& layer) { layer.input.k.shape[0] = 1; });
  refuse([](Layer& layer) { layer.input.v.shape[2] = 8; });
  refuse([](Layer& layer) { layer.input.v.device = kElsewhere; });
  refuse([](Layer& layer) { layer.output.o.device = kElsewhere; });
  refuse([](Layer& layer) {
    layer.output.lse = layer.output.o;
    layer.output.lse.device = kElsewhere;
  });
  refuse([](Layer& layer) { layer.pool.v.strides[0] = 0; });  // two pages in one place
}

TEST_F(StepRunOrder, AsksTheDeviceBeforeItAppends) {
  for (const char* check : {"append", "attend"}) {
    record_.refuses = check;
    expect_refused(good());
  }
}

TEST_F(StepRunOrder, AsksTheDeviceBeforeAPartRuns) {
  const Layer layer = good();
  OwnedTensor lse(Dtype::kFloat32, {3, 4});
  const Partial partial{o_.view(), lse.view()};
  const auto refuse = [&](const char* check, const auto& call) {
    record_.refuses = check;
    EXPECT_THROW(call(), InvalidArgument) << check;
    EXPECT_EQ(record_.calls, Calls{});
  };
  refuse("append", [&] { run_.append(layer.pool, layer.input.k, layer.input.v, {}); });
  refuse("attend_partial", [&] {
    run_.attend_partial(layer.pool, {layer.input.q, {}, 0}, partial, {});
  });
  refuse("combine", [&] { run_.combine(partial, layer.output, {}); });
}

TEST_F(StepRunOrder, ChecksTheTensorsOfAGather) {
  OwnedTensor all(Dtype::kFloat32, {3, 4, 8});
  const ConstTensorView share = q_.view();  // one rank has all heads
  const TensorView q = all.view();
  const auto refuse = [&](const auto& spoil) {
    ConstTensorView other_share = share;
    TensorView other_q = q;
    spoil(other_share);
    EXPECT_THROW(run_.gather_queries(other_share, q, {}), InvalidArgument);
    spoil(other_q);
    EXPECT_THROW(run_.gather_queries(share, other_q, {}), InvalidArgument);
    EXPECT_EQ(record_.calls, Calls{});
  };
  refuse([](auto& view) { view.shape[0] = 2; });
  refuse([](auto& view) { view.shape[1] = 3; });
  refuse([](auto& view) { view.shape[2] = 7; });
  refuse([](auto& view) { view.dims = 2; });
  refuse([](auto& view) { view.dtype = Dtype::kBFloat16; });
  refuse([](auto& view) { view.strides = {64, 16, 2}; });
  refuse([](auto& view) { view.data = nullptr; });
  refuse([](auto& view) { view.device = {DeviceKind::kCuda, 0}; });
  TensorView repeated = q;
  repeated.strides[0] = 0;  // several tokens in one place
  EXPECT_THROW(run_.gather_queries(share, repeated, {}), InvalidArgument);
  ConstTensorView other_order = q;  // in q's memory, but not where q has these heads
  for (const std::array<std::int64_t, 2>& strides :
       {std::array<std::int64_t, 2>{8, 24}, {32, 16}, {64, 8}}) {
    other_order.strides = {strides[0], strides[1], 1};
    EXPECT_THROW(run_.gather_queries(other_order, q, {}), InvalidArgument) << strides[0];
  }
  run_.gather_queries(share, q, {});
  EXPECT_EQ(record_.calls, Calls{"gather_queries"});
}

// A reduction adds in an order that depends on a row's place: a step whose rows are to have the
// same bits in any batch has none, unless the caller wants it.
TEST(StepRunOptions, AFixedSplitMergesInTheOrderOfRanks) {
  const auto strategy = [](std::int64_t fixed_split, CombineStrategy asked) {
    return combine_options({.strategy = asked, .fixed_split_tokens = fixed_split}).strategy;
  };
  EXPECT_EQ(strategy(0, CombineStrategy::kAuto), CombineStrategy::kAuto);
  EXPECT_EQ(strategy(1024, CombineStrategy::kAuto), CombineStrategy::kAllToAll);
  EXPECT_EQ(strategy(1024, CombineStrategy::kReduceScatter), CombineStrategy::kReduceScatter);
}

// The errors of waits on a device name it.
TEST(StepPlanRun, PassesItsLayerToTheKernels) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  KvCache cache(mesh, small_cache_options());
  Record record;
  inside(cache).groups[0].backend = std::make_unique<RecordingBackend>(record);
  StepPlan step = cache.plan({{cache.create(), 2}});
  OwnedTensor q(Dtype::kFloat32, {2, 4, 8}), k(Dtype::kFloat32, {2, 2, 8});
  OwnedTensor v(Dtype::kFloat32, {2, 2, 6});
  OwnedTensor o(Dtype::kFloat32, {2, 4, 6}), lse(Dtype::kFloat32, {2, 4});
  step.run(1, {.q = q.view(), .k = k.view(), .v = v.view()}, {.o = o.view()});
  EXPECT_EQ(record.calls, (Calls{"layer 1", "append", "attend"}));
  record.calls.clear();
  step.combine({o.view(), lse.view()}, {.o = o.view()}, {}, 1);
  EXPECT_EQ(record.calls, (Calls{"layer 1", "combine"}));
  record.calls.clear();
  OwnedTensor all(Dtype::kFloat32, {2, 4, 8});
  step.gather_queries(1, q.view(), all.view());
  EXPECT_EQ(record.calls, (Calls{"layer 1", "gather_queries"}));
}

}  // namespace
}  // namespace kvmesh::test
