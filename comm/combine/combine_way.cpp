#include "comm/combine/combine_way.hpp"

#include <fmt/format.h>

#include "kvmesh/error.hpp"

namespace kvmesh {

CombineTarget CombineWay::target() {
  throw InvalidArgument(fmt::format("combine: the way {} takes rows from tensors", name(kind())));
}

void CombineWay::run_sent(const CombineOutput& /*output*/, Stream /*stream*/) {
  static_cast<void>(target());
}

}  // namespace kvmesh
