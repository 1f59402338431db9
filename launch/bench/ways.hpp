// The ways of a combine that have rows of their own.
#pragma once

#include <vector>

#include "launch/bench/options.hpp"

namespace kvmesh::bench {

/// Returns the ways of --ways, or all that the ranks have, if they are GPUs.
/// @throws InvalidArgument if these ranks do not have one of them.
std::vector<Way> ways_of(const Flags& flags, Mesh& mesh);

}  // namespace kvmesh::bench
