// Gathers the rows of a linear layer's output, of which each rank has computed a share.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kvmesh/combine.hpp"
#include "kvmesh/communicator.hpp"

namespace kvmesh::engine {

/// Rank r computes share_of(rows, r, ranks) of every matrix. Where several matrices are multiplied
/// together, a rank's slice of a token is its share of the first, then of the second, ...
class RowGather {
 public:
  explicit RowGather(Communicator& comm) : comm_(&comm) {}

  Communicator& comm() const { return *comm_; }

  IndexRange mine(std::int64_t rows) const {
    return share_of(rows, comm_->rank().value, comm_->size());
  }

  /// Gathers every rank's `slice` [tokens, this rank's share of each of `rows`] into `all`
  /// [tokens, sum of rows] on every rank. Collective.
  void operator()(std::span<const std::int64_t> rows, std::int64_t tokens,
                  std::span<const float> slice, std::span<float> all, std::string_view operation);

 private:
  void unpack(std::span<const std::int64_t> rows, std::int64_t tokens, std::span<float> all) const;

  Communicator* comm_;
  std::vector<std::size_t> counts_;
  std::vector<float> packed_;  // every rank's slice, in rank order
};

}  // namespace kvmesh::engine
