// The peer combine: one kernel stores this rank's rows into their owners' windows and merges its
// own as they arrive.
//
//   blocks 0 .. n-2   send: every row of mine ──► slot of its owner's window
//                     merge: each row that I own, out of my slot, in rank order
//   block n-1         sends every rank the epoch of this combine, and waits for theirs
//
// If the merge of attention has sent the rows already, this kernel begins beside that one and
// only merges.
//
// Why two slots are enough. A rank writes the slot of epoch e when its kernel of e runs: after its
// kernel of e-1 has ended, whose last block has seen from every rank p that p had begun e-1. p had
// then ended e-2, on its one stream, and so has read the slot that e and e-2 share. The same holds
// for what a merge of attention stores on behalf of e, since it runs between the two kernels. The
// rows themselves would show the same, but not of a rank that has none for this one.
//
// Why the epoch is on the device. A graph replays the same parameters, so the kernel counts for
// itself. An epoch comes again after 2^32 combines; what a place of a slot has held since, without
// being written, is then the only thing that could be mistaken.
//
// Products are rounded before they are added, and sources are added in rank order, as on the host.
// Every rank's rows travel through the owner's window, also the owner's own: all are rounded to the
// wire's type alike, so the result does not depend on who owns a row.
#include <algorithm>

#include "comm/combine/half_bits.cuh"
#include "comm/combine/peer/kernels/peer_cells.cuh"
#include "core/cuda/device/dependent_launch.cuh"
#include "core/cuda/launch_overlapping.hpp"
#include "core/cuda/load_kernels.hpp"
#include "core/pod/row_merge.hpp"

namespace kvmesh::cuda {
namespace {

// Blocks on an SM that registers are kept for: what more ranks have under way takes more of them.
template <RowForm Form, int Most>
constexpr int kResident = Form == RowForm::kLines&& Most != 2 ? 1 : 2;

template <Dtype Wire, RowForm Form, bool Wide>
__device__ void send_rows(const PeerParams& p, std::uint32_t epoch) {
  const CombineTarget& to = p.to;
  const int cells = to.tokens * to.heads * to.row_cells;
  for_my_indices(cells, [&](int index) {
    const MyCell mine = my_cell<Wire, Form>(p, index, cells);
    const int token = to.by_heads.quotient(mine.row);
    const int head = to.by_heads.remainder(mine.row, token);
    const bool is_sent = mine.is_there && (participants_of(to, token) >> to.rank & 1) != 0;
    float values[kCellValues<Wire, Form>];
    float lse = 0.0f;
    if (is_sent) {
      load_values<Wire, Form, Wide>(p.tensors.o_row(token, head), mine, values);
      if (ends_form<Form>(mine.cell)) lse = p.tensors.lse_of(token, head);
    }
    __syncwarp();  // the threads of a line store together
    if (is_sent) {
      store_cell(to, place_of_row(to, token, head), mine.cell, epoch,
                 packed_cell<Wire, Form>(values, mine.cell, lse, epoch));
    }
    return true;
  });
}

/// A row of mine, as one thread sees it.
struct OwnCell {
  MyCell mine;
  int token, head;  // within my share
  std::uint64_t participants;
};

/// The cell of `source`: see awaited_cell in peer_exchange.cuh.
template <RowForm Form>
__device__ uint4 awaited_cell(const PeerParams& p, const OwnCell& own, int source,
                              std::uint32_t epoch, PeerWait& wait, uint4 cell) {
  const bool is_sent = own.mine.is_there && (own.participants >> source & 1) != 0;
  const unsigned char* from = cell_at(p.to, p.to.rank, source, own.mine.row, own.mine.cell, epoch);
  return awaited_cell<Form>(p.call, from, is_sent, source, epoch, wait, cell);
}

/// The cell of a rank that takes no part: without a key.
__device__ uint4 no_cell() { return {0, 0, __float_as_uint(kNoKeys), 0}; }

__device__ uint4 loaded_cell(const PeerParams& p, const OwnCell& own, int source,
                             std::uint32_t epoch) {
  if (!own.mine.is_there || (own.participants >> source & 1) == 0) return no_cell();
  return ld_relaxed_sys_b128(cell_at(p.to, p.to.rank, source, own.mine.row, own.mine.cell, epoch));
}

__device__ float exp_of(float x) { return expf(x); }

/// Adds a source's part to the sums. One without a visible key adds nothing, not even 0 * NaN.
template <Dtype Wire, RowForm Form>
__device__ void add_part(const uint4& cell, float lse, float merged, float* sums) {
  if (lse == kNoKeys) return;
  const float weight = merge_weight(lse, merged, exp_of);
  float values[kCellValues<Wire, Form>];
  unpack_cell<Wire, Form>(cell, values);
#pragma unroll
  for (int k = 0; k < kCellValues<Wire, Form>; ++k) {
    sums[k] = __fadd_rn(sums[k], __fmul_rn(weight, values[k]));
  }
}

/// Up to `Most` ranks: all loads are under way at once, and what came stays in registers.
template <RowForm Form, int Most>
struct Sources {
  uint4 cells[Most];

