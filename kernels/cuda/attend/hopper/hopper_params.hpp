// Parameters of the Hopper kernels. One text for the host and for NVRTC.
#pragma once

#include "kernels/cuda/attend/common/params.hpp"
#include "kernels/cuda/attend/hopper/instructions/tensor_map.hpp"
#include "kernels/cuda/attend/plain/plain_params.hpp"

namespace kvmesh::cuda {

/// The steps in a map from page to page and from head to head. Heads that are whole atoms apart
/// follow one another along the atoms, others along the pages.
struct HeadSteps {
  std::int32_t pages;  // pages of the map from page to page
  std::int32_t heads;  // pages of the map from head to head
  std::int32_t atoms;  // atoms from head to head
};

/// The pool's halves as [pages][page_size / 8][atoms][8][64], of float8 as image.hpp says: a box is
/// a page of a head. Where warps gather keys there are no maps.
struct HopperParams {
  TensorMap k_map;
  TensorMap v_map;
  AttendParams attend;
  DeviceScales scales;  // of float8 pages
  HeadSteps k_steps;
  HeadSteps v_steps;
};

}  // namespace kvmesh::cuda
