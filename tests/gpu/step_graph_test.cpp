// A decode step of many layers, captured once in a CUDA graph, replayed for a thousand steps while
// sequences grow, fork, are cut short, come and go; beside it the same steps, planned and run one
// by one. Every bit is the same.
#include "tests/gpu/captured.hpp"
#include "tests/gpu/drafting.hpp"
#include "tests/gpu/replays.hpp"
#include "tests/support/kept_meshes.hpp"

namespace kvmesh::test {
namespace {

TEST(StepGraph, ThousandReplaysEqualEagerSteps) {
  Mesh& mesh = *kept_meshes.get({.device = DeviceChoice::kCuda});
  if (!is_captured(mesh)) GTEST_SKIP() << "ranks share a GPU: no capture";
  expect_replays_like_eager_steps(mesh, mesh, cache_options(), steps_or(1000));
}

// Gathers, appends, kernels of attention that send rows, and combines take turns on the windows.
TEST(StepGraph, GathersTheQueriesOfEachBatch) {
  Mesh& mesh = *kept_meshes.get({.device = DeviceChoice::kCuda});
  if (!is_captured(mesh)) GTEST_SKIP() << "ranks share a GPU: no capture";
  expect_replays_like_eager_steps(mesh, mesh, cache_options(), steps_or(200), {.gathers = true});
}

// The shape of gpt-oss, and a group of another format. Windows give up pages between replays, and
// keep enough to be on several ranks.
TEST(StepGraph, ServesGroupsOfLayersWithKindsAndSinks) {
  Mesh& mesh = *kept_meshes.get({.device = DeviceChoice::kCuda});
  if (!is_captured(mesh)) GTEST_SKIP() << "ranks share a GPU: no capture";
  CacheOptions options = cache_options();
  LayerGroup windows{.layers = {}, .window = 100, .page_share = 0.5};
  for (int layer = 0; layer < kLayers; layer += 2) windows.layers.push_back(layer);
  options.groups = {windows, {.layers = {9}, .dtype = Dtype::kFloat8E4M3}};
  const std::vector<LayerKind> kinds{
      {.layers = {5, 6}, .mask = mods::sliding_window(37), .score = mods::soft_cap(30)}};
  expect_replays_like_eager_steps(mesh, mesh, options, steps_or(300),
                                  {.kinds = kinds, .sinks = true});
}

// Draft, verify, accept, with trees whose shapes change between replays. Pages are shared with a
// fork, and what is accepted moves over pages and ranks.
TEST(StepGraph, VerifiesDraftTreesAndKeepsTheAcceptedPaths) {
  Mesh& mesh = *kept_meshes.get({.device = DeviceChoice::kCuda});
  if (!is_captured(mesh)) GTEST_SKIP() << "ranks share a GPU: no capture";
  Drafting drafting(mesh);
  for (int turn = 0; turn < 30; ++turn) drafting.step(turn % 3 == 2);
  for (const std::string& message : drafting.findings().messages()) ADD_FAILURE() << message;
  EXPECT_GT(drafting.findings().rows(), 30 * kQHeads);
}

// A run may send rows to their owners from the kernels of attention; its parts have a partial in
// between. The arithmetic is the same.
TEST(StepGraph, ARunGivesTheBitsOfItsParts) {
  Mesh& mesh = *kept_meshes.get({.device = DeviceChoice::kCuda});
  const DeviceMemory numbers = random_numbers(mesh);
  const Stream stream;
  Inputs prompt(mesh, 300);
  prompt.change(numbers, 3);
  const Outputs scratch(mesh, 300);
  Served served{KvCache(mesh, cache_options())};
  const std::vector<BatchEntry> batch =
      batch_of(served, {3, 20, 61, 130, 290, 7}, prompt, scratch, stream);
  std::int64_t tokens = 0;
  for (const BatchEntry& entry : batch) tokens += entry.append_tokens;
  const DeviceMemory o = device_memory(mesh, tokens * kQHeads * kDim * 4);
  const DeviceMemory lse = device_memory(mesh, tokens * kQHeads * 4);
  const Partial partial{{o.data(), Dtype::kFloat32, {tokens, kQHeads, kDim}, mesh.device()},
                        {lse.data(), Dtype::kFloat32, {tokens, kQHeads}, mesh.device()}};
  for (const Scatter scatter :
       {Scatter::kHeads, Scatter::kTokens, Scatter::kAll, Scatter::kOwner}) {
    for (const Dtype travels_as : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16}) {
      StepPlan step = served.cache.plan(batch, {.scatter = scatter, .travels_as = travels_as});
      const IndexRange n = step.tokens_of_output(), h = step.heads_of_output();
      const Outputs whole(mesh, tokens), parts(mesh, tokens);
      const auto output = [&](const Outputs& of) {
        CombineOutput to = of.layer(0, tokens);
        to.o = {to.o.data, to.o.dtype, {n.size(), h.size(), kDim}, mesh.device()};
        to.lse = {to.lse.data, to.lse.dtype, {n.size(), h.size()}, mesh.device()};
        return to;
      };
      const std::vector<std::byte> nans(whole.bits(0, tokens).size(), std::byte{0xFF});
      for (const Outputs* of : {&whole, &parts}) {
        const CombineOutput to = output(*of);
        const auto o_bytes = static_cast<std::size_t>(tokens * kQHeads * kDim * 2);
        copy_bytes(to.o.data, nans.data(), o_bytes);
        copy_bytes(to.lse.data, nans.data(), nans.size() - o_bytes);
      }
      step.run(0, prompt.layer(0, tokens), output(whole), {stream});
      step.attend_partial(0, prompt.layer(0, tokens).q, partial, {stream});
      step.combine(partial, output(parts), {stream});
      mesh.wait({stream}, "test");
      EXPECT_EQ(whole.bits(0, tokens), parts.bits(0, tokens))
          << name(scatter) << " as " << name(travels_as);
    }
  }
}

// Attention stores rows in the messages, where a run with limits sends all of them.
TEST(StepGraph, OverNcclARunPacksNothing) {
  Mesh& mesh = *kept_meshes.get({.device = DeviceChoice::kCuda});
  if (mesh.kv_parallel() == 1 || mesh.device_group().nccl() == nullptr) {
    GTEST_SKIP() << "no messages over NCCL";
  }
  KvCache cache(mesh, cache_options());
  const Stream stream;
  const DeviceMemory numbers = random_numbers(mesh);
  Inputs inputs(mesh, kSequences);
  inputs.change(numbers, 3);
  const DeviceMemory o = device_memory(mesh, kSequences * kQHeads * kDim * 4);
  const DeviceMemory lse = device_memory(mesh, kSequences * kQHeads * 4);
  const Partial partial{{o.data(), Dtype::kFloat32, {kSequences, kQHeads, kDim}, mesh.device()},
                        {lse.data(), Dtype::kFloat32, {kSequences, kQHeads}, mesh.device()}};
  const std::vector<BatchEntry> batch{{cache.create(), 1}, {cache.create(), 1}};
  for (const Scatter scatter : {Scatter::kHeads, Scatter::kTokens, Scatter::kAll}) {
    SCOPED_TRACE(name(scatter));
    StepPlan step =
        cache.plan(batch, {.scatter = scatter,
                           .way = WayKind::kNccl,
                           .limits = StepLimits{.sequences = kSequences, .query_tokens = 1}});
    const Outputs out(mesh, kSequences);
    CombineOutput to = out.layer(0, kSequences);
    const std::int64_t n = step.tokens_of_output().size(), h = step.heads_of_output().size();
    to.o = {to.o.data, to.o.dtype, {n, h, kDim}, mesh.device()};
    to.lse = {to.lse.data, to.lse.dtype, {n, h}, mesh.device()};
    const LayerInput input = inputs.layer(0, kSequences);
    const auto whole = [&] { step.run(0, input, to, {stream}); };
    const auto parts = [&] {
      step.append(0, input.k, input.v, {stream});
      step.attend_partial(0, input.q, partial, {stream});
      step.combine(partial, to, {stream});
    };
    whole();
    parts();
    mesh.wait({stream}, "test");
    EXPECT_EQ(Graph(stream, whole).kernels() + 1, Graph(stream, parts).kernels());
  }
}

// A graph's messages over NCCL are the same for all batches, so all ranks get the rows.
TEST(StepGraph, OverNcclTheOwnersOfEachBatchHaveItsRows) {
  Mesh& mesh = *kept_meshes.get({.device = DeviceChoice::kCuda});
  if (mesh.kv_parallel() == 1 || mesh.device_group().nccl() == nullptr) {
    GTEST_SKIP() << "no messages over NCCL";
  }
  const DeviceMemory numbers = random_numbers(mesh);
  const Stream stream;
  Inputs inputs(mesh, 300);
  inputs.change(numbers, 3);
  const Outputs scratch(mesh, 300);
  Served served{KvCache(mesh, cache_options())};
  std::vector<BatchEntry> batch = batch_of(served, {30, 5, 200, 17, 50}, inputs, scratch, stream);
  std::int64_t tokens = 0;
  for (BatchEntry& entry : batch) {
    entry = {.sequence = entry.sequence, .append_tokens = 0, .query_tokens = 1};
    ++tokens;
  }
  const PlanOptions to_all{
      .scatter = Scatter::kAll, .strategy = CombineStrategy::kAllToAll, .way = WayKind::kNccl};
  const StepLimits limits{.sequences = tokens, .query_tokens = 1};
  StepPlan step = served.cache.plan(
      batch, {.scatter = Scatter::kOwner, .way = WayKind::kNccl, .limits = limits});
  const LayerInput room = inputs.layer(0, tokens);  // of as many tokens as the limits allow
  LayerInput input = room;
  input.k = input.v = {};
  const Outputs own(mesh, tokens), all(mesh, tokens);
  const auto run = [&] { step.run(0, room, own.layer(0, tokens), {stream}); };
  run();
  const Graph graph(stream, run);
  for (int turn = 0; turn < 2; ++turn) {
    served.cache.replan(step, batch, {stream});
    graph.launch(stream);
    StepPlan eager = served.cache.plan(batch, to_all);
    eager.run(0, input, all.layer(0, tokens), {stream});
    mesh.wait({stream}, "test");
    EXPECT_EQ(own.bits(0, tokens), all.bits(0, tokens)) << "turn " << turn;
    std::ranges::reverse(batch);
  }
}

// Where each sequence is on one rank, which owns its rows, attention writes the output and there is
// no combine: a rank need not even wait for the others.
TEST(StepGraph, RowsStayWithTheRanksThatHoldTheirKeys) {
  Mesh& mesh = *kept_meshes.get({.device = DeviceChoice::kCuda});
  const DeviceMemory numbers = random_numbers(mesh);
  const Stream stream;
  Inputs prompt(mesh, 300);
  prompt.change(numbers, 3);
  const Outputs scratch(mesh, 300);
  Served served{KvCache(mesh, cache_options())};
  const std::vector<BatchEntry> batch =
      batch_of(served, {30, 5, 41, 17, 50, 9, 33}, prompt, scratch, stream);
  std::int64_t tokens = 0;
  for (const BatchEntry& entry : batch) tokens += entry.append_tokens;
  const Outputs all(mesh, tokens), own(mesh, tokens);
  StepPlan to_all = served.cache.plan(batch, {.scatter = Scatter::kAll});
  to_all.run(0, prompt.layer(0, tokens), all.layer(0, tokens), {stream});
  mesh.wait({stream}, "test");
  std::vector<BatchEntry> again = batch;  // the same queries of the same keys
  for (BatchEntry& entry : again) {
    entry.query_tokens = entry.append_tokens;
    entry.append_tokens = 0;
  }
  StepPlan to_owner = served.cache.plan(again, {.scatter = Scatter::kOwner});
  const Participation& mask = to_owner.participation();
  EXPECT_TRUE(mask.is_of_owners_alone());
  barrier(mesh.world(), "test");
  const int last = mesh.kv_parallel() - 1;
  for (const bool is_last : {false, true}) {  // one after the other: no rank waits
    if ((mesh.kv_rank().value == last) == is_last) {
      LayerInput input = prompt.layer(0, tokens);
      input.k = input.v = {};
      to_owner.run(0, input, own.layer(0, tokens), {stream});
      mesh.wait({stream}, "test");
    }
    barrier(mesh.world(), "test");
  }
  std::int64_t mine = 0;
  const std::vector<std::byte> want = all.bits(0, tokens), got = own.bits(0, tokens);
  constexpr std::ptrdiff_t kRowBytes = kQHeads * kDim * 2;
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (mask.owner(t) != mesh.kv_rank()) continue;
    ++mine;
    EXPECT_TRUE(std::equal(want.begin() + t * kRowBytes, want.begin() + (t + 1) * kRowBytes,
                           got.begin() + t * kRowBytes))
        << "token " << t;
  }
  EXPECT_GT(mine, 0) << "balanced: each rank has some";
}

