// An operation, ready to be timed, with its ceiling.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "launch/bench/measure.hpp"

namespace kvmesh::bench {

class Operation {
 public:
  virtual ~Operation() = default;

  /// Call i works on layer i % layers.
  virtual Repeated repeated() = 0;
  /// The work before each turn, untimed; empty where the ranks do not meet in the operation.
  virtual Work align() { return {}; }
  virtual Quantity quantity() const { return Quantity::kBytes; }
  /// The amount of this rank.
  virtual double amount() = 0;
  /// The bytes that this rank sends to other hosts; none for operations that do not count them.
  virtual std::optional<HostTraffic> between_hosts() { return std::nullopt; }
  /// Returns the ceilings; the table's share is of the first one.
  virtual std::vector<Ceiling> ceilings() = 0;
  /// Runs the operation once more, on layer 0, and compares it with float64; none if there is
  /// nothing to compare. See output_error. Blocking.
  virtual std::optional<double> error() { return std::nullopt; }
  /// True if a turn must go through all layers, so that no cache holds their data.
  virtual bool rotates() const = 0;
};

/// Collective. Valid until the workload's next plan.
std::unique_ptr<Operation> make_operation(Workload& workload, Machine& machine,
                                          const Options& options, Op op, std::int64_t queries);

}  // namespace kvmesh::bench
