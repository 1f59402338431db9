// A pool as the copy engine reads it: for the Hopper families.
#pragma once

#include "kernels/cuda/attend/common/family.hpp"
#include "kernels/cuda/attend/hopper/hopper_params.hpp"

namespace kvmesh::cuda {

/// Tokens of a box at the most: a page of a head, or 64 tokens of a larger page.
inline constexpr int kMostBoxTokens = 64;

/// Returns whether the chip and the copy engine support the case's pool: 16-bit or float8, without
/// gaps or in boxes, pages of 8, 16, 32 or a multiple of 64 tokens; dims of 64 to 256, multiples of
/// 32, for float8 of 64; 16-bit latent pages, of dims up to 576 and 512 that are multiples of 64.
bool takes_pool(const AttendCase& what);
/// The same of float8 latent pages, whose keys are longer than their values.
bool takes_latent_float8_pool(const AttendCase& what);

/// Returns whether warps can gather the rows of the case's pool: 16-bit latent pages, also with
/// gaps, on the same chip and with the same dims. Keys of up to 256 are left to mma, and pages
/// whose tokens are no power of two to the plain kernel: dividing by them takes registers that
/// outputs have.
bool gathers_pool(const AttendCase& what);

/// Returns the same for kernels of many rows: 16-bit pages of any number of tokens, latent ones
/// included, with dims of 64 to 256 that are multiples of 64.
bool gathers_for_many_rows(const AttendCase& what);

/// @throws Unsupported where the driver is too old; InvalidArgument if it refuses the pool.
HopperParams with_pool_maps(const AttendParams& params, const ConstKvPool& pool);
/// Rows of latent pages come in two boxes: v_map has the first half of the values, k_map the rest
/// of the key. Both begin at the row's first element.
HopperParams with_latent_maps(const AttendParams& params, const ConstKvPool& pool);
/// v_map has the values, k_map the elements of keys behind them: atoms of 576 elements would be
/// half as long, and the copy engine takes as long for half.
HopperParams with_latent_float8_maps(const AttendParams& params, const ConstKvPool& pool);
/// For kernels that gather rows.
HopperParams without_maps(const AttendParams& params);

}  // namespace kvmesh::cuda
