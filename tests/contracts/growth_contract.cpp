// The part of the contract that is about meshes that grow: no process joins a mesh, so the
// sequences go to a mesh of more processes as streams.
#include <algorithm>
#include <cmath>
#include <optional>

#include "kvmesh/sequence_stream.hpp"
#include "launch/verify/host_tensor.hpp"
#include "launch/verify/random.hpp"
#include "tests/contracts/sequences_contract.hpp"

namespace kvmesh::test {
namespace {

/// A cache whose steps draw their tensors from a seed.
class ServingMesh {
 public:
  ServingMesh(Mesh& mesh, const CacheOptions& options) : mesh_(mesh), cache_(mesh, options) {}

  KvCache& cache() { return cache_; }

  /// Appends tokens to each sequence, and returns all rows of them in all layers.
  std::vector<float> append(const std::vector<SequenceId>& sequences, std::int64_t tokens,
                            std::uint64_t seed) {
    verify::Random random(seed);
    std::vector<BatchEntry> batch;
    for (const SequenceId sequence : sequences) batch.push_back({sequence, tokens});
    StepPlan plan = cache_.plan(batch, {.scatter = Scatter::kAll});
    std::vector<float> rows;
    for (int layer = 0; layer < cache_.options().layers; ++layer)
      run(plan, layer, std::ssize(sequences) * tokens, random, rows);
    return rows;
  }
  std::vector<std::byte> exported(SequenceId sequence) {
    MemorySink sink;
    cache_.export_sequence(sequence, mesh_.rank().value == 0 ? &sink : nullptr);
    return {sink.bytes().begin(), sink.bytes().end()};
  }
  SequenceId imported(const std::vector<std::byte>& stream) {
    MemorySource source(stream);
    return cache_.import_sequence(mesh_.rank().value == 0 ? &source : nullptr).sequence;
  }
  void check() {
    cache_.check_replicas();
    for (int group = 0; group < cache_.groups(); ++group)
      cache_.allocator(group).verify_integrity();
  }

 private:
  void run(StepPlan& plan, int layer, std::int64_t tokens, verify::Random& random,
           std::vector<float>& rows) {
    const CacheOptions o = cache_.group_options(cache_.group_of(layer));
    const Device device = mesh_.device();
    const auto drawn = [&](std::int64_t heads, std::int64_t dim) {
      verify::HostTensor tensor(Dtype::kFloat32, tokens, heads, dim, device);
      for (std::int64_t t = 0; t < tokens; ++t)
        for (std::int64_t head = 0; head < heads; ++head)
          for (std::int64_t d = 0; d < dim; ++d) tensor.set(t, head, d, random.real());
      return tensor;
    };
    verify::HostTensor q = drawn(o.q_heads, o.k_dim), k = drawn(o.kv_heads, o.k_dim),
                       v = drawn(o.kv_heads, o.v_dim);
    verify::HostTensor out(Dtype::kFloat32, tokens, o.q_heads, o.v_dim, device);
    const TensorView on_device = out.on_device();
    plan.run(layer,
             {.q = q.on_device(),
              .k = k.on_device(),
              .v = o.page_kind == PageKind::kLatent ? TensorView() : v.on_device()},
             {.o = on_device, .lse = {}});
    mesh_.wait({}, "test");
    out.fetch();
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t head = 0; head < o.q_heads; ++head)
        for (const float number : out.elements(t, head)) rows.push_back(number);
  }

  Mesh& mesh_;
  KvCache cache_;
};

/// Some sequences as they are served: of several lengths, and a fork that has gone on.
std::vector<SequenceId> serve(ServingMesh& mesh, std::uint64_t seed) {
  std::vector<SequenceId> sequences;
  for (const std::int64_t tokens : {61, 5, 18}) {
    sequences.push_back(mesh.cache().create());
    (void)mesh.append({sequences.back()}, tokens, seed + static_cast<std::uint64_t>(tokens));
  }
  sequences.push_back(mesh.cache().fork(sequences[0]));
  (void)mesh.append({sequences.back()}, 2, seed);
  return sequences;
}

/// Three steps of one token.
std::vector<float> decode(ServingMesh& mesh, const std::vector<SequenceId>& sequences,
                          std::uint64_t seed) {
  std::vector<float> rows;
  for (std::uint64_t step = 1; step <= 3; ++step) {
    const std::vector<float> more = mesh.append(sequences, 1, seed + 1000 * step);
    rows.insert(rows.end(), more.begin(), more.end());
  }
  return rows;
}

void expect_equal(const std::vector<float>& got, const std::vector<float>& expected,
                  const Place& place) {
  if (place.reproducible) {
    EXPECT_EQ(got, expected) << "bit for bit";
    return;
  }
  ASSERT_EQ(got.size(), expected.size());
  float largest = 0;
  for (const float number : expected) largest = std::max(largest, std::abs(number));
  ASSERT_GT(largest, 0);
  // On a GPU the weights of the softmax are rounded to 16 bits.
  const float bound = largest * (place.device == DeviceChoice::kCpu ? 1e-5f : 1.0f / 128);
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], bound) << i;
}

/// All ranks but the last one serve. Then the last one comes, and all of them go on.
TEST_P(SequencesContract, GoesOnWithAProcessMore) {
  const Place& place = GetParam();
  place.run([&](Communicator& comm) {
    const std::uint64_t seed = agreed_seed(comm);
    SCOPED_TRACE(seed_trace(seed));
    const int before = std::max(1, comm.size() - 1);
    const bool was_there = comm.rank().value < before;
    const auto some = comm.split(was_there ? 0 : 1, comm.rank().value);
    const MeshOptions how{.threads = 1, .device = place.device};
    std::optional<Mesh> before_it;
    if (was_there) before_it.emplace(*some, how);  // on the GPU that each has later, too
    const auto with_it = place.mesh(comm, how);
    for (const Placement placement : {Placement::kBalanced, Placement::kStriped}) {
      CacheOptions options = place.small();
      options.placement = placement;
      std::vector<std::vector<std::byte>> streams(4);
      std::vector<float> expected;
      if (was_there) {
        ServingMesh served(*before_it, options);
        const std::vector<SequenceId> sequences = serve(served, seed);
        std::ranges::transform(sequences, streams.begin(),
                               [&](SequenceId it) { return served.exported(it); });
        expected = decode(served, sequences, seed);
      }
      ServingMesh larger(*with_it, options);
      std::vector<SequenceId> sequences;
      for (const auto& stream : streams) sequences.push_back(larger.imported(stream));
      const std::vector<float> got = decode(larger, sequences, seed);
      if (was_there) expect_equal(got, expected, place);
      larger.check();
      const auto mine = std::ranges::any_of(sequences, [&](SequenceId sequence) {
        return std::ranges::any_of(larger.cache().allocator().pages(sequence), [&](PageId page) {
          return page.valid() && page.rank().value == comm.size() - 1;
        });
      });
      EXPECT_TRUE(mine) << "the new rank has pages";
    }
  });
}

}  // namespace
}  // namespace kvmesh::test
