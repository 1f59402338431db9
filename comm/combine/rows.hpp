// The rows that a combine moves, and where: the blocks that ranks own, and the ranks that take
// part.
#pragma once

#include <cstdint>
#include <optional>

#include "kvmesh/combine.hpp"

namespace kvmesh {

/// The partials of one combine: [tokens, heads, dim].
struct CombineShape {
  std::int64_t tokens = 0;
  std::int64_t heads = 0;
  std::int64_t dim = 0;
  std::int64_t rows() const { return tokens * heads; }
  friend bool operator==(const CombineShape&, const CombineShape&) = default;
};

/// The rows of some tokens and some heads.
struct CombineBlock {
  IndexRange tokens;
  IndexRange heads;
  /// For Scatter::kOwner: only the tokens that `owner` owns. Null: all of `tokens`.
  const Participation* owners = nullptr;
  int owner = 0;

  bool has_token(std::int64_t token) const {
    return token >= tokens.begin && token < tokens.end &&
           (owners == nullptr || owners->owner(token).value == owner);
  }
  /// Rows that the block has room for.
  std::int64_t rows() const { return tokens.size() * heads.size(); }
};

/// The rows that `scatter` gives to rank `owner` of `ranks`; under kOwner those that it may give.
CombineBlock block_of(const CombineShape& shape, Scatter scatter, int owner, int ranks);

/// The rows of one combine, and which ranks hold keys of them. Owns a copy of the mask.
class RowMap {
 public:
  RowMap(const CombineShape& shape, int ranks, const Participation* participation)
      : shape_(shape), ranks_(ranks) {
    if (participation != nullptr) participation_ = *participation;
  }

  const CombineShape& shape() const { return shape_; }
  std::int64_t dim() const { return shape_.dim; }
  int ranks() const { return ranks_; }

  CombineBlock all() const { return {{0, shape_.tokens}, {0, shape_.heads}}; }
  /// The rows that `scatter` gives to `owner`. REQUIRES: the map outlives the block.
  CombineBlock block(Scatter scatter, int owner) const {
    CombineBlock block = block_of(shape_, scatter, owner, ranks_);
    if (scatter == Scatter::kOwner) block.owners = &*participation_, block.owner = owner;
    return block;
  }
  /// Whether `rank` holds keys of the token's rows.
  bool takes_part(std::int64_t token, int rank) const {
    return !participation_ || participation_->has(token, Rank{rank});
  }
  /// How many rows of `block` the rank takes part in.
  std::int64_t rows_of(int rank, const CombineBlock& block) const;
  /// The scatter that a merge by owners goes by: whole tokens, which are in one piece in a tensor,
  /// where the owners' blocks are about even, else the longer axis.
  Scatter merge_axis() const {
    constexpr int kEven = 8;  // tokens per rank
    const bool by_tokens = shape_.tokens >= shape_.heads || shape_.tokens >= kEven * ranks_;
    return by_tokens ? Scatter::kTokens : Scatter::kHeads;
  }

 private:
  CombineShape shape_;
  int ranks_;
  std::optional<Participation> participation_;
};

inline const float* o_row(const Partial& partial, std::int64_t token, std::int64_t head) {
  const TensorView& o = partial.o;
  return static_cast<const float*>(o.data) + token * o.stride(0) + head * o.stride(1);
}
inline float lse_of(const Partial& partial, std::int64_t token, std::int64_t head) {
  const TensorView& lse = partial.lse;
  return static_cast<const float*>(lse.data)[token * lse.stride(0) + head * lse.stride(1)];
}

/// The shape of a rank's partial. @throws InvalidArgument if its o has no three dimensions.
CombineShape shape_of(const Partial& mine);

/// @throws InvalidArgument unless the sizes are no less than 0, the options' participation (if any)
/// is for these tokens and ranks, and there is one if owners follow from it.
void check_plan(const CombineShape& shape, const CombineOptions& options, int ranks);

/// @throws InvalidArgument unless the output is in memory of kind `device` and has the rows of
/// `own` of partials of `shape`.
void check_output_tensors(const CombineOutput& output, const CombineShape& shape,
                          const CombineBlock& own, DeviceKind device);

/// @throws InvalidArgument unless the tensors are in memory of kind `device`, the partial has
/// `shape` and the output the rows of `own`.
void check_tensors(const Partial& mine, const CombineOutput& output, const CombineShape& shape,
                   const CombineBlock& own, DeviceKind device);

}  // namespace kvmesh
