#include "kernels/cuda/pool/pool_writer.hpp"

#include "core/check.hpp"
#include "kernels/cuda/common/row_alignment.hpp"
#include "kernels/cuda/common/sources.hpp"
#include "kernels/cuda/pool/params.hpp"
#include "kernels/pool_checks.hpp"

namespace kvmesh::cuda {
namespace {

constexpr int kBlockThreads = 256;

WritablePool writable(const TensorView& pool) {
  return {.data = pool.data,
          .page_stride = pool.stride(0),
          .head_stride = pool.stride(1),
          .token_stride = pool.stride(2)};
}

WritableScale writable(const BasicRowScale<TensorView>& scale) {
  return {.number = scale.number,
          .per_token = writable(scale.per_token),
          .is_given = is_per_head(scale.per_token)};
}

NewRows new_rows(const ConstTensorView& rows) {
  return {.data = rows.data, .token_stride = rows.stride(0), .head_stride = rows.stride(1)};
}

/// True if rows begin and end at multiples of 16 bytes.
bool has_vectors(const ConstTensorView& view) {
  const auto unit = static_cast<std::int64_t>(16 / size_bytes(view.dtype));
  return begins_at_16_bytes(view) && view.size(view.dims - 1) % unit == 0;
}

int dim_of(const ConstTensorView& view) { return static_cast<int>(view.size(view.dims - 1)); }

/// A launch of `threads` threads, in the chain of launches of a layer, which overlap. Thread blocks
/// that wait for the kernel before them leave room on each SM: that kernel may itself wait for one
/// of another rank on this GPU.
jit::Launch launch_of(const KernelStore& store, std::int64_t threads, cudaStream_t stream) {
  const std::int64_t blocks = (threads + kBlockThreads - 1) / kBlockThreads;
  return {.stream = stream,
          .grid = dim3(static_cast<unsigned>(blocks)),
          .block = dim3(kBlockThreads),
          .overlaps_previous =
              blocks <= store.multiprocessors() && jit::can_overlap_launches(store.architecture())};
}

}  // namespace

jit::Program append_program(const AppendVariant& variant, const std::string& architecture) {
  jit::Program program{.files = cuda_kernel_sources(),
                       .source = "kernels/cuda/pool/append.cuh",
                       .architecture = architecture};
  program.constants.set("kDimK", variant.k_dim)
      .set("kDimV", variant.v_dim)
      .set("kVectors", variant.vectors)
      .set("kNewType", variant.fresh)
      .set("kPoolType", variant.pool);
  return program;
}

jit::Program append_float8_program(const AppendFloat8Variant& variant,
                                   const std::string& architecture) {
  jit::Program program{.files = cuda_kernel_sources(),
                       .source = "kernels/cuda/pool/append_float8.cuh",
                       .architecture = architecture};
  program.constants.set("kDimK", variant.k_dim)
      .set("kDimV", variant.v_dim)
      .set("kNewType", variant.fresh)
      .set("kPerToken", variant.per_token);
  return program;
}

const jit::Kernel& PoolWriter::kernel_for(const AppendVariant& variant) {
  const auto found = append_kernels_.find(variant);
  if (found != append_kernels_.end()) return found->second;
  const jit::Program program = append_program(variant, store_->architecture());
  return append_kernels_.emplace(variant, store_->get(program, "kvmesh_append")).first->second;
}

const jit::Kernel& PoolWriter::kernel_for(const AppendFloat8Variant& variant) {
  const auto found = append_float8_kernels_.find(variant);
  if (found != append_float8_kernels_.end()) return found->second;
  const jit::Program program = append_float8_program(variant, store_->architecture());
  return append_float8_kernels_.emplace(variant, store_->get(program, "kvmesh_append_float8"))
      .first->second;
}

void PoolWriter::append_float8(const KvPool& pool, const ConstTensorView& k, int v_dim,
                               const AppendParams& params, cudaStream_t stream) {
  const jit::Kernel& kernel =
      kernel_for(AppendFloat8Variant{.k_dim = dim_of(k),
                                     .v_dim = v_dim,
                                     .fresh = k.dtype,
                                     .per_token = !pool.k_scale.per_token.empty()});
  const std::int64_t warps = k.size(0) * k.size(1) * (v_dim > 0 ? 2 : 1);
  kernel.launch(
      launch_of(*store_, 32 * warps, stream),
      AppendFloat8Params{
          .append = params, .k_scale = writable(pool.k_scale), .v_scale = writable(pool.v_scale)});
}

void PoolWriter::check(const KvPool& pool) {
  require(pool.k_scale.per_token.empty() == pool.v_scale.per_token.empty(),
          "append: keys and values must have one kind of scale");
}

void PoolWriter::append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
                        const TokenSlot* slots, cudaStream_t stream) {
  if (k.size(0) == 0) return;
  const AppendParams params{.k_pool = writable(pool.k),
                            .v_pool = writable(pool.v),
                            .k = new_rows(k),
                            .v = new_rows(v),
                            .slots = slots,
                            .tokens = static_cast<std::int32_t>(k.size(0)),
                            .kv_heads = static_cast<std::int32_t>(k.size(1))};
  const int v_dim = pool.is_latent() ? 0 : dim_of(v);  // elements of values to write
  if (pool.k.dtype == Dtype::kFloat8E4M3) return append_float8(pool, k, v_dim, params, stream);
  const bool v_vectors = v_dim == 0 || (has_vectors(pool.v) && has_vectors(v));
  const bool vectors =
      k.dtype == pool.k.dtype && has_vectors(pool.k) && has_vectors(k) && v_vectors;
  const jit::Kernel& kernel = kernel_for(AppendVariant{.k_dim = dim_of(k),
                                                       .v_dim = v_dim,
                                                       .fresh = k.dtype,
                                                       .pool = pool.k.dtype,
                                                       .vectors = vectors});
  const auto unit = vectors ? static_cast<std::int64_t>(16 / size_bytes(k.dtype)) : 1;
  const std::int64_t units = k.size(0) * k.size(1) * (dim_of(k) / unit + v_dim / unit);
  kernel.launch(launch_of(*store_, units, stream), params);
}

}  // namespace kvmesh::cuda
