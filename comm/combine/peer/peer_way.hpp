// The way over mapped memory: one kernel, which stores rows into their owners' windows and merges
// what arrives. peer_kernels.cu says how.
//
// A captured run obeys the mask of a later plan: the mask is on the device, and rows that are sent
// and waited for follow from it. With limits a graph therefore moves no more than its steps need.
#pragma once

#include <memory>
#include <optional>

#include "comm/combine/combine_way.hpp"
#include "comm/combine/peer/peer_window.hpp"

namespace kvmesh {

/// `form`: how rows travel, whatever is faster; empty: as fitting_layout says.
/// REQUIRES: the window outlives the way. @throws Unsupported in a build without CUDA.
std::unique_ptr<CombineWay> make_peer_way(PeerWindow& window, std::optional<RowForm> form = {});

}  // namespace kvmesh
