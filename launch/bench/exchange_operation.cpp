#include "launch/bench/exchange_operation.hpp"

#include <algorithm>
#include <numeric>

#include "kvmesh/error.hpp"
#include "launch/bench/planned.hpp"

namespace kvmesh::bench {
namespace {

// With more queries per sequence than this, arithmetic is the cost, not the read of keys and
// values.
constexpr std::int64_t kFewQueries = 64;

/// kAuto but for the largest combines to all (see CombineStrategy).
bool exchanges_all_to_all(CombineStrategy strategy) {
  return strategy == CombineStrategy::kAuto || strategy == CombineStrategy::kAllToAll;
}

std::int64_t sum(const std::vector<std::int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

/// A plain exchange of as many bytes, and its buffers.
class Exchange {
 public:
  Ceiling ceiling(Mesh& mesh, Machine& machine, const Traffic& traffic) {
    const auto bytes = [&](GrowingTensor& tensor, std::int64_t count) {
      return tensor.get(mesh, machine, Dtype::kFloat32, (count + 3) / 4, 1);
    };
    const TensorView from = bytes(from_, std::ranges::max(traffic.sent));
    const TensorView to = bytes(to_, sum(traffic.received));
    std::vector<Outgoing> outgoing;
    std::vector<Incoming> incoming;
    auto* room = static_cast<std::byte*>(to.data);
    for (int rank = 0; rank < mesh.kv_parallel(); ++rank) {
      const auto sent = static_cast<std::size_t>(traffic.sent[static_cast<std::size_t>(rank)]);
      const auto received =
          static_cast<std::size_t>(traffic.received[static_cast<std::size_t>(rank)]);
      if (sent > 0) outgoing.push_back({{rank}, {static_cast<std::byte*>(from.data), sent}});
      if (received > 0) incoming.push_back({{rank}, {room, received}});
      room += received;
    }
    return {.name = "exchange of as many bytes",
            .amount = static_cast<double>(sum(traffic.sent)),
            .repeated = {.work =
                             [&machine, outgoing, incoming](int, Stream stream) {
                               machine.exchange(outgoing, incoming, stream);
                             },
                         .capturable = machine.captures_exchange()},
            .as_often = true};
  }

 private:
  GrowingTensor from_, to_;
};

/// Ceiling: an exchange of the bytes that an all-to-all of the partials sends; on one rank a copy.
class Combine : public Planned {
 public:
  Combine(Workload& workload, Machine& machine, const Options& options, std::int64_t append,
          std::int64_t queries)
      : Planned(workload, machine, options, append, queries),
        mine_(workload.partial(plan_)),
        output_(workload.output(plan_)),
        traffic_(
            combine_traffic(workload, plan_, options.scatter,
                            options.way == WayKind::kPeer ? options.travels_as : Dtype::kFloat32)),
        between_hosts_(exchanges_all_to_all(options.strategy)
                           ? host_traffic(workload, plan_, options.scatter)
                           : std::nullopt),
        is_captured_(machine.captures_combine(options.way) &&
                     (!workload.shape().model.reproducible || machine.captures_exchange())) {}

  Repeated repeated() override {
    return {.work = [this](int, Stream stream) { plan_.combine(mine_, output_, stream); },
            .capturable = is_captured_};
  }
  Work align() override {
    return workload_.mesh().kv_parallel() > 1 ? Combine::repeated().work : Work{};
  }
  double amount() override {
    if (workload_.mesh().kv_parallel() == 1) return alone_bytes();
    return static_cast<double>(sum(traffic_.sent));
  }
  std::optional<HostTraffic> between_hosts() override { return between_hosts_; }
  std::vector<Ceiling> ceilings() override {
    if (workload_.mesh().kv_parallel() == 1) return {copying()};
    return {exchange_.ceiling(workload_.mesh(), machine_, traffic_)};
  }
  bool rotates() const override { return false; }

 protected:
  CombineOutput output_of_step() const { return output_; }
  bool is_captured() const { return is_captured_; }

 private:
  // Bytes of a combine on one rank: the partial is read, the output written.
  double alone_bytes() const {
    const auto bytes = [](const TensorView& view) {
      return static_cast<double>(view.elements()) * static_cast<double>(size_bytes(view.dtype));
    };
    return bytes(mine_.o) + bytes(mine_.lse) + bytes(output_.o);
  }

  TensorView floats(GrowingTensor& tensor, std::int64_t bytes) {
    return tensor.get(workload_.mesh(), machine_, Dtype::kFloat32, bytes / 4, 1);
  }

  Ceiling copying() {
    const auto bytes = static_cast<std::int64_t>(alone_bytes()) / 8 * 4;
    const TensorView from = floats(from_, bytes), to = floats(to_, bytes);
    return {.name = "copy of as many bytes",
            .amount = 2 * static_cast<double>(bytes),
            .repeated = {.work =
                             [this, from, to, bytes](int, Stream stream) {
                               machine_.copy(to.data, from.data, static_cast<std::size_t>(bytes),
                                             stream);
                             }},
            .as_often = true};
  }

  Partial mine_;
  CombineOutput output_;
  Traffic traffic_;
  std::optional<HostTraffic> between_hosts_;
  bool is_captured_;
  GrowingTensor from_, to_;
  Exchange exchange_;
};

/// Ceiling: an exchange of as many bytes.
class GatherQueries : public Planned {
 public:
  GatherQueries(Workload& workload, Machine& machine, const Options& options, std::int64_t queries)
      : Planned(workload, machine, options, 0, queries),
        traffic_(gather_traffic(workload, plan_)),
        is_captured_(machine.captures_combine(options.way)) {
    const ConstTensorView& q = input_.q;
    const Mesh& mesh = workload.mesh();
    const IndexRange heads = share_of(q.size(1), mesh.kv_rank().value, mesh.kv_parallel());
    const auto queries_of = [&](GrowingTensor& tensor, std::int64_t count) {
      return tensor.get(workload.mesh(), machine, q.dtype, q.size(0), count, q.size(2));
    };
    mine_ = queries_of(share_, heads.size());
    gathered_ = queries_of(all_, q.size(1));
  }

  Repeated repeated() override {
    return {.work =
                [this](int call, Stream stream) {
                  plan_.gather_queries(workload_.attended_layer(call), mine_, gathered_, stream);
                },
            .capturable = is_captured_};
  }
  Work align() override { return repeated().work; }
  double amount() override { return static_cast<double>(sum(traffic_.sent)); }
  std::vector<Ceiling> ceilings() override {
    return {exchange_.ceiling(workload_.mesh(), machine_, traffic_)};
  }
  bool rotates() const override { return false; }

 private:
  Traffic traffic_;
  bool is_captured_;
  GrowingTensor share_, all_;
  TensorView mine_, gathered_;
  Exchange exchange_;
};

class Step : public Combine {
 public:
  Step(Workload& workload, Machine& machine, const Options& options, std::int64_t queries)
      : Combine(workload, machine, options, queries, queries),
        queries_(queries),
        is_replanned_(options.manner == Manner::kLimits) {
    if (!is_replanned_) return;
    replan({});  // buffers that grow for the first replan do so before a capture
    workload.mesh().wait({}, "bench: planning");
  }

  Repeated repeated() override {
    Repeated steps{.work =
                       [this](int call, Stream stream) {
                         plan_.run(workload_.attended_layer(call), input_, output_of_step(),
                                   stream);
                       },
                   .capturable = is_captured()};
    if (is_replanned_) {
      steps.prepare = [this, captured = plan_.generation()](Stream stream) {
        replan(stream);
        if (plan_.generation() == captured) return;
        throw Error("bench: the step has outgrown its captured graph");
      };
    }
    return steps;
  }
  /// With limits its rows may be others than the plan's.
  std::optional<HostTraffic> between_hosts() override { return std::nullopt; }
  /// A reproducible step has no combine alone.
  Work align() override {
    const bool is_whole =
        workload_.shape().model.reproducible && workload_.mesh().kv_parallel() > 1;
    return is_whole ? repeated().work : Combine::align();
  }
  Quantity quantity() const override {
    return queries_ > kFewQueries ? Quantity::kOperations : Quantity::kBytes;
  }
  double amount() override {
    if (quantity() == Quantity::kOperations) return attend_operations(workload_, queries_);
    return attend_bytes(workload_, queries_, Output::kPartial, prefix_) +
           2 * appended_bytes(workload_, queries_);
  }
  std::vector<Ceiling> ceilings() override {
    return {quantity() == Quantity::kOperations ? machine_.multiply(workload_.shape().model.dtype)
                                                : machine_.read()};
  }
  bool rotates() const override { return quantity() == Quantity::kBytes; }

 private:
  /// As an engine does between two replays. The sequences get the tokens that they had, so that a
  /// turn reads as much as one of a plan without limits.
  void replan(Stream stream) { workload_.replan(plan_, queries_, queries_, stream); }

  std::int64_t queries_;
  bool is_replanned_;
};

}  // namespace

std::unique_ptr<Operation> make_exchange_operation(Workload& workload, Machine& machine,
                                                   const Options& options, Op op,
                                                   std::int64_t queries) {
  if (op == Op::kStep) return std::make_unique<Step>(workload, machine, options, queries);
  if (op == Op::kGather)
    return std::make_unique<GatherQueries>(workload, machine, options, queries);
  return std::make_unique<Combine>(workload, machine, options, 0, queries);
}

}  // namespace kvmesh::bench
