#include "kvmesh/types.hpp"

#include <fmt/format.h>

#include "kvmesh/error.hpp"

namespace kvmesh {

std::string describe(SequenceId sequence) {
  return fmt::format("#{} (life {}, space {})", sequence.slot(), (sequence.generation() + 1) / 2,
                     sequence.space());
}

Dtype dtype_from(std::string_view text) {
  for (Dtype dtype : kAllDtypes) {
    if (text == name(dtype)) return dtype;
  }
  throw InvalidArgument(fmt::format("unknown dtype '{}': float32, float16 or bfloat16", text));
}

}  // namespace kvmesh