// No list of queries crosses a q block, so one of a block mask makes more of them.
TEST(StepGraph, HasRoomForABlockMaskOfSmallQBlocks) {
  Mesh& mesh = *kept_meshes.get({.device = DeviceChoice::kCuda});
  constexpr std::int64_t kQueries = 3, kTokens = kSequences * kQueries;
  const BlockMask mask =
      BlockMask::create([](auto, auto, auto, auto kv) { return kv / 16 % 3 != 1; },
                        {.q_len = kQueries, .kv_len = 400, .q_block = 1, .kv_block = 16});
  const DeviceMemory numbers = random_numbers(mesh);
  const Stream stream;
  Inputs prompt(mesh, 300), inputs(mesh, kTokens);
  inputs.change(numbers, 5);
  const Outputs prompt_out(mesh, 300), out(mesh, kTokens), expected(mesh, kTokens);
  for (const bool limited : {false, true}) {
    Served served{KvCache(mesh, cache_options())};
    std::vector<BatchEntry> batch;
    for (std::int64_t s = 0; s < kSequences; ++s) {
      prompt.change(numbers, s);
      const SequenceId sequence = served.cache.create();
      StepPlan prefill = served.cache.plan({{sequence, 20 + 25 * s}});
      served.run(prefill, prompt, prompt_out, stream);
      batch.push_back({sequence, kQueries});
    }
    PlanOptions options{.block_mask = &mask};
    if (limited) options.limits = StepLimits{.sequences = kSequences, .query_tokens = kQueries};
    StepPlan step = served.cache.plan({}, options);
    served.cache.replan(step, batch, {stream});
    served.run(step, inputs, limited ? out : expected, stream);
    stream.wait();
  }
  for (int layer : {0, kLayers - 1}) {
    EXPECT_EQ(out.bits(layer, kTokens), expected.bits(layer, kTokens)) << layer;
  }
}

