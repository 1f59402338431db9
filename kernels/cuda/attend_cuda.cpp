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

int group_of(const AttentionShape& shape) { return shape.q_heads / shape.kv_heads; }

void check_shape(const AttentionShape& shape) {
  check_attention(
      shape, {.q_indptr = {0}, .kv_lens = {}, .q_positions = {}, .page_indptr = {0}, .pages = {}});
}

/// Most rows of a thread block for few rows: decode, speculation.
constexpr std::int64_t kShortRows = 64;

std::int64_t rows_of_limits(const AttentionShape& shape, const AttendLimits& limits) {
  check_shape(shape);
  const std::int64_t rows = limits.queries * group_of(shape);
  require(limits.sequences > 0 && limits.queries > 0 && limits.pages >= 0 && rows <= kShortRows,
          "attention: graphs are for up to {} rows (queries x query heads of a kv head) a "
          "sequence, not {} x {}",
          kShortRows, limits.queries, group_of(shape));
  return rows;
}

void check_fits(const char* what, std::size_t count, std::size_t limit) {
  require(count <= limit, "attention: the plan has {} {}, its limit is {}", count, what, limit);
}

/// The largest row count of the sequences that fit a thread block for few rows: decode,
/// speculation.
std::int64_t rows_of_short_sequences(const AttentionShape& shape, const AttentionBatch& batch) {
  check_shape(shape);
  require(!batch.q_indptr.empty(), "attention: q_indptr is empty");
  std::int64_t most = 1;
  for (std::size_t s = 0; s + 1 < batch.q_indptr.size(); ++s) {
    const std::int64_t rows = (batch.q_indptr[s + 1] - batch.q_indptr[s]) * group_of(shape);
    if (rows <= kShortRows) most = std::max(most, rows);
  }
  return most;
}

std::size_t type_bytes(ModType type) { return type == ModType::kBool ? 1 : 4; }

}  // namespace

CudaAttend::CudaAttend(KernelStore& kernels, const AttentionShape& shape,
                       const AttentionOptions& options, const TensorKinds& kinds,
                       std::int64_t short_rows)
    : store_(&kernels),
      shape_(shape),
      options_(options),
      kinds_(kinds),
      scale_(options.scale.value_or(1.0f / std::sqrt(static_cast<float>(shape.k_dim)))),
      fold_scale_(options.score.is_identity() && scale_ > 0.0f),
      has_head_classes_(options.block_mask != nullptr && options.block_mask->heads() > 1),
      mods_(emit_cuda(options.score.graph(), options.mask.graph())),
      row_classes_{row_class_of(short_rows, shape),
                   row_class_of(std::numeric_limits<std::int64_t>::max(), shape)} {
  options_.block_mask = nullptr;
  upload_mods();
  merge_kernel_ = store_->get(merge_program(store_->architecture()), "kvmesh_merge");
}

CudaAttend::CudaAttend(KernelStore& kernels, const AttentionShape& shape,
                       const AttentionBatch& batch, const AttentionOptions& options,
                       const TensorKinds& kinds)
    : CudaAttend(kernels, shape, options, kinds, rows_of_short_sequences(shape, batch)) {
  plan(batch, options.block_mask, cudaStreamPerThread);
  check(cudaStreamSynchronize(cudaStreamPerThread), "planning attention");
  kernels_for(kinds);
}

CudaAttend::CudaAttend(KernelStore& kernels, const AttentionShape& shape,
                       const AttentionOptions& options, const TensorKinds& kinds,
                       const AttendLimits& limits)
    : CudaAttend(kernels, shape, options, kinds, rows_of_limits(shape, limits)) {
  reserve(limits);
  plan({.q_indptr = {0}, .kv_lens = {}, .q_positions = {}, .page_indptr = {0}, .pages = {}},
       nullptr, cudaStreamPerThread);
  check(cudaStreamSynchronize(cudaStreamPerThread), "planning attention");
  kernels_for(kinds);
}

AttendVariant CudaAttend::variant_of(const TensorKinds& kinds, int row_class) const {
  return choose_attend(shape_, kinds, fold_scale_, row_class,
                       {.block_bytes = store_->block_shared_bytes(),
                        .multiprocessor_bytes = store_->multiprocessor_shared_bytes()});
}

