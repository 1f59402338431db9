#include "kernels/cuda/attend_cuda.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attend_checks.hpp"

namespace kvmesh::cuda {
namespace {

constexpr int kMergeWarps = 4;  // of a thread block of merge.cuh

DevicePool device_pool(const ConstTensorView& pool) {
  const auto bytes = [&](int dim) {
    const auto stride = pool.stride(dim) * static_cast<std::int64_t>(size_bytes(pool.dtype));
    require(stride >= 0 && stride <= std::numeric_limits<std::uint32_t>::max(),
            "attend_partial: a stride of the pool {} is over 4 GiB", describe(pool));
    return static_cast<std::uint32_t>(stride);
  };
  return {.data = pool.data,
          .head_stride = pool.stride(1),
          .page_stride_bytes = bytes(0),
          .token_stride_bytes = bytes(2)};
}

/// The largest row count of the sequences that fit a thread block for few rows: decode,
/// speculation.
std::int64_t rows_of_short_sequences(const AttentionShape& shape, const AttentionBatch& batch) {
  const int group = shape.q_heads / shape.kv_heads;
  std::int64_t most = 1;
  for (std::size_t s = 0; s + 1 < batch.q_indptr.size(); ++s) {
    const std::int64_t rows = (batch.q_indptr[s + 1] - batch.q_indptr[s]) * group;
    if (rows <= 64) most = std::max(most, rows);
  }
  return most;
}

std::size_t type_bytes(ModType type) { return type == ModType::kBool ? 1 : 4; }

}  // namespace

CudaAttend::CudaAttend(KernelStore& kernels, const AttentionShape& shape,
                       const AttentionBatch& batch, const AttentionOptions& options,
                       const TensorKinds& kinds)
    : store_(&kernels),
      shape_(shape),
      scale_(options.scale.value_or(1.0f / std::sqrt(static_cast<float>(shape.k_dim)))),
      fold_scale_(options.score.is_identity() && scale_ > 0.0f),
      first_head_(options.first_head),
      mods_(emit_cuda(options.score.graph(), options.mask.graph())) {
  check_attention(shape, batch);
  row_classes_[0] = row_class_of(rows_of_short_sequences(shape, batch), shape);
  row_classes_[1] = row_class_of(std::numeric_limits<std::int64_t>::max(), shape);
  const AttendWork work = make_attend_work(shape, batch, options,
                                           {.rows_per_block = row_classes_[1],
                                            .short_rows = row_classes_[0],
                                            .keys_per_split = std::numeric_limits<int>::max()});
  tokens_ = static_cast<std::int64_t>(work.positions.size());
  tiles_ = work.tiles;
  for (const LocalPage& page : batch.pages) max_page_ = std::max(max_page_, page.page);
  upload_mods();
  merge_kernel_ = store_->get(merge_program(store_->architecture()), "kvmesh_merge");
  positions_ = upload(std::span(work.positions));
  upload_work(make_device_work(shape, batch.kv_lens, work, row_classes_[0], launch_shape(kinds, 0),
                               launch_shape(kinds, 1)));
  kernels_for(kinds);
}

AttendVariant CudaAttend::variant_of(const TensorKinds& kinds, int row_class) const {
  return choose_attend(shape_, kinds, fold_scale_, row_class,
                       {.block_bytes = store_->block_shared_bytes(),
                        .multiprocessor_bytes = store_->multiprocessor_shared_bytes()});
}

const CudaAttend::Kernels& CudaAttend::kernels_for(const TensorKinds& kinds) {
  if (const auto found = kernels_.find(kinds); found != kernels_.end()) return found->second;
  Kernels made;
  for (int i = 0; i < 2; ++i) {
    made.variants[i] = variant_of(kinds, row_classes_[i]);
    if (launches_[i].blocks == 0) continue;  // nothing to compile for
    made.kernels[i] = store_->get(attend_program(made.variants[i], mods_, store_->architecture()),
                                  made.variants[i].kernel_name(), made.variants[i].shared_bytes());
  }
  return kernels_.emplace(kinds, made).first->second;
}

LaunchShape CudaAttend::launch_shape(const TensorKinds& kinds, int launch) const {
  const AttendVariant variant = variant_of(kinds, row_classes_[launch]);
  return {.slots = store_->multiprocessors() * variant.blocks_per_multiprocessor,
          .tile_keys = variant.tile.tile_keys()};
}

void CudaAttend::upload_mods() {
  for (std::size_t i = 0; i < mods_.buffers.size(); ++i) {
    const ModBuffer& buffer = mods_.buffers[i];
    const std::span bytes(static_cast<const std::byte*>(buffer.data),
                          static_cast<std::size_t>(buffer.size) * type_bytes(buffer.type));
    mod_data_.push_back(upload(bytes));
    mod_buffers_.views[i] = {mod_data_.back().data(), static_cast<int>(buffer.size)};
  }
}

void CudaAttend::upload_work(const DeviceWork& work) {
  visits_ = upload(std::span(work.visits));
  head_classes_ = upload(std::span(work.head_classes));
  merges_ = upload(std::span(work.merges));
  merge_count_ = static_cast<int>(work.merges.size());
  for (const DeviceMerge& merge : work.merges) merge_rows_ = std::max(merge_rows_, merge.rows);
  const LaunchWork* launches[] = {&work.short_rows, &work.long_rows};
  for (int i = 0; i < 2; ++i) {
    launches_[i].tasks = upload(std::span(launches[i]->tasks));
    launches_[i].task_begin = upload(std::span(launches[i]->task_begin));
    launches_[i].blocks = launches[i]->blocks();
  }
  const auto rows = static_cast<std::size_t>(work.workspace_rows);
  workspace_o_ = DeviceBuffer(rows * static_cast<std::size_t>(shape_.v_dim) * sizeof(float));
  workspace_lse_ = DeviceBuffer(rows * sizeof(float));
}

void CudaAttend::launch(const ConstTensorView& q, const ConstKvPool& pool, const Partial& out,
                        cudaStream_t stream) {
  check_attend_tensors(shape_, tokens_, max_page_, q, pool, out);
  const Kernels& kernels = kernels_for(kinds_of(q, pool));
  AttendParams params{.q = q.data,
                      .q_token_stride = q.stride(0),
                      .q_head_stride = q.stride(1),
                      .k = device_pool(pool.k),
                      .v = device_pool(pool.v),
                      .o = static_cast<float*>(out.o.data),
                      .o_token_stride = out.o.stride(0),
                      .o_head_stride = out.o.stride(1),
                      .lse = static_cast<float*>(out.lse.data),
                      .lse_token_stride = out.lse.stride(0),
                      .lse_head_stride = out.lse.stride(1),
                      .workspace_o = workspace_o_.as<float>(),
                      .workspace_lse = workspace_lse_.as<float>(),
                      .tasks = nullptr,
                      .task_begin = nullptr,
                      .visits = visits_.as<DeviceVisit>(),
                      .head_classes = head_classes_.as<std::uint8_t>(),
                      .positions = positions_.as<std::int32_t>(),
                      .scale = scale_,
                      .first_head = first_head_,
                      .mods = mod_buffers_};
  for (int i = 0; i < 2; ++i) {
    if (launches_[i].blocks == 0) continue;
    params.tasks = launches_[i].tasks.as<DeviceTask>();
    params.task_begin = launches_[i].task_begin.as<std::int32_t>();
    const AttendVariant& variant = kernels.variants[i];
    kernels.kernels[i].launch({.stream = stream,
                               .grid = dim3(static_cast<unsigned>(launches_[i].blocks)),
                               .block = dim3(static_cast<unsigned>(variant.threads())),
                               .shared_bytes = static_cast<std::size_t>(variant.shared_bytes())},
                              params);
  }
  if (merge_count_ > 0) launch_merge(out, stream);
}

void CudaAttend::launch_merge(const Partial& out, cudaStream_t stream) const {
  const MergeParams params{.merges = merges_.as<DeviceMerge>(),
                           .workspace_o = workspace_o_.as<float>(),
                           .workspace_lse = workspace_lse_.as<float>(),
                           .o = static_cast<float*>(out.o.data),
                           .o_token_stride = out.o.stride(0),
                           .o_head_stride = out.o.stride(1),
                           .lse = static_cast<float*>(out.lse.data),
                           .lse_token_stride = out.lse.stride(0),
                           .lse_head_stride = out.lse.stride(1),
                           .group = shape_.q_heads / shape_.kv_heads,
                           .v_dim = shape_.v_dim};
  merge_kernel_.launch(
      {.stream = stream,
       .grid = dim3(static_cast<unsigned>(merge_count_), static_cast<unsigned>(merge_rows_)),
       .block = dim3(32 * kMergeWarps),
       .overlaps_previous = has_bulk_copies(store_->architecture())},
      params);
}

std::int64_t CudaAttend::workspace_bytes() const {
  return static_cast<std::int64_t>(workspace_o_.size_bytes() + workspace_lse_.size_bytes());
}

std::int64_t CudaAttend::plan_bytes() const {
  std::size_t bytes = visits_.size_bytes() + head_classes_.size_bytes() + positions_.size_bytes() +
                      merges_.size_bytes();
  for (const DeviceLaunch& launch : launches_) {
    bytes += launch.tasks.size_bytes() + launch.task_begin.size_bytes();
  }
  return static_cast<std::int64_t>(bytes);
}

}  // namespace kvmesh::cuda
