#include "kernels/cuda/attend/choose_attend.hpp"

#include <fmt/format.h>

#include <limits>

#include "core/check.hpp"
#include "kernels/cuda/attend/exact/exact_family.hpp"
#include "kernels/cuda/attend/hopper/decode/decode_family.hpp"
#include "kernels/cuda/attend/hopper/latent/latent_family.hpp"
#include "kernels/cuda/attend/hopper/latent_float8/latent_float8_family.hpp"
#include "kernels/cuda/attend/hopper/prefill/prefill_family.hpp"
#include "kernels/cuda/attend/mma/mma_family.hpp"
#include "kernels/cuda/attend/plain/plain_family.hpp"
#include "kernels/cuda/common/sources.hpp"

namespace kvmesh::cuda {

int long_row_class(AttendCase what) {
  what.rows = row_class_of(std::numeric_limits<std::int64_t>::max(), what.shape);
  if (what.kinds.pool != Dtype::kFloat8E4M3 || prefill_family().choose(what)) return what.rows;
  const int few = what.kinds.latent ? 64 : what.shape.v_dim > 128 ? 16 : 32;
  return what.group() <= few ? few : what.rows;
}

AttendVariant choose_attend(const AttendCase& what) {
  require(what.shape.page_size > 0, "attend: pages of {} tokens: they need at least 1",
          what.shape.page_size);
  if (what.exact) {
    if (auto variant = exact_family().choose(what)) return *std::move(variant);
    throw Unsupported(fmt::format(
        "attend: reproducible sums on a GPU need rows of 16-bit elements at multiples of 16 bytes, "
        "not {} with dims {} and {}",
        name(what.kinds.pool), what.shape.k_dim, what.shape.v_dim));
  }
  for (const AttendFamily* family :
       {&decode_family(), &latent_family(), &latent_float8_family(), &prefill_family(),
        &decode_gather_family(), &latent_gather_family(), &prefill_gather_family(),
        &mma_family()}) {
    if (auto variant = family->choose(what)) return *std::move(variant);
  }
  return *plain_family().choose(what);
}

jit::Program attend_program(const AttendVariant& variant, const CudaMods& mods,
                            const std::string& architecture) {
  return {.files = cuda_kernel_sources(),
          .source = variant.source,
          .constants = variant.constants,
          .mods = mods.text,
          .architecture = architecture};
}

jit::Program merge_program(int v_dim, bool merges_shared, const std::string& architecture) {
  jit::Program program{.files = cuda_kernel_sources(),
                       .source = "kernels/cuda/attend/common/merge.cuh",
                       .architecture = architecture};
  program.constants.set("kDimV", v_dim)
      .set("kMergesShared", merges_shared)
      .set("kOverlaps", jit::can_overlap_launches(architecture));
  return program;
}

}  // namespace kvmesh::cuda