const CudaAttend::Kernels& CudaAttend::kernels_for(const TensorKinds& kinds) {
  Kernels& found = kernels_[kinds];
  for (int i = 0; i < 2; ++i) {
    const bool is_there = !found.kernels[i].name().empty();
    if (launches_[i].grid == 0 || is_there) continue;
    found.variants[i] = variant_of(kinds, row_classes_[i]);
    found.variants[i].head_classes = has_head_classes_;
    found.kernels[i] =
        store_->get(attend_program(found.variants[i], mods_, store_->architecture()),
                    found.variants[i].kernel_name(), found.variants[i].shared_bytes());
  }
  return found;
}

LaunchShape CudaAttend::launch_shape(int launch) const {
  const AttendVariant variant = variant_of(kinds_, row_classes_[launch]);
  return {.slots = store_->multiprocessors() * variant.blocks_per_multiprocessor,
          .tile_keys = variant.tile.tile_keys()};
}

// Each cut between thread blocks makes one task more, and splits one block: at most a cut a slot.
void CudaAttend::reserve(const AttendLimits& limits) {
  const std::int64_t blocks = limits.sequences * shape_.kv_heads;
  const std::int64_t slots = launch_shape(0).slots;
  const bool has_head_masks = options_.mask.graph().depends_on(kDependsHead);
  const auto rows = static_cast<std::size_t>(2 * slots * row_classes_[0]);
  has_limits_ = true;
  launches_[0].grid = static_cast<int>(std::max(blocks, slots));
  launches_[0].tasks.reserve(static_cast<std::size_t>(blocks + slots));
  launches_[0].task_begin.reserve(static_cast<std::size_t>(launches_[0].grid) + 1);
  visits_.reserve(static_cast<std::size_t>(limits.pages * (has_head_masks ? shape_.kv_heads : 1)));
  positions_.reserve(static_cast<std::size_t>(limits.sequences * limits.queries));
  merge_count_ = static_cast<int>(std::min(blocks, slots));
  merge_rows_ = static_cast<int>(limits.queries) * group_of(shape_);
  merges_.reserve(static_cast<std::size_t>(merge_count_));
  workspace_o_.reserve(rows * static_cast<std::size_t>(shape_.v_dim));
  workspace_lse_.reserve(rows);
}

void CudaAttend::upload_mods() {
  for (std::size_t i = 0; i < mods_.buffers.size(); ++i) {
    const ModBuffer& buffer = mods_.buffers[i];
    const std::span bytes(static_cast<const std::byte*>(buffer.data),
                          static_cast<std::size_t>(buffer.size) * type_bytes(buffer.type));
    mod_data_.push_back(cuda::upload(bytes));
    mod_buffers_.views[i] = {mod_data_.back().data(), static_cast<int>(buffer.size)};
  }
}

void CudaAttend::plan(const AttentionBatch& batch, const LocalBlockMask* block_mask,
                      cudaStream_t stream) {
  check_attention(shape_, batch);
  require(has_head_classes_ || block_mask == nullptr || block_mask->heads() == 1,
          "attention: this plan was not made for a block mask with lists for each head");
  AttentionOptions options = options_;
  options.block_mask = block_mask;
  const AttendWork work = make_attend_work(shape_, batch, options,
                                           {.rows_per_block = row_classes_[1],
                                            .short_rows = row_classes_[0],
                                            .keys_per_split = std::numeric_limits<int>::max()});
  DeviceWork device = make_device_work(shape_, batch.kv_lens, work, row_classes_[0],
                                       launch_shape(0), launch_shape(1));
  if (has_limits_) {
    check_fits("sequences or queries", device.long_rows.tasks.size(), 0);
    check_fits("query tokens", work.positions.size(), positions_.capacity());
    check_fits("visited pages", device.visits.size(), visits_.capacity());
    check_fits("classes of heads", device.head_classes.size(), head_classes_.capacity());
    check_fits("tasks", device.short_rows.tasks.size(), launches_[0].tasks.capacity());
    pad_to_limits(device);
  }
  upload(device, work.positions, stream);
  tokens_ = std::ssize(work.positions);
  tiles_ = work.tiles;
  max_page_ = -1;
  for (const LocalPage& page : batch.pages) max_page_ = std::max(max_page_, page.page);
}

