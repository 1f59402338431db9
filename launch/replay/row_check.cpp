#include "launch/replay/row_check.hpp"

#include <fmt/format.h>

#include <cmath>

#include "launch/verify/reference.hpp"

namespace kvmesh::replay {

float query_scale(const verify::Tolerances& tolerances, int dim) {
  if (tolerances.o <= verify::kTolerance) return 1;
  return std::exp2(std::round(std::log2(48.0f / std::sqrt(static_cast<float>(dim)))));
}

void RowCheck::compare(const Row& row, const std::function<std::string()>& place) {
  const int kv_head = row.head / shape_.group();
  verify::DenseSequence keys{
      .kv_heads = 1, .k_dim = shape_.dim, .v_dim = shape_.dim, .k = {}, .v = {}};
  const auto add = [](std::vector<float>& to, std::span<const float> numbers) {
    to.insert(to.end(), numbers.begin(), numbers.end());
  };
  for (const TokenRow token : row.tokens) {
    add(keys.k, contents_.stored(contents_.key_row(token, row.layer, kv_head)));
    add(keys.v, contents_.stored(contents_.value_row(token, row.layer, kv_head)));
  }
  const auto sees_all = [](auto...) { return true; };
  const auto position = static_cast<std::int32_t>(std::ssize(row.tokens) - 1);
  const verify::ReferenceRow want =
      verify::reference_row(keys, contents_.query(row.query).data(), 1.0 / std::sqrt(shape_.dim),
                            sees_all, {}, 0, 0, 1, position);
  findings_.add_rows(1);
  for (std::size_t d = 0; d < want.o.size(); ++d) {
    findings_.compare(row.o[d], want.o[d], {.tolerance = tolerances_.o}, [&] {
      return fmt::format("{}, layer {}, head {}, o[{}]", place(), row.layer, row.head, d);
    });
  }
}

}  // namespace kvmesh::replay
