#include "kernels/mods/band.hpp"

#include <limits>
#include <vector>

#include "kernels/mods/interval.hpp"

namespace kvmesh {
namespace {

constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
constexpr int kMostLooks = 400;  // a border takes 31

/// How much a value grows when query and key both move on by 1: 0 for what depends on their
/// distance alone. int32 wraps, so this holds for sums and differences, whatever their size; of the
/// others only for a comparison of the two positions themselves.
class Slopes {
 public:
  explicit Slopes(const ModGraph& graph) : graph_(graph) {
    for (const ModNode& node : graph.nodes) slopes_.push_back(slope_of(node));
  }
  bool root_is_level() const { return slopes_.back() == 0; }

 private:
  std::optional<int> of(const ModNode& node, int input) const {
    return slopes_[static_cast<std::size_t>(node.inputs[static_cast<std::size_t>(input)])];
  }
  bool is_position(const ModNode& node, int input) const {
    const auto at = static_cast<std::size_t>(node.inputs[static_cast<std::size_t>(input)]);
    return graph_.nodes[at].op == ModOp::kQuery || graph_.nodes[at].op == ModOp::kKey;
  }
  bool all_level(const ModNode& node) const {
    for (int i = 0; i < arity(node.op); ++i) {
      if (of(node, i) != 0) return false;
    }
    return true;
  }

  std::optional<int> slope_of(const ModNode& node) const {
    switch (node.op) {
      case ModOp::kQuery:
      case ModOp::kKey:
        return 1;
      case ModOp::kConstant:
        return 0;
      case ModOp::kScore:
      case ModOp::kBatch:
      case ModOp::kHead:
      case ModOp::kLoad:  // whose numbers may change
        return std::nullopt;
      case ModOp::kAdd:
      case ModOp::kSubtract: {
        if (all_level(node)) return 0;
        const std::optional<int> a = of(node, 0), b = of(node, 1);
        if (!a || !b) return std::nullopt;
        return node.op == ModOp::kAdd ? *a + *b : *a - *b;
      }
      case ModOp::kLess:
      case ModOp::kLessEqual:
      case ModOp::kEqual:
      case ModOp::kNotEqual:
        if (is_position(node, 0) && is_position(node, 1)) return 0;
        break;
      default:
        break;
    }
    return all_level(node) ? std::optional(0) : std::nullopt;
  }

  const ModGraph& graph_;
  std::vector<std::optional<int>> slopes_;
};

/// Finds the distances that are seen, by halves.
class Search {
 public:
  explicit Search(const ModGraph& mask) : mask_(mask) {}

  /// Looks at the distances [begin, end), in ascending order of calls. Returns false if they are no
  /// band, or too hard to see.
  bool look(std::int64_t begin, std::int64_t end) {
    if (++looks_ > kMostLooks) return false;
    const std::optional<bool> seen = value_over(begin, end);
    if (seen) return !*seen || add(begin, end);
    if (end - begin == 1) return false;
    const std::int64_t middle = begin + (end - begin) / 2;
    return look(begin, middle) && look(middle, end);
  }
  MaskBand band() const { return band_.value_or(MaskBand{}); }

 private:
  /// REQUIRES: all are below 0, or none.
  std::optional<bool> value_over(std::int64_t begin, std::int64_t end) const {
    const auto number = [](std::int64_t value) { return static_cast<std::int32_t>(value); };
    if (begin >= 0) return proved_value(mask_, 0, 0, {number(begin), number(end)}, {0, 1});
    return proved_value(mask_, 0, 0, {0, 1}, {number(1 - end), number(1 - begin)});
  }
  bool add(std::int64_t begin, std::int64_t end) {
    if (!band_) band_ = {begin, begin};
    if (band_->end != begin) return false;
    band_->end = end;
    return true;
  }

  const ModGraph& mask_;
  std::optional<MaskBand> band_;
  int looks_ = 0;
};

}  // namespace

std::optional<MaskBand> band_of(const ModGraph& mask) {
  if (!Slopes(mask).root_is_level()) return std::nullopt;
  Search search(mask);
  if (!search.look(1 - std::int64_t{kMost}, 0) || !search.look(0, kMost)) return std::nullopt;
  return search.band();
}

}  // namespace kvmesh