/// Thread blocks without a task, and merges without a row.
void CudaAttend::pad_to_limits(DeviceWork& work) const {
  std::vector<std::int32_t>& begin = work.short_rows.task_begin;
  begin.resize(static_cast<std::size_t>(launches_[0].grid) + 1, begin.back());
  work.merges.resize(static_cast<std::size_t>(merge_count_));
}

void CudaAttend::upload(const DeviceWork& work, const std::vector<std::int32_t>& positions,
                        cudaStream_t stream) {
  const LaunchWork* launches[] = {&work.short_rows, &work.long_rows};
  const auto bytes = [](const auto&... arrays) {
    return (Staging::padded(std::span(arrays).size_bytes()) + ...);
  };
  staging_.begin(bytes(work.visits, work.head_classes, work.merges, positions,
                       work.short_rows.tasks, work.short_rows.task_begin, work.long_rows.tasks,
                       work.long_rows.task_begin));
  staging_.copy(std::span(work.visits), visits_, stream);
  staging_.copy(std::span(work.head_classes), head_classes_, stream);
  staging_.copy(std::span(work.merges), merges_, stream);
  staging_.copy(std::span(positions), positions_, stream);
  for (int i = 0; i < 2; ++i) {
    staging_.copy(std::span(launches[i]->tasks), launches_[i].tasks, stream);
    staging_.copy(std::span(launches[i]->task_begin), launches_[i].task_begin, stream);
    if (!has_limits_) launches_[i].grid = launches[i]->blocks();
  }
  staging_.end(stream);
  if (has_limits_) return;
  merge_count_ = static_cast<int>(work.merges.size());
  merge_rows_ = 0;
  for (const DeviceMerge& merge : work.merges) merge_rows_ = std::max(merge_rows_, merge.rows);
  const auto rows = static_cast<std::size_t>(work.workspace_rows);
  workspace_o_.reserve(rows * static_cast<std::size_t>(shape_.v_dim));
  workspace_lse_.reserve(rows);
}

void CudaAttend::launch(const ConstTensorView& q, const ConstKvPool& pool, const Partial& out,
                        cudaStream_t stream) {
  // A captured launch is for any number of tokens up to the limit.
  const std::int64_t tokens = has_limits_ ? q.size(0) : tokens_;
  require(!has_limits_ || tokens >= static_cast<std::int64_t>(positions_.capacity()),
          "attend_partial: there are {} tokens in q, and the plan's limit is {}", tokens,
          positions_.capacity());
  check_attend_tensors(shape_, tokens, max_page_, q, pool, out);
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
                      .workspace_o = workspace_o_.data(),
                      .workspace_lse = workspace_lse_.data(),
                      .tasks = nullptr,
                      .task_begin = nullptr,
                      .visits = visits_.data(),
                      .head_classes = head_classes_.data(),
                      .positions = positions_.data(),
                      .scale = scale_,
                      .first_head = options_.first_head,
                      .mods = mod_buffers_};
  for (int i = 0; i < 2; ++i) {
    if (launches_[i].grid == 0) continue;
    params.tasks = launches_[i].tasks.data();
    params.task_begin = launches_[i].task_begin.data();
    const AttendVariant& variant = kernels.variants[i];
    kernels.kernels[i].launch({.stream = stream,
                               .grid = dim3(static_cast<unsigned>(launches_[i].grid)),
                               .block = dim3(static_cast<unsigned>(variant.threads())),
                               .shared_bytes = static_cast<std::size_t>(variant.shared_bytes())},
                              params);
  }
  if (merge_count_ > 0) launch_merge(out, stream);
}

void CudaAttend::launch_merge(const Partial& out, cudaStream_t stream) const {
  const MergeParams params{.merges = merges_.data(),
                           .workspace_o = workspace_o_.data(),
                           .workspace_lse = workspace_lse_.data(),
                           .o = static_cast<float*>(out.o.data),
                           .o_token_stride = out.o.stride(0),
                           .o_head_stride = out.o.stride(1),
                           .lse = static_cast<float*>(out.lse.data),
                           .lse_token_stride = out.lse.stride(0),
                           .lse_head_stride = out.lse.stride(1),
                           .group = group_of(shape_),
                           .v_dim = shape_.v_dim};
  merge_kernel_.launch(
      {.stream = stream,
       .grid = dim3(static_cast<unsigned>(merge_count_), static_cast<unsigned>(merge_rows_)),
       .block = dim3(32 * kMergeWarps),
       .overlaps_previous = can_overlap_launches(store_->architecture())},
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