TEST(StepGraph, RejectsCaptureThatWouldLoadKernels) {
  Mesh& mesh = *kept_meshes.get({.device = DeviceChoice::kCuda});
  if (mesh.kv_parallel() > 1) GTEST_SKIP() << "one rank shows it";
  const Stream stream;
  KvCache cache(mesh, cache_options());
  StepPlan step = cache.plan({}, {.limits = StepLimits{.sequences = 2, .query_tokens = 1}});
  const std::vector<BatchEntry> batch{{cache.create(), 1}};
  cache.replan(step, batch, {stream});
  const Inputs inputs(mesh, 4);
  const Outputs outputs(mesh, 2);
  LayerInput other = inputs.layer(0, 2);
  other.q.dtype = Dtype::kFloat16;  // planned: bfloat16
  const auto run = [&] { step.run(0, other, outputs.layer(0, 2), {stream}); };
  step.run(0, inputs.layer(0, 2), outputs.layer(0, 2), {stream});
  EXPECT_THROW(Graph(stream, run), InvalidArgument);
  run();  // loads them
  mesh.wait({stream}, "test");
  EXPECT_NO_THROW(Graph(stream, run));
}

// Work is counted in 32 bits. No rank has appended when the batch is refused.
TEST(StepGraph, RejectsTooLargeBatches) {
  Mesh& mesh = *kept_meshes.get({.device = DeviceChoice::kCuda});
  constexpr std::int64_t kTokens = 1'200'000;
  KvCache cache(mesh, {.layers = 1,
                       .q_heads = 8,
                       .kv_heads = 1,
                       .k_dim = 16,
                       .page_size = 16,
                       .pages_per_rank = kTokens / 16 + 16,
                       .dtype = Dtype::kBFloat16});
  const SequenceId sequence = cache.create();
  EXPECT_THROW(cache.plan({{sequence, kTokens}}), InvalidArgument);
  EXPECT_EQ(cache.allocator().length(sequence), 0);
  StepPlan step = cache.plan({{sequence, 1}});
  EXPECT_THROW(cache.replan(step, {{{sequence, kTokens - 1}}}), InvalidArgument);
  EXPECT_EQ(cache.allocator().length(sequence), 1);
}