  __device__ void await(const PeerParams& p, const OwnCell& own, std::uint32_t epoch,
                        PeerWait& wait) {
#pragma unroll
    for (int r = 0; r < Most; ++r) {
      cells[r] = r < p.to.ranks ? loaded_cell(p, own, r, epoch) : no_cell();
    }
#pragma unroll
    for (int r = 0; r < Most; ++r) {
      if (r < p.to.ranks) cells[r] = awaited_cell<Form>(p, own, r, epoch, wait, cells[r]);
    }
  }
  template <class Body>
  __device__ void for_each(const PeerParams&, const OwnCell&, std::uint32_t,
                           const Body& body) const {
#pragma unroll
    for (int r = 0; r < Most; ++r) body(cells[r], __uint_as_float(from_end<Form>(cells[r].z)));
  }
};

/// Any number of ranks: what has come is loaded again when it is used.
template <RowForm Form>
struct Sources<Form, 0> {
  __device__ void await(const PeerParams& p, const OwnCell& own, std::uint32_t epoch,
                        PeerWait& wait) {
    for (int r = 0; r < p.to.ranks; ++r) {
      awaited_cell<Form>(p, own, r, epoch, wait, loaded_cell(p, own, r, epoch));
    }
  }
  template <class Body>
  __device__ void for_each(const PeerParams& p, const OwnCell& own, std::uint32_t epoch,
                           const Body& body) const {
    for (int r = 0; r < p.to.ranks; ++r) {
      const uint4 cell = loaded_cell(p, own, r, epoch);
      body(cell, __uint_as_float(from_end<Form>(cell.z)));
    }
  }
};

/// `count` neighbours of the output, from `at` on. Wide: they begin at multiples of four or two.
template <int Unit, bool Wide>
__device__ void store_unit(const PeerParams& p, std::int64_t at, const float* values, int count) {
  auto* floats = static_cast<float*>(p.tensors.out_o) + at;
  auto* halves = static_cast<std::uint16_t*>(p.tensors.out_o) + at;
  const bool is_float = p.tensors.out_dtype == Dtype::kFloat32;
  const auto half = [&](int k) { return half_bits(values[k], p.tensors.out_dtype); };
  if constexpr (Wide && Unit == 4) {
    if (is_float) {
      *reinterpret_cast<float4*>(floats) = make_float4(values[0], values[1], values[2], values[3]);
    } else {
      *reinterpret_cast<ushort4*>(halves) = make_ushort4(half(0), half(1), half(2), half(3));
    }
  } else if constexpr (Wide) {
    static_assert(Unit == 2);
    if (is_float) {
      *reinterpret_cast<float2*>(floats) = make_float2(values[0], values[1]);
    } else {
      *reinterpret_cast<ushort2*>(halves) = make_ushort2(half(0), half(1));
    }
  } else {
    for (int k = 0; k < count; ++k) {
      if (is_float) {
        floats[k] = values[k];
      } else {
        halves[k] = half(k);
      }
    }
  }
}

template <Dtype Wire, RowForm Form, bool Wide>
__device__ void store_output(const PeerParams& p, const OwnCell& own, float merged,
                             const float* sums) {
  if (!own.mine.is_there) return;
  constexpr int kUnit = kUnitValues<Wire>;
  const std::int64_t row = p.tensors.out_at(own.token, own.head);
#pragma unroll
  for (int i = 0; i < kCellValues<Wire, Form>; i += kUnit) {
    if (i >= own.mine.count) continue;
    store_unit<kUnit, Wide>(p, row + own.mine.first + i, sums + i, min(kUnit, own.mine.count - i));
  }
  if (p.tensors.out_lse != nullptr && own.mine.cell == 0) {
    p.tensors.out_lse[p.tensors.out_lse_at(own.token, own.head)] = merged;
  }
}

template <Dtype Wire, RowForm Form, int Most, bool Wide>
__device__ void merge_rows(const PeerParams& p, std::uint32_t epoch) {
  const int cells = p.own_rows * p.to.row_cells;
  PeerWait wait;
  for_my_indices(cells, [&](int index) {
    OwnCell own{.mine = my_cell<Wire, Form>(p, index, cells)};
    own.token = p.by_own_heads.quotient(own.mine.row);
    own.head = p.by_own_heads.remainder(own.mine.row, own.token);
    if (p.to.shares.axis == RowShares::Axis::kOwners && own.mine.is_there) {
      own.mine.is_there = static_cast<int>(p.to.owners[own.token]) == p.to.rank;
    }
    own.participants =
        own.mine.is_there ? participants_of(p.to, p.own_tokens_begin + own.token) : 0;
    Sources<Form, Most> sources;
    sources.await(p, own, epoch, wait);
    if (wait.has_failed()) return false;

    const auto for_each = [&](const auto& body) { sources.for_each(p, own, epoch, body); };
    float largest = kNoKeys, total = 0.0f;
    for_each([&](const uint4&, float lse) { largest = fmaxf(largest, lse); });
    const float shift = merge_shift(largest);
    for_each([&](const uint4&, float lse) { total = __fadd_rn(total, expf(lse - shift)); });
    const float merged = shift + logf(total);
    float sums[kCellValues<Wire, Form>] = {};
    for_each([&](const uint4& cell, float lse) { add_part<Wire, Form>(cell, lse, merged, sums); });
    store_output<Wire, Form, Wide>(p, own, merged, sums);
    return true;
  });
}

template <Dtype Wire, RowForm Form, int Most, bool Wide>
__global__ void __launch_bounds__(kBlockThreads<Form>, kResident<Form, Most>)
    combine(const __grid_constant__ PeerParams p) {
  start_next_kernel(p.call);
  // Rows that the kernel before sends come through the window, as those of the other ranks do.
  if (!p.rows_are_sent) griddepcontrol_wait();
  const std::uint32_t epoch = next_epoch(p.call);
  if (is_meeting_block()) {
    meet_peers(p.call, epoch);
  } else {
    if (!p.rows_are_sent) send_rows<Wire, Form, Wide>(p, epoch);
    merge_rows<Wire, Form, Most, Wide>(p, epoch);
  }
  // The kernel before reads the epoch, too; and a kernel that waits for this one waits for that
  // one.
  if (p.rows_are_sent) griddepcontrol_wait();
  end_epoch(p.call, epoch);
}

using Kernel = void (*)(PeerParams);

template <Dtype Wire, RowForm Form>
constexpr Kernel kKernels[] = {combine<Wire, Form, 2, true>, combine<Wire, Form, 8, true>,
                               combine<Wire, Form, 0, true>, combine<Wire, Form, 0, false>};

template <Dtype Wire>
Kernel kernel_for(RowForm form, int index) {
  return form == RowForm::kWords ? kKernels<Wire, RowForm::kWords>[index]
                                 : kKernels<Wire, RowForm::kLines>[index];
}

Kernel kernel_for(Dtype wire, RowForm form, int index) {
  switch (wire) {
    case Dtype::kFloat32:
      return kernel_for<Dtype::kFloat32>(form, index);
    case Dtype::kFloat16:
      return kernel_for<Dtype::kFloat16>(form, index);
    case Dtype::kBFloat16:
      return kernel_for<Dtype::kBFloat16>(form, index);
    case Dtype::kFloat8E4M3:
      break;  // no partial travels as such
  }
  return nullptr;
}

/// Units of the partial and of the output begin where one access takes them.
bool is_wide(const PeerParams& p) {
  const int unit = 8 * kUnitBytes / info_of(p.to.travels_as).bits;
  const auto fits = [&](const void* data, Dtype dtype, std::int64_t stride_0,
                        std::int64_t stride_1) {
    const auto bytes = static_cast<std::uintptr_t>(unit * info_of(dtype).bits / 8);
    return reinterpret_cast<std::uintptr_t>(data) % bytes == 0 && stride_0 % unit == 0 &&
           stride_1 % unit == 0;
  };
  return p.to.dim % unit == 0 &&
         fits(p.tensors.o, Dtype::kFloat32, p.tensors.o_token_stride, p.tensors.o_head_stride) &&
         fits(p.tensors.out_o, p.tensors.out_dtype, p.tensors.out_token_stride,
              p.tensors.out_head_stride);
}

}  // namespace

cudaError_t load_peer_kernels() {
  cudaError_t status = cudaSuccess;
  for (Dtype wire : kAllDtypes) {
    if (info_of(wire).has_scales) continue;
    for (RowForm form : {RowForm::kWords, RowForm::kLines}) {
      for (int index = 0; index < 4 && status == cudaSuccess; ++index) {
        status = load_kernels(kernel_for(wire, form, index));
      }
    }
  }
  return status;
}

cudaError_t launch_peer_combine(const PeerParams& params, cudaStream_t stream) {
  const int index = !is_wide(params) ? 3 : params.to.ranks <= 2 ? 0 : params.to.ranks <= 8 ? 1 : 2;
  const bool are_words = params.to.form == RowForm::kWords;
  const int threads = are_words ? kBlockThreads<RowForm::kWords> : kBlockThreads<RowForm::kLines>;
  const int resident = are_words || index == 0 ? 2 : 1;  // as kResident
  const std::int64_t sent =
      params.rows_are_sent ? 0 : std::int64_t{params.to.tokens} * params.to.heads;
  const std::int64_t rows = std::max<std::int64_t>(sent, params.own_rows);
  const std::int64_t wanted = (rows * params.to.row_cells + threads - 1) / threads;
  const std::int64_t most = std::max(1, params.most_blocks * resident / 2);
  const auto blocks = static_cast<unsigned>(std::clamp<std::int64_t>(wanted, 1, most));
  return launch_overlapping(kernel_for(params.to.travels_as, params.to.form, index), blocks + 1,
                            static_cast<unsigned>(threads), params, stream);
}

}  // namespace kvmesh::cuda
