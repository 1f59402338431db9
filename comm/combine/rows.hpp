// Which rows a combine moves where: the blocks that ranks own, and who takes part in them.
#pragma once

#include <cstdint>

#include "kvmesh/combine.hpp"

namespace kvmesh {

/// The rows of some tokens and some heads.
struct CombineBlock {
  Share tokens;
  Share heads;
  bool has_token(std::int64_t token) const { return token >= tokens.begin && token < tokens.end; }
  std::int64_t rows() const { return tokens.size() * heads.size(); }
};

/// The rows of one combine.
class RowMap {
 public:
  RowMap(const Partial& mine, int ranks, const Participation* participation)
      : tokens_(mine.o.size(0)),
        heads_(mine.o.size(1)),
        dim_(mine.o.size(2)),
        ranks_(ranks),
        participation_(participation) {}

  std::int64_t dim() const { return dim_; }
  int ranks() const { return ranks_; }

  CombineBlock all() const { return {{0, tokens_}, {0, heads_}}; }
  /// What `scatter` gives to `owner`.
  CombineBlock block(Scatter scatter, int owner) const;
  /// Whether `rank` holds keys of the token's rows.
  bool takes_part(std::int64_t token, int rank) const {
    return participation_ == nullptr || participation_->has(token, Rank{rank});
  }
  /// How many rows of `block` the rank takes part in.
  std::int64_t rows_of(int rank, const CombineBlock& block) const;
  /// The scatter whose blocks are the most even: along the longer axis.
  Scatter longer_axis() const { return tokens_ >= heads_ ? Scatter::kTokens : Scatter::kHeads; }

 private:
  std::int64_t tokens_;
  std::int64_t heads_;
  std::int64_t dim_;
  int ranks_;
  const Participation* participation_;
};

inline const float* o_row(const Partial& partial, std::int64_t token, std::int64_t head) {
  const TensorView& o = partial.o;
  return static_cast<const float*>(o.data) + token * o.stride(0) + head * o.stride(1);
}
inline float lse_of(const Partial& partial, std::int64_t token, std::int64_t head) {
  const TensorView& lse = partial.lse;
  return static_cast<const float*>(lse.data)[token * lse.stride(0) + head * lse.stride(1)];
}

/// @throws InvalidArgument unless `participation` (if any) is for these.
void check_participation(const Participation* participation, std::int64_t tokens, int ranks);

/// @throws InvalidArgument unless rank `rank` of `ranks`, whose tensors are of kind `device`, may
/// combine these.
void check_combine(const Partial& mine, const CombineOptions& options, const CombineOutput& output,
                   int rank, int ranks, DeviceKind device = DeviceKind::kCpu);

}  // namespace kvmesh
