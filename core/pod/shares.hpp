// How items are divided among ranks, for the host, nvcc and NVRTC: it needs <cstdint> alone.
//
// The shares are contiguous, in rank order, and their sizes differ by at most one: the first
// `count % ranks` ranks have one item more.
#pragma once

#include <cstdint>

namespace kvmesh {

/// The first item of a rank's share; the share ends where the next rank's begins.
/// REQUIRES: 0 <= rank <= ranks.
template <class Int>
constexpr Int share_begin(Int count, Int rank, Int ranks) {
  const Int extra = count % ranks;
  return rank * (count / ranks) + (rank < extra ? rank : extra);
}

/// The rank whose share has `item`. REQUIRES: 0 <= item < count.
template <class Int>
constexpr Int share_owner(Int count, Int item, Int ranks) {
  const Int least = count / ranks;
  const Int extra = count % ranks;
  const Int in_larger = extra * (least + 1);
  return item < in_larger ? item / (least + 1) : extra + (item - in_larger) / least;
}

}  // namespace kvmesh
