// The numbers in a replay's tensors: a function of the trace, so that they can be made again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "launch/replay/attend_shape.hpp"
#include "launch/replay/replay.hpp"

namespace kvmesh::replay {

/// The place at which a token's keys and values begin in the table of Contents.
enum class TokenRow : std::int32_t {};

/// Keys, values and queries: rows of a table of random numbers in [-1, 1), so that making them
/// costs no more than a copy. Another token, or the same at another position or in another layer,
/// mostly has another row. A token's keys, one for each kv head, are rows that follow one another,
/// and its values are the next ones. Immutable: all ranks share one.
class Contents {
 public:
  /// Queries are rows times `query_scale`. REQUIRES: a shape that `check` takes; a power of two.
  Contents(const AttendShape& shape, float query_scale);

  float query_scale() const { return query_scale_; }

  /// The tokens of a request at positions [first, first + count).
  std::vector<TokenRow> tokens_of(const Trace& trace, const Growth& growth) const;

  std::size_t key_row(TokenRow token, int layer, int kv_head) const;
  std::size_t value_row(TokenRow token, int layer, int kv_head) const {
    return key_row(token, layer, kv_head) + static_cast<std::size_t>(shape_.kv_heads);
  }
  /// A query's row may be any below this.
  static constexpr std::int64_t kRows = 4093;

  /// Adds elements of AttendShape::input(): of all kv heads, and of one query head.
  void add_keys(TokenRow token, int layer, std::vector<std::byte>& to) const;
  void add_values(TokenRow token, int layer, std::vector<std::byte>& to) const;
  void add_query(std::size_t row, std::vector<std::byte>& to) const;

  /// The `dim` numbers of a key or value in pages.
  std::span<const float> stored(std::size_t row) const { return numbers(stored_, row); }
  /// The `dim` numbers of a query.
  std::span<const float> query(std::size_t row) const { return numbers(queries_, row); }

 private:
  std::span<const float> numbers(const std::vector<float>& table, std::size_t row) const {
    const auto dim = static_cast<std::size_t>(shape_.dim);
    return std::span(table).subspan(row * dim, dim);
  }
  // Adds rows [row, row + rows) to `to`.
  void add_rows(const std::vector<std::byte>& table, std::size_t row, int rows,
                std::vector<std::byte>& to) const;

  AttendShape shape_;
  float query_scale_;
  std::vector<float> stored_, queries_;           // [row, dim]
  std::vector<std::byte> inputs_, query_inputs_;  // [row, dim] of AttendShape::input()
};

}  // namespace kvmesh::replay
