#include <limits>
#include <utility>
#include <vector>

#include "core/check.hpp"
#include "kvmesh/draft_trees.hpp"

namespace kvmesh::mods {
namespace {

constexpr std::int32_t kNever = std::numeric_limits<std::int32_t>::max();

Buffer<std::int32_t> numbers(std::int64_t count, std::int32_t value) {
  require(count > 0 && count < kNever, "draft trees: room for {} tokens", count);
  return Buffer<std::int32_t>(std::vector<std::int32_t>(static_cast<std::size_t>(count), value));
}

// A walk that takes each token before its children numbers the tokens; those below a token have the
// numbers [enter, leave) of it. So one token is another's ancestor if its interval has the other's
// number: two loads a key, whatever the tree.
MaskMod tree_mask(const Buffer<std::int32_t>& first, const Buffer<std::int32_t>& enter,
                  const Buffer<std::int32_t>& leave, std::int32_t most) {
  return [&, most](auto b, auto, auto q, auto kv) {
    const auto place = [&](const auto& position) {
      return b * most + max(0, min(position - first[b], most - 1));
    };
    const auto number = enter[place(q)];
    const auto above = place(kv);
    return q >= kv && (kv < first[b] || (enter[above] <= number && number < leave[above]));
  };
}

}  // namespace

DraftTrees::DraftTrees(int rows, int most_tokens)
    : rows_(rows),
      most_(most_tokens),
      first_(numbers(rows, kNever)),
      enter_(numbers(std::int64_t{rows} * most_tokens, kNever)),
      leave_(numbers(enter_.size(), 0)),
      mask_(tree_mask(first_, enter_, leave_, most_tokens)) {}

void DraftTrees::check_row(int row) const {
  require(row >= 0 && row < rows_, "draft trees: row {} of {}", row, rows_);
}

void DraftTrees::set(int row, std::int64_t first, std::span<const std::int32_t> parents) {
  check_row(row);
  const auto count = static_cast<std::int32_t>(parents.size());
  require(std::cmp_less_equal(parents.size(), most_),
          "draft trees: a tree of {} tokens, there is room for {}", parents.size(), most_);
  require(first >= 0 && first < kNever - count, "draft trees: a tree at position {}", first);
  for (std::int32_t i = 0; i < count; ++i) {
    const std::int32_t parent = parents[static_cast<std::size_t>(i)];
    require(parent >= -1 && parent < i, "draft trees: token {} has the parent {}", i, parent);
  }
  clear(row);
  std::vector<std::int32_t> size(parents.size(), 1),
      next(parents.size() + 1);  // next[0]: no parent
  for (std::size_t i = parents.size(); i-- > 0;) {
    if (parents[i] >= 0) size[static_cast<std::size_t>(parents[i])] += size[i];
  }
  for (std::size_t i = 0; i < parents.size(); ++i) {
    std::int32_t& place = next[static_cast<std::size_t>(parents[i] + 1)];
    const std::int64_t at = std::int64_t{row} * most_ + static_cast<std::int64_t>(i);
    enter_.set(at, place);
    leave_.set(at, place + size[i]);
    next[i + 1] = place + 1;
    place += size[i];
  }
  first_.set(row, static_cast<std::int32_t>(first));
}

void DraftTrees::clear(int row) {
  check_row(row);
  first_.set(row, kNever);
  for (int i = 0; i < most_; ++i) {
    enter_.set(std::int64_t{row} * most_ + i, kNever);
    leave_.set(std::int64_t{row} * most_ + i, 0);
  }
}

}  // namespace kvmesh::mods
