#include "comm/common/split_members.hpp"

#include <algorithm>

#include "core/check.hpp"

namespace kvmesh {

std::vector<Rank> split_members(Communicator& comm, int color, int key) {
  require(color >= 0, "split: color {} is negative", color);
  struct Choice {
    int color;
    int key;
  };
  const std::vector<Choice> choices = all_gather_value(comm, Choice{color, key}, "split");
  std::vector<Rank> members;
  for (int r = 0; r < comm.size(); ++r) {
    if (choices[static_cast<std::size_t>(r)].color == color) members.push_back(Rank{r});
  }
  std::stable_sort(members.begin(), members.end(), [&](Rank a, Rank b) {
    return choices[static_cast<std::size_t>(a.value)].key <
           choices[static_cast<std::size_t>(b.value)].key;
  });
  return members;
}

}  // namespace kvmesh
