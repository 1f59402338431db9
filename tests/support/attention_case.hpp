// A whole case of attention: a poisoned pool with the pages of a ragged batch scattered in it,
// queries, and the float64 result. All other numbers are NaN: the rest of a last page, unused
// pages, outputs before they are written, gaps between rows.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kvmesh/attention.hpp"
#include "kvmesh/error.hpp"
#include "tests/support/owned_tensor.hpp"
#include "tests/support/random.hpp"
#include "tests/support/reference.hpp"

namespace kvmesh::test {

inline constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16};

/// The first `pages` pages of an earlier sequence.
struct CasePrefix {
  std::size_t of = 0;
  std::int64_t pages = 0;
};

struct CaseSequence {
  std::int64_t q_len = 1;
  std::int64_t kv_len = 0;
  std::optional<std::vector<std::int32_t>> local{};  ///< logical pages on this rank; unset: all
  bool counts_sinks = true;                          ///< this rank counts sinks
  CasePrefix prefix{};                               ///< its first pages, too
};

struct CaseSpec {
  AttentionShape shape{.q_heads = 4, .kv_heads = 2, .k_dim = 32, .v_dim = 32, .page_size = 16};
  Dtype dtype = Dtype::kFloat32;    ///< dtype of the pool
  Dtype q_dtype = Dtype::kFloat32;  ///< dtype of the queries
  bool latent = false;              ///< values are the first v_dim elements of the keys
  std::vector<CaseSequence> sequences{};
  std::vector<std::int64_t> positions{};
  std::vector<float> sinks{};  ///< [q_heads]; empty: none
  AttentionOptions options{};
  Layout q{}, pool{}, o{}, lse{};
  KvScales scales{};   ///< of float8 pools; those per head are of this rank's heads
  int scale_bits = 5;  ///< scales per token and head are within 2^-scale_bits of the largest
  int scale_step = 0;  ///< those of every second 128 positions are smaller by this many more bits
  float q_size = 4;    ///< queries are up to this: scores spread over several units
  std::uint64_t seed = 1;
};

/// Bounds on the errors of O, relative to the largest |O| of the case, and of the LSE, relative to
/// max(1, |LSE|). Storage does not add to them, as the reference reads the same rounded numbers.
struct CaseTolerance {
  double o;
  double lse;
};

struct CaseResult {
  OwnedTensor o, lse;
  TileCounts tiles;
};

class AttentionCase {
 public:
  explicit AttentionCase(CaseSpec spec);

  const CaseSpec& spec() const { return spec_; }
  const AttentionBatch& batch() const { return batch_; }
  ConstTensorView q() { return q_.view(); }
  ConstTensorView sinks() const {
    return {spec_.sinks.data(), Dtype::kFloat32, {std::ssize(spec_.sinks)}};
  }
  ConstKvPool pool();
  Partial partial(CaseResult& result) { return {result.o.view(), result.lse.view()}; }
  std::int64_t tokens() const { return batch_.q_indptr.back(); }
  /// Poisoned outputs of the right shape.
  CaseResult outputs() const;

  CaseResult run(int threads = 1) { return run(spec_.options, threads); }
  CaseResult run(const AttentionOptions& options, int threads = 1) {
    return run(batch_, options, threads);
  }
  CaseResult run(const AttentionBatch& batch, const AttentionOptions& options, int threads = 1);

  /// Overwrites a key (or value) that was written, in all heads.
  void poison_key(std::size_t sequence, std::int64_t position);
  void poison_value(std::size_t sequence, std::int64_t position);
  /// Overwrites the scale of a value in the same way: of latent pages that of the key, too.
  void poison_value_scale(std::size_t sequence, std::int64_t position);
  void poison_page(std::size_t sequence, std::int64_t logical);

  /// Compares every row with float64. `visible` is the mask to compare with if it is not that of
  /// the spec; rows (token, head) for which `poisoned` holds must be NaN throughout.
  using RowFilter = std::function<bool(std::int64_t token, std::int32_t head)>;
  testing::AssertionResult matches(const CaseResult& result, const RowFilter& poisoned = {}) const {
    return matches(result, spec_.options.mask, poisoned);
  }
  testing::AssertionResult matches(const CaseResult& result, const MaskMod& visible,
                                   const RowFilter& poisoned = {}) const;

  std::int32_t position_of(std::size_t sequence, std::int64_t token) const;

 private:
  struct Slot {
    std::int32_t page, offset;
    std::int64_t position;
  };
  void place_pages();
  ConstTensorView per_head(const std::vector<float>& scales) const;
  void fill();
  void fill_sequence(std::size_t sequence, DenseSequence& dense, Random& scales);
  void fill_token(DenseSequence& dense, std::int64_t position, const Slot& slot, Random& scales);
  void fill_row(std::span<float> row, OwnedTensor& pool, OwnedTensor& scales, float number,
                const Slot& slot, std::int64_t head, Random& random);
  std::optional<Slot> slot_of(std::size_t sequence, std::int64_t position) const;
  /// With the queries rounded to `queries`.
  std::vector<ReferenceRow> reference(const MaskMod& visible, Dtype queries) const;
  MaskMod local_keys(std::size_t sequence) const;
  int group() const { return spec_.shape.q_heads / spec_.shape.kv_heads; }
  int first_kv_head() const { return spec_.options.first_head / group(); }

  CaseSpec spec_;
  AttentionBatch batch_;
  std::int64_t pool_pages_ = 0;
  OwnedTensor q_, k_, v_;
  OwnedTensor k_scales_, v_scales_;   // per token and head
  std::vector<DenseSequence> dense_;  // with the model's kv heads up to ours
};

// ---- The backend that a test program is linked with: attention_on_cpu.cpp or
// attention_on_cuda.cpp

/// Its name: "cpu", "cuda".
std::string_view backend();
CaseTolerance tolerance_of(const CaseSpec& spec);
/// The type that it may round queries to; the effect of rounding is then no error.
Dtype rounded_query_type(const CaseSpec& spec);
/// Plans, and runs once into `out`. Returns the tiles that the plan visits.
TileCounts run_attention(const AttentionShape& shape, const AttentionBatch& batch,
                         const AttentionOptions& options, const ConstTensorView& q,
                         const ConstKvPool& pool, const Partial& out, int threads,
                         const ConstTensorView& sinks = {});

}  // namespace kvmesh::test
