#include "kernels/cuda/load_built_kernels.hpp"

#include "core/cuda/check.hpp"
#include "kernels/cuda/plan/kernels.hpp"
#include "kernels/cuda/pool/page_rows.hpp"
#include "kernels/cuda/pool/token_rows.hpp"

namespace kvmesh::cuda {

void load_built_kernels() {
  check(load_plan_kernels(), "loading the kernels of planning");
  check(load_token_kernel(), "loading the kernel that copies tokens");
  check(load_page_kernel(), "loading the kernel that moves pages");
}

}  // namespace kvmesh::cuda
