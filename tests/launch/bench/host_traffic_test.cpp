// The bytes that a combine sends from host to host, against those that cross between hosts.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <mutex>

#include "comm/combine/nccl/device_combine_plan.hpp"
#include "comm/combine/plan_digest.hpp"
#include "launch/bench/amounts.hpp"

namespace kvmesh::bench {
namespace {

constexpr Shape kOfTwelveHeads{
    .q_heads = 12, .kv_heads = 2, .k_dim = 8, .v_dim = 4, .page_size = 4, .dtype = Dtype::kFloat32};
constexpr std::int64_t kRowBytes = (4 + 1) * sizeof(float);
constexpr std::array kLayouts{HostLayout{2, 2}, HostLayout{2, 3}, HostLayout{3, 2}};

/// Adds up what combines send to other hosts, without the digest behind each message.
class FarRows final : public Communicator {
 public:
  FarRows(std::unique_ptr<Communicator> comm, const HostLayout& hosts,
          std::atomic<std::int64_t>& bytes)
      : comm_(std::move(comm)), hosts_(hosts), bytes_(bytes) {}

  Rank rank() const override { return comm_->rank(); }
  int size() const override { return comm_->size(); }
  std::string_view kind() const override { return comm_->kind(); }
  void set_deadline(std::chrono::milliseconds deadline) override { comm_->set_deadline(deadline); }
  std::chrono::milliseconds deadline() const override { return comm_->deadline(); }
  std::uint64_t sent_bytes() const override { return comm_->sent_bytes(); }
  /// Called by a mesh of one column, so the part has the same ranks.
  std::unique_ptr<Communicator> split(int color, int key) override {
    return std::make_unique<FarRows>(comm_->split(color, key), hosts_, bytes_);
  }
  void exchange(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                std::string_view operation) override {
    for (const Outgoing& out : outgoing) {
      const bool is_far = out.to.value / hosts_.per_host != rank().value / hosts_.per_host;
      if (is_far && !out.bytes.empty() && operation.starts_with("combine"))
        bytes_ += static_cast<std::int64_t>(out.bytes.size() - sizeof(PlanDigest));
    }
    comm_->exchange(outgoing, incoming, operation);
  }

