// The query gather of one plan, on any device.
#pragma once

#include <array>
#include <memory>
#include <optional>

#include "comm/combine/choice/combine_ways.hpp"
#include "comm/combine/gather/gather_way.hpp"

namespace kvmesh {

/// Chooses a way for each run, as choose_gather_way says, and keeps those that it has used, since a
/// GPU may still use their memory. REQUIRES: `ways` outlives it.
class QueryGather {
 public:
  /// `way`: see CombineOptions.
  QueryGather(CombineWays& ways, std::optional<WayKind> way) : ways_(ways), asked_(way) {}

  void set_layer(int layer) { layer_ = layer; }
  /// As GatherWay::run. A group of one rank only copies, and tensors without rows are left alone.
  void run(const QueryShares& queries, Stream stream);

  std::uint64_t generation() const;
  std::size_t workspace_bytes() const;
  std::size_t host_bytes() const;

 private:
  template <class Number>
  auto sum(const Number& number) const;

  CombineWays& ways_;
  std::optional<WayKind> asked_;
  int layer_ = -1;
  std::array<std::unique_ptr<GatherWay>, kWayKinds> made_;  // [kind]
};

}  // namespace kvmesh
