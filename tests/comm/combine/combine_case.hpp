// One combine to test: the partials of every rank, the scatter, and the expected result.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "comm/combine/combine_way.hpp"

namespace kvmesh::test {

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kEmpty = -std::numeric_limits<float>::infinity();

/// A partial in memory of its own: contiguous, or with gaps (NaN) between heads and tokens.
struct HeldPartial {
  HeldPartial(std::int64_t tokens, std::int64_t heads, std::int64_t dim, std::int64_t gap);
  Partial view();
  std::int64_t o_index(std::int64_t token, std::int64_t head) const;
  std::int64_t lse_index(std::int64_t token, std::int64_t head) const;

  std::int64_t tokens, heads, dim, gap;
  std::vector<float> o_values, lse_values;
};

/// The same rows with gaps between them.
HeldPartial with_gap(const HeldPartial& partial, std::int64_t gap);

struct CombineCase {
  std::int64_t tokens = 0;
  std::int64_t heads = 0;
  std::int64_t dim = 0;
  Scatter scatter = Scatter::kAll;
  std::optional<Participation> participation;
  std::vector<HeldPartial> partials;  // [rank]

  bool takes_part(std::int64_t token, int rank) const;
  std::string describe() const;
};

/// A random case, the same on every rank that has the same generator. Rows of tokens that a rank
/// takes no part in are NaN, and so is O where a rank has no visible key.
CombineCase random_case(std::mt19937_64& random, int ranks);

/// A case of the given shape, always the same numbers; every rank takes part in every row.
CombineCase full_case(int ranks, std::int64_t tokens, std::int64_t heads, std::int64_t dim,
                      Scatter scatter);

/// Without a mask, with rows whose LSEs are NaN on all ranks, on one (the others with or without
/// keys), or -inf on all, and rows with an O of NaN, one of them of no weight in float32.
CombineCase unusual_case(int ranks, Scatter scatter);

/// The expected result of rank `rank`, in float64.
struct Expected {
  std::int64_t tokens = 0;
  std::int64_t heads = 0;
  std::vector<double> o;          // [tokens, heads, dim]
  std::vector<double> magnitude;  // [tokens, heads, dim]: sum of weight * |O|, the scale of errors
  std::vector<double> lse;        // [tokens, heads]
};
Expected expected_of(const CombineCase& test, int rank);

/// The rows that a rank got, read from a strided output whose gaps must be unchanged.
struct Result {
  std::vector<float> o;    // [tokens, heads, dim]; 16-bit outputs widened
  std::vector<float> lse;  // [tokens, heads]
};
Result run_case(CombineWay& way, CombineCase& test, int rank, CombineStrategy strategy,
                Dtype dtype = Dtype::kFloat32, std::int64_t gap = 0);

/// Plans for these tensors and runs.
void combine_once(CombineWay& way, const Partial& mine, const CombineOptions& options,
                  const CombineOutput& output);

/// True if both have the same bits.
bool same_bits(const Result& a, const Result& b);

/// Adds a test failure for each value whose error exceeds float32 rounding.
void expect_close(const Result& result, const Expected& expected, std::int64_t dim);

}  // namespace kvmesh::test