 private:
  std::unique_ptr<Communicator> comm_;
  HostLayout hosts_;
  std::atomic<std::int64_t>& bytes_;
};

WorkloadShape shape_of(std::vector<std::int64_t> lengths) {
  return listed_shape(kOfTwelveHeads, lengths);
}

/// Runs `body(workload, machine)` on ranks of these hosts.
template <class Body>
void on_hosts(const HostLayout& hosts, const WorkloadShape& shape, const Body& body,
              std::atomic<std::int64_t>& far_bytes) {
  run_on_threads(hosts.hosts * hosts.per_host, [&](Mesh& outer) {
    Mesh mesh(
        std::make_unique<FarRows>(outer.world().split(0, outer.rank().value), hosts, far_bytes),
        {.threads = 1});
    mesh.device_group().set_hosts(hosts);
    const auto machine = make_cpu_machine(mesh, 1 << 20);
    Workload workload(mesh, *machine, shape);
    body(workload);
  });
}

struct Sums {
  HostTraffic counted{};
  std::int64_t flat = 0, hierarchical = 0;  // what ranks sent
};

/// Combines two queries of each sequence once each way.
Sums combine_both_ways(const HostLayout& hosts, const WorkloadShape& shape, Scatter scatter) {
  Sums sums;
  std::mutex mutex;
  std::atomic<std::int64_t> far_bytes = 0;
  const auto sent_by = [&](Workload& workload, WayKind way) {
    StepPlan plan = workload.plan(0, 2, {.scatter = scatter, .way = way});
    const Partial mine = workload.partial(plan);
    const CombineOutput output = workload.output(plan);
    barrier(workload.mesh().world(), "test: planned");
    const std::int64_t before = far_bytes;
    barrier(workload.mesh().world(), "test: ready");
    plan.combine(mine, output);
    barrier(workload.mesh().world(), "test: combined");
    return far_bytes - before;
  };
  on_hosts(
      hosts, shape,
      [&](Workload& workload) {
        const StepPlan plan = workload.plan(0, 2, {.scatter = scatter});
        const auto mine = host_traffic(workload, plan, scatter);
        ASSERT_TRUE(mine && mine->hierarchical);
        const std::int64_t flat = sent_by(workload, WayKind::kHost);
        const std::int64_t hierarchical = sent_by(workload, WayKind::kHierarchical);
        const std::lock_guard lock(mutex);
        sums.counted.flat += mine->flat;
        sums.counted.hierarchical = sums.counted.hierarchical.value_or(0) + *mine->hierarchical;
        sums.flat = flat;
        sums.hierarchical = hierarchical;
      },
      far_bytes);
  return sums;
}

// Two sequences lie on all ranks, the others each on one.
TEST(HostTraffic, IsWhatTheWaysSend) {
  for (const HostLayout& hosts : kLayouts) {
    for (const Scatter scatter : {Scatter::kHeads, Scatter::kAll}) {
      SCOPED_TRACE(::testing::Message()
                   << hosts.hosts << " hosts of " << hosts.per_host << ", to " << name(scatter));
      const Sums sums = combine_both_ways(hosts, shape_of({9, 3000, 30, 2500, 1, 12}), scatter);
      EXPECT_GT(sums.flat, 0);
      EXPECT_LT(sums.hierarchical, sums.flat);
      EXPECT_EQ(sums.counted.flat, sums.flat);
      EXPECT_EQ(sums.counted.hierarchical, sums.hierarchical);
    }
  }
}

// Over NCCL the same rows go flat; each then takes a multiple of 16 bytes.
TEST(HostTraffic, HasTheRowsOfMessagesOfNccl) {
  const WorkloadShape shape = shape_of({9, 3000, 30, 2500, 1, 12});
  for (const HostLayout& hosts : kLayouts) {
    std::atomic<std::int64_t> unused = 0;
    on_hosts(
        hosts, shape,
        [&](Workload& workload) {
          const int me = workload.mesh().kv_rank().value;
          for (const Scatter scatter :
               {Scatter::kHeads, Scatter::kTokens, Scatter::kAll, Scatter::kOwner}) {
            const StepPlan plan = workload.plan(0, 2, {.scatter = scatter});
            const DeviceCombinePlan messages =
                plan_device_combine({plan.query_tokens(), shape.model.q_heads, shape.model.v_dim},
                                    {.scatter = scatter,
                                     .strategy = CombineStrategy::kAllToAll,
                                     .participation = &plan.participation()},
                                    me, workload.mesh().kv_parallel());
            std::int64_t rows = 0;
            for (int rank = 0; rank < messages.ranks; ++rank) {
              if (rank / hosts.per_host != me / hosts.per_host)
                rows += messages.sent[static_cast<std::size_t>(rank)].rows;
            }
            EXPECT_EQ(host_traffic(workload, plan, scatter)->flat, rows * kRowBytes)
                << name(scatter) << ", rank " << me;
          }
        },
        unused);
  }
}

// A row of which all ranks have keys leaves a host once for each other host, not once per rank.
TEST(HostTraffic, OfRowsThatAllRanksHaveIsDividedByTheRanksPerHost) {
  for (const HostLayout& hosts : kLayouts) {
    const Sums sums = combine_both_ways(hosts, shape_of({3000, 2500}), Scatter::kHeads);
    const std::int64_t rows = 2 * 2 * kOfTwelveHeads.q_heads;
    EXPECT_EQ(sums.counted.hierarchical, (hosts.hosts - 1) * rows * kRowBytes);
    EXPECT_EQ(sums.counted.flat, hosts.per_host * *sums.counted.hierarchical);
  }
}

TEST(HostTraffic, IsFlatWhereHostsCannotMergeFirst) {
  std::atomic<std::int64_t> far_bytes = 0;
  const WorkloadShape shape = shape_of({3000, 2500});
  const auto counted = [](Workload& workload, Scatter scatter) {
    const StepPlan plan = workload.plan(0, 2, {.scatter = scatter});
    return host_traffic(workload, plan, scatter);
  };
  on_hosts(
      {2, 2}, shape,
      [&](Workload& workload) {
        for (const Scatter scatter : {Scatter::kTokens, Scatter::kOwner}) {
          const auto bytes = counted(workload, scatter);
          ASSERT_TRUE(bytes);
          EXPECT_FALSE(bytes->hierarchical) << name(scatter);
        }
      },
      far_bytes);
  on_hosts(
      {2, 1}, shape,
      [&](Workload& workload) {
        const auto bytes = counted(workload, Scatter::kHeads);
        ASSERT_TRUE(bytes);
        EXPECT_EQ(bytes->flat, 2 * 2 * kOfTwelveHeads.q_heads / 2 * kRowBytes);
        EXPECT_FALSE(bytes->hierarchical);
      },
      far_bytes);
  on_hosts(
      {1, 2}, shape,
      [&](Workload& workload) { EXPECT_FALSE(counted(workload, Scatter::kHeads)) << "one host"; },
      far_bytes);
  WorkloadShape uneven = shape;
  uneven.model.q_heads = 10;
  on_hosts(
      {2, 2}, uneven,
      [&](Workload& workload) {
        const auto bytes = counted(workload, Scatter::kHeads);
        ASSERT_TRUE(bytes);
        EXPECT_FALSE(bytes->hierarchical) << "10 heads of 4 ranks";
      },
      far_bytes);
}

}  // namespace
}  // namespace kvmesh::bench
