// The plan of one combine on GPUs: which rows it moves, and where to. Computed on the host, once
// per step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "comm/combine/rows.hpp"
#include "core/pod/row_places.hpp"

namespace kvmesh {

struct DeviceCombinePlan {
  int rank = 0;
  int ranks = 1;
  CombineShape shape{};
  Scatter scatter = Scatter::kAll;
  CombineStrategy strategy = CombineStrategy::kAllToAll;  // not kAuto

  /// [rank][token]: the place of the token's rows in the rank's message to the token's owner,
  /// counted in tokens; -1 if the rank takes no part. Empty without a mask: then all take part in
  /// all.
  std::vector<std::int32_t> token_places{};
  std::vector<std::int32_t> owners{};  ///< [token], of Scatter::kOwner

  // For kAllToAll. Under Scatter::kAll all owners get the same message.
  std::int64_t row_floats = 0;         // of a row in a message
  bool keeps_own = false;              // `sent` has the rows that this rank keeps, too
  std::vector<RowMessage> sent{};      // [rank]
  std::vector<RowMessage> received{};  // [rank], none from this rank
  std::int64_t sent_floats = 0;
  std::int64_t received_floats = 0;

  /// For the other strategies: the rows of the largest block, to which all blocks are padded. Under
  /// Scatter::kAll one block has all rows.
  std::int64_t block_rows = 0;
  int blocks = 1;

  std::int64_t rows() const { return shape.rows(); }
  /// Floats of one block: O, and for kAllReduce a weight a row.
  std::int64_t block_floats() const {
    return block_rows * (shape.dim + (strategy == CombineStrategy::kAllReduce ? 1 : 0));
  }
  std::int64_t reduced_floats() const { return blocks * block_floats(); }
  bool packs() const { return strategy == CombineStrategy::kAllToAll; }
  /// The rows that `scatter` gives to `owner`; under kOwner those that it may give.
  CombineBlock block(int owner) const { return block_of(shape, scatter, owner, ranks); }

  /// Whether the messages one after another, with the rows that this rank keeps in their place, are
  /// a tensor [tokens, heads, row_floats]: what computes the rows may then store them there.
  bool is_tensor() const { return packs() && ranks > 1 && token_places.empty(); }
  /// Floats from a token or head of that tensor to the next.
  std::int64_t token_stride() const {
    return scatter == Scatter::kHeads ? row_floats : shape.heads * row_floats;
  }
  std::int64_t head_stride() const {
    return scatter == Scatter::kHeads ? shape.tokens * row_floats : row_floats;
  }

  friend bool operator==(const DeviceCombinePlan&, const DeviceCombinePlan&) = default;
};

/// A combine of partials, whose rows in messages are O [dim], then the LSE, then as many floats as
/// it takes to begin each at 16 bytes. @throws InvalidArgument.
DeviceCombinePlan plan_device_combine(const CombineShape& shape, const CombineOptions& options,
                                      int rank, int ranks);

/// An all-to-all of rows of `row_floats` floats, a multiple of 4. They are written into the
/// messages by whatever computes them, so there is a place for the rows that this rank keeps, too:
/// sent[rank], which is not sent. @throws InvalidArgument.
DeviceCombinePlan plan_device_rows(const CombineShape& shape, const CombineOptions& options,
                                   std::int64_t row_floats, int rank, int ranks);

/// Returns the part of a plan that kernels read: sent [ranks], received [ranks], token_places
/// [ranks][tokens], owners [tokens].
std::vector<std::byte> device_table(const DeviceCombinePlan& plan);
/// `table` is where device_table(plan) lies for the reader.
RowPlaces row_places(const DeviceCombinePlan& plan, const void* table);

}  // namespace kvmesh
