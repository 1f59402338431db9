#include "runtime/step/step_combine.hpp"

namespace kvmesh {

StepCombine::StepCombine(CombineWays& ways, const CombineOptions& options, bool has_limits,
                         bool merges_alike)
    : ways_(ways),
      options_(options),
      has_limits_(has_limits),
      merges_alike_(merges_alike),
      gather_(ways, options.way) {
  use(choose_way(means(), {}, options, has_limits).way);
}

/// The hierarchical way merges the ranks of each host first, and pays from some number of rows on.
CombineMeans StepCombine::means() const {
  CombineMeans means = ways_.means();
  if (!merges_alike_) return means;
  means.table = nullptr;
  const auto asked = options_.way ? options_.way : means.preferred;
  if (asked != WayKind::kHierarchical) means.hosts = {};
  return means;
}

void StepCombine::use(WayKind kind) {
  std::unique_ptr<CombineWay>& way = made_[static_cast<std::size_t>(kind)];
  if (!way) way = ways_.make(kind);
  if (way_ != nullptr && way_ != way.get()) ++changes_;
  way_ = way.get();
}

void StepCombine::plan(const CombineShape& shape, const StepBatch& batch, Stream stream) {
  const CombineChoice choice = choose_way(means(), shape, options_, has_limits_);
  CombineOptions options = options_;
  options.strategy = choice.strategy;
  options.scatter = choice.scatter;
  std::optional<Participation> padded;
  if (choice.has_mask) {
    const Participation& mask = batch.participation();
    if (mask.tokens() < shape.tokens) padded = mask.padded(shape.tokens);
    options.participation = padded ? &*padded : &mask;
  }
  use(choice.way);
  way_->identify(batch.digest());
  way_->plan(shape, options, stream);
}

std::uint64_t StepCombine::generation() const {
  std::uint64_t sum = changes_ + gather_.generation();
  for (const auto& way : made_) sum += way ? way->generation() : 0;
  return sum;
}

std::size_t StepCombine::host_bytes() const {
  std::size_t sum = gather_.host_bytes();
  for (const auto& way : made_) sum += way ? way->host_bytes() : 0;
  return sum;
}

std::size_t StepCombine::workspace_bytes() const {
  std::size_t sum = gather_.workspace_bytes();
  for (const auto& way : made_) sum += way ? way->workspace_bytes() : 0;
  return sum;
}

}  // namespace kvmesh
