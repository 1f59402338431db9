// A small set of cases in which any two choices meet.
#pragma once

#include <algorithm>
#include <cstddef>
#include <set>
#include <utility>
#include <vector>

namespace kvmesh::test {

/// One choice for each axis.
using Choices = std::vector<int>;

/// Makes the cases for axes with this many choices each: any two choices of two axes meet in one of
/// them. Greedy, and the same on each call; about as many cases as the two longest axes have pairs.
/// Source: pairwise testing (Cohen et al., "The AETG System", 1997).
class EveryPair {
 public:
  explicit EveryPair(std::vector<int> sizes) : sizes_(std::move(sizes)) {
    for (const int size : sizes_) times_chosen_.emplace_back(static_cast<std::size_t>(size));
    for (std::size_t a = 0; a < sizes_.size(); ++a) {
      for (std::size_t b = a + 1; b < sizes_.size(); ++b) {
        for (int i = 0; i < sizes_[a]; ++i) {
          for (int j = 0; j < sizes_[b]; ++j) missing_.insert({{a, i}, {b, j}});
        }
      }
    }
  }

  std::vector<Choices> cases() {
    std::vector<Choices> all;
    while (!missing_.empty()) all.push_back(next());
    return all;
  }

 private:
  using Choice = std::pair<std::size_t, int>;  // of an axis

  Choices next() {
    const auto [first, second] = *missing_.begin();
    Choices choices(sizes_.size(), -1);
    choices[first.first] = first.second;
    choices[second.first] = second.second;
    for (std::size_t axis = 0; axis < sizes_.size(); ++axis) {
      if (choices[axis] < 0) choices[axis] = best(axis, choices);
    }
    for (std::size_t axis = 0; axis < sizes_.size(); ++axis) {
      ++times_chosen_[axis][static_cast<std::size_t>(choices[axis])];
      for (std::size_t b = axis + 1; b < sizes_.size(); ++b) {
        missing_.erase({{axis, choices[axis]}, {b, choices[b]}});
      }
    }
    return choices;
  }

  /// Returns the choice with the most missing pairs; among several the rarest so far.
  int best(std::size_t axis, const Choices& choices) const {
    const auto worth = [&](int choice) {
      int found = 0;
      for (std::size_t b = 0; b < sizes_.size(); ++b) {
        if (choices[b] < 0) continue;
        const Choice one{axis, choice};
        const Choice other{b, choices[b]};
        found += static_cast<int>(missing_.count({std::min(one, other), std::max(one, other)}));
      }
      return std::pair(found, -times_chosen_[axis][static_cast<std::size_t>(choice)]);
    };
    int best = 0;
    for (int choice = 1; choice < sizes_[axis]; ++choice) {
      if (worth(choice) > worth(best)) best = choice;
    }
    return best;
  }

  std::vector<int> sizes_;
  std::vector<std::vector<int>> times_chosen_;  // [axis][choice]
  std::set<std::pair<Choice, Choice>> missing_;
};

}  // namespace kvmesh::test
