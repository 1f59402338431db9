#include "kvmesh/types.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <vector>

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
  std::vector<std::string_view> names;
  for (Dtype dtype : kAllDtypes) names.push_back(name(dtype));
  throw InvalidArgument(
      fmt::format("unknown dtype '{}': it must be one of {}", text, fmt::join(names, ", ")));
}

}  // namespace kvmesh