// The shape of a 70B model: 64 query and 8 kv heads of 128.
TEST(StepGraph, NeedsLittleMemoryBesideThePools) {
  Mesh& mesh = *kept_meshes.get({.device = DeviceChoice::kCuda});
  constexpr std::int64_t kBatch = 256, kPages = 256 * 520;
  KvCache cache(mesh, {.layers = 1,
                       .q_heads = 64,
                       .kv_heads = 8,
                       .k_dim = 128,
                       .page_size = 16,
                       .pages_per_rank = kPages / mesh.kv_parallel(),
                       .dtype = Dtype::kBFloat16});
  std::vector<BatchEntry> batch;
  for (std::int64_t s = 0; s < kBatch; ++s) batch.push_back({cache.create(), 8190, 1});
  static_cast<void>(cache.plan(batch));
  StepPlan step = cache.plan({}, {.limits = StepLimits{.sequences = kBatch}});
  for (BatchEntry& entry : batch) entry = {entry.sequence, 1};
  for (int turn = 0; turn < 4; ++turn) cache.replan(step, batch);  // each into a new page
  mesh.wait({}, "test");
  EXPECT_GT(step.workspace_bytes(), 0);
  EXPECT_LE(step.workspace_bytes(), 64 << 20);
}

}  // namespace
}  // namespace kvmesh::test
