// The strategies of each way: which it has, and which it takes for what the caller asked for.
#pragma once

#include <cstdint>

#include "comm/combine/rows.hpp"
#include "kvmesh/combine.hpp"

namespace kvmesh {

/// Whether a way has a strategy; each has kAuto.
bool supports(WayKind way, CombineStrategy strategy);

/// The strategy that a way takes for what the caller asked for: kAuto becomes the one that was
/// measured to be fastest. @throws InvalidArgument if the way does not have it.
CombineStrategy resolve_strategy(WayKind way, const CombineShape& shape,
                                 const CombineOptions& options, int ranks);

/// Whether the host's way brings rows to all ranks (Scatter::kAll) in two steps: each is merged by
/// an owner, then gathered.
bool goes_by_owners(CombineStrategy strategy, const CombineShape& shape, int ranks);

/// Bytes that a rank sends if each of its rows goes to every other rank.
std::int64_t bytes_to_all(const CombineShape& shape, int ranks);

}  // namespace kvmesh
