// One row of the table.
#pragma once

#include <cmath>
#include <optional>
#include <string>

#include "launch/bench/amounts.hpp"
#include "launch/bench/summary.hpp"
#include "launch/bench/workload.hpp"

namespace kvmesh::bench {

enum class Quantity : std::uint8_t { kBytes, kOperations };

/// The case of a row.
struct Case {
  Op op{};
  std::int64_t batch = 0;
  std::int64_t context = 0;
  Lengths lengths{};
  std::int64_t queries = 0;
  std::string listed{};  ///< of kListed: as it is typed
  std::string way{};     ///< of a combine, where several are measured
};
Case case_of(const WorkloadShape& shape, Op op, std::int64_t queries);

/// The slowest rank's times, and the sums of all ranks' amounts. A call is one layer.
struct Row {
  struct Measured {
    double amount = 0;  ///< per call
    Summary seconds{};  ///< per call
    double rate() const { return amount / seconds.median; }
  };
  struct Top {
    std::string name{};
    Measured measured{};
  };

  Case what{};
  int layers = 0;
  int calls = 0;  ///< per turn
  int turns = 0;
  Timing timing = Timing::kHost;
  Quantity quantity = Quantity::kBytes;
  Measured operation{};
  std::optional<Top> ceiling{};        ///< none where nothing has to move
  std::optional<Top> read{};           ///< a plain read of memory, where that is not the ceiling
  std::optional<double> error{};       ///< of its output (see output_error), where that is compared
  std::optional<Summary> on_device{};  ///< of a plan on a GPU: until that has done it
  std::optional<HostTraffic> between_hosts{};  ///< of a combine over hosts: all ranks' together

  double share() const {
    return ceiling ? operation.rate() / ceiling->measured.rate() : std::nan("");
  }
};

/// Collective.
Row measure(Workload& workload, Machine& machine, const Options& options, Op op,
            std::int64_t queries, const std::string& way = {});

/// Returns the most bytes of this rank's tensors for it.
std::int64_t tensor_bytes(const WorkloadShape& shape, const Mesh& mesh, Op op,
                          std::int64_t queries);

}  // namespace kvmesh::bench
