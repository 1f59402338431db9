#include "kernels/cuda/attend/plain/plain_family.hpp"

namespace kvmesh::cuda {
namespace {

class PlainFamily final : public AttendFamily {
 public:
  std::optional<AttendVariant> choose(const AttendCase& what) const override {
    return AttendVariant{.family = this,
                         .name = "plain",
                         .source = "kernels/cuda/attend/plain/attend.cuh",
                         .kernel = "kvmesh_attend_plain",
                         .constants = attend_constants(what),
                         .threads = 128};
  }
};

}  // namespace

const AttendFamily& plain_family() {
  static const PlainFamily family;
  return family;
}

}  // namespace kvmesh::cuda
