#include "kernels/cuda/attend/exact/exact_family.hpp"

#include "kernels/cuda/attend/plain/plain_family.hpp"
#include "kernels/cuda/common/sources.hpp"

namespace kvmesh::cuda {
namespace {

class ExactFamily final : public AttendFamily {
 public:
  std::optional<AttendVariant> choose(const AttendCase& what) const override {
    if (!what.exact) return std::nullopt;
    return AttendVariant{.family = this,
                         .name = "exact",
                         .source = "kernels/cuda/attend/exact/attend.cuh",
                         .kernel = "kvmesh_attend_exact",
                         .constants = attend_constants(what),
                         .threads = 128};
  }

  void launch(const jit::Kernel& kernel, const jit::Launch& how, const AttendParams& params,
              const ConstKvPool& pool) const override {
    kernel.launch(how, PlainParams{.attend = params, .scales = device_scales(pool)});
  }
};

}  // namespace

const AttendFamily& exact_family() {
  static const ExactFamily family;
  return family;
}

jit::Program exact_merge_program(int v_dim, const std::string& architecture) {
  jit::Program program{.files = cuda_kernel_sources(),
                       .source = "kernels/cuda/attend/exact/merge.cuh",
                       .architecture = architecture};
  program.constants.set("kDimV", v_dim);
  return program;
}

}  // namespace kvmesh::cuda
