#include "kernels/cuda/attend/cuda_attend.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/attend_checks.hpp"
#include "kernels/attend_steps.hpp"
#include "kernels/cuda/attend/device_pool.hpp"
#include "kernels/cuda/attend/sharing.hpp"

namespace kvmesh::cuda {
namespace {

/// Thread blocks of merges per multiprocessor, if there are not more merges.
constexpr int kMergeBlocks = 4;

int group_of(const AttentionShape& shape) { return shape.q_heads / shape.kv_heads; }

/// A mod that reads the batch row needs rows of one sequence; a block mask has lists for each. Rows
/// of exact sums, and of a fixed split, do not depend on other sequences.
bool may_share(const CudaAttend::Options& options) {
  return options.block_mask == nullptr && !options.exact && options.fixed_split_tokens == 0 &&
         !options.attention.score.graph().depends_on(kDependsBatch);
}

const AttentionShape& checked(const AttentionShape& shape) {
  check_attention(
      shape, {.q_indptr = {0}, .kv_lens = {}, .q_positions = {}, .page_indptr = {0}, .pages = {}});
  return shape;
}

/// With a fixed split each sequence has the row class of one query: if it followed from the largest
/// short sequence of a batch, the others had another kernel beside that one.
std::int64_t short_rows_of(const AttentionShape& planned, const CudaAttend::Options& options) {
  if (!options.limits && options.fixed_split_tokens > 0) return group_of(planned);
  if (!options.limits) return options.short_rows;
  const AttendLimits& limits = *options.limits;
  const std::int64_t rows = limits.queries * group_of(planned);
  require(limits.sequences > 0 && limits.queries > 0 && limits.pages >= 0 && rows <= kShortRows,
          "attention: graphs are for up to {} rows (queries x query heads per kv head) per "
          "sequence, not {} x {}",
          kShortRows, limits.queries, group_of(planned));
  return rows;
}

/// Returns the row class of short rows: at most `long_class`, that of long chunks, except with
/// limits, whose graphs have no launch for long chunks.
int short_class_of(const AttentionShape& shape, const AttentionShape& planned,
                   const CudaAttend::Options& options, int long_class) {
  const int fits = row_class_of(short_rows_of(planned, options), shape);
  return options.limits ? fits : std::min(fits, long_class);
}

}  // namespace

AttendOutput attend_output(const AttendedRows& out) {
  return {.o = out.o.data,
          .o_type = out.o.dtype,
          .o_token_stride = out.o.stride(0),
          .o_head_stride = out.o.stride(1),
          .lse = static_cast<float*>(out.lse.data),
          .lse_token_stride = out.lse.stride(0),
          .lse_head_stride = out.lse.stride(1)};
}

CudaAttend::CudaAttend(KernelStore& kernels, const AttentionShape& shape, const Options& options)
    : store_(&kernels),
      shape_(checked(shape)),
      planned_(planned_shape(shape)),
      kinds_(options.kinds),
      scale_(options.attention.scale.value_or(1.0f / std::sqrt(static_cast<float>(shape.k_dim)))),
      fold_scale_(options.attention.score.is_identity() && scale_ > 0.0f),
      exact_(options.exact),
      first_head_(options.attention.first_head),
      mods_(std::make_unique<DeviceMods>(options.attention.score.graph(),
                                         options.attention.mask.graph())) {
  std::optional<BlockClasses> block_mask;
  if (options.block_mask) block_mask.emplace(*options.block_mask);
  has_head_classes_ = block_mask && block_mask->heads() > 1;
  const int long_class = long_row_class(case_of(kinds_));
  row_classes_[kShortLaunch] = short_class_of(shape, planned_, options, long_class);
  row_classes_[kLongLaunch] = row_classes_[kSharedLaunch] = long_class;
  plan_ = std::make_unique<DevicePlan>(
      *store_,
      DevicePlan::Options{.shape = planned_,
                          .mask = options.attention.mask,
                          .first_head = first_head_,
                          .launches = {launch_shape(kShortLaunch), launch_shape(kLongLaunch),
                                       launch_shape(kSharedLaunch)},
                          .fixed_split_tokens = options.fixed_split_tokens,
                          .may_share = may_share(options),
                          .most_own_tokens = most_own_tokens(shape, kinds_.pool, kinds_.latent),
                          .rows_of_own_token = rows_of_own_token(kinds_.pool, kinds_.latent)},
      *mods_, std::move(block_mask));
  if (exact_) {
    exact_merge_.emplace(*store_, shape.v_dim);
  } else {
    merge_kernel_ =
        store_->get(merge_program(shape.v_dim, false, store_->architecture()), "kvmesh_merge");
  }
  if (!options.limits) return;
  plan_->reserve(*options.limits);
  reserve_workspace();
  kernels_for(kinds_);
}

AttendCase CudaAttend::case_of(const TensorKinds& kinds) const {
  return {.shape = shape_,
          .kinds = kinds,
          .fold_scale = fold_scale_,
          .head_classes = has_head_classes_,
          .exact = exact_,
          .architecture = store_->architecture(),
          .limits = {.block_bytes = store_->block_shared_bytes(),
                     .multiprocessor_bytes = store_->multiprocessor_shared_bytes()}};
}

AttendVariant CudaAttend::variant_of(const TensorKinds& kinds, LaunchKind launch) const {
  AttendCase what = case_of(kinds);
  what.rows = row_classes_[launch];
  what.row_tokens = launch == kSharedLaunch && !exact_;
  return choose_attend(what);
}

LaunchShape CudaAttend::launch_shape(LaunchKind launch) const {
  const AttendVariant variant = variant_of(kinds_, launch);
  return {.rows = row_classes_[launch],
          .resident_blocks = store_->multiprocessors() * variant.blocks_per_multiprocessor,
          .multiprocessors = store_->multiprocessors(),
          .tile_keys = variant.tile_keys,
          .rule = variant.rule};
}

bool CudaAttend::lacks_kernel(const Kernels& found, LaunchKind launch) const {
  return plan_->launch(launch).grid != 0 && found.kernels[launch].name().empty();
}

const CudaAttend::Kernels& CudaAttend::kernels_for(const TensorKinds& kinds) {
  Kernels& found = kernels_[kinds];
  for (const LaunchKind i : kLaunchOrder) {
    if (!lacks_kernel(found, i)) continue;
    found.variants[i] = variant_of(kinds, i);
    found.kernels[i] =
        store_->get(attend_program(found.variants[i], mods_->text(), store_->architecture()),
                    found.variants[i].kernel, found.variants[i].shared_bytes);
  }
  if (plan_->launch(kSharedLaunch).grid != 0 && shared_merge_kernel_.name().empty()) {
    shared_merge_kernel_ =
        store_->get(merge_program(shape_.v_dim, true, store_->architecture()), "kvmesh_merge");
  }
  return found;
}

void AttendPlanner::reserve(std::span<const CudaAttend> kinds) {
  std::size_t bytes = 0;
  for (const CudaAttend& kind : kinds) bytes += kind.plan_->most_upload_bytes();
  upload_.begin(bytes);
}

bool AttendPlanner::is_ready(std::span<const CudaAttend> kinds) const {
  const auto has_mods = [](const CudaAttend& kind) { return kind.mods_->is_taken(); };
  return upload_.is_taken() && std::ranges::all_of(kinds, has_mods);
}

void AttendPlanner::plan(std::span<CudaAttend> kinds, PageLists& pages, const StepView& step,
                         cudaStream_t stream) {
  plans_.clear();
  for (CudaAttend& kind : kinds) {
    kind.is_fresh_ = true;
    kind.mods_->send(stream);
    plans_.push_back(kind.plan_.get());
  }
  plan_together(plans_, pages, step, upload_, stream);
  for (CudaAttend& kind : kinds) {
    kind.max_page_ = pages.max_page();
    kind.reserve_workspace();
    kind.kernels_for(kind.kinds_);
  }
}

void CudaAttend::reserve_workspace() {
  const auto rows = static_cast<std::size_t>(plan_->workspace_rows());
  if (exact_) {
    const auto bytes = static_cast<std::size_t>(exact_row_bytes(shape_.v_dim));
    workspace_growths_ += workspace_exact_.reserve(rows * bytes);
    return;
  }
  workspace_growths_ += workspace_o_.reserve(rows * static_cast<std::size_t>(shape_.v_dim));
  workspace_growths_ += workspace_lse_.reserve(rows);
}

AttendParams CudaAttend::params_of(const ConstTensorView& q, const ConstKvPool& pool,
                                   const AttendOutput& out, const ConstTensorView& sinks) const {
  return {.q = q.data,
          .q_token_stride = q.stride(0),
          .q_head_stride = q.stride(1),
          .k = device_pool(pool.k),
          .v = device_pool(pool.v),
          .out = out,
          .workspace_o = workspace_o_.data(),
          .workspace_lse = workspace_lse_.data(),
          .workspace_rows = workspace_exact_.data(),
          .tasks = nullptr,
          .task_counts = nullptr,
          .claim = nullptr,
          .visits = plan_->visits(),
          .head_classes = plan_->head_classes(),
          .positions = plan_->positions(),
          .sinks = static_cast<const float*>(sinks.data),
          .scale = scale_,
          .first_head = first_head_,
          .mods = mods_->buffers(),
          .row_tokens = plan_->row_tokens(),
          .is_first = true,  // launch_to sets both
          .is_last = true};
}

SharedPrefixRules CudaAttend::shared_prefix_rules() const {
  SharedPrefixRules rules = sharing_rules(shape_, kinds_.pool, kinds_.latent);
  rules.most_queries = plan_->most_shared_queries();
  return rules;
}

void CudaAttend::check_output(const AttendedRows& out) const {
  check_attended_rows(shape_, plan_->tokens(), out);
}

/// A kernel that is loaded was found for tensors of the same kinds.
void CudaAttend::check(const ConstTensorView& q, const ConstKvPool& pool,
                       const ConstTensorView& sinks) const {
  require(max_page_ < pool.k.size(0), "attend_partial: the plan reads page {} of a pool of {}",
          max_page_, pool.k.size(0));
  check_device_pool(pool.k);
  check_device_pool(pool.v);
  const TensorKinds kinds = kinds_of(q, pool, sinks);
  const auto found = kernels_.find(kinds);
  for (const LaunchKind i : kLaunchOrder) {
    if (found != kernels_.end() && !lacks_kernel(found->second, i)) continue;
    static_cast<void>(variant_of(kinds, i));
  }
}

void CudaAttend::launch(const ConstTensorView& q, const ConstKvPool& pool, const AttendedRows& out,
                        cudaStream_t stream, const ConstTensorView& sinks) {
  launch_to({.out = attend_output(out)}, q, pool, sinks, stream);
}

void CudaAttend::launch(const ConstTensorView& q, const ConstKvPool& pool, const CombineTarget& to,
                        cudaStream_t stream, const ConstTensorView& sinks) {
  launch_to({.to = to}, q, pool, sinks, stream);
}

void CudaAttend::launch(const ConstTensorView& q, const ConstKvPool& pool, const ExactMessages& to,
                        cudaStream_t stream) {
  launch_to({.exact = to}, q, pool, {}, stream);
}

void CudaAttend::launch_to(const Rows& rows, const ConstTensorView& q, const ConstKvPool& pool,
                           const ConstTensorView& sinks, cudaStream_t stream) {
  const Kernels& kernels = kernels_for(kinds_of(q, pool, sinks));
  AttendParams params = params_of(q, pool, rows.out, sinks);
  const auto is_planned = [&](LaunchKind i) { return plan_->launch(i).grid != 0; };
  auto left = std::ranges::count_if(kLaunchOrder, is_planned);
  params.is_first = true;
  for (const LaunchKind i : kLaunchOrder) {
    if (!is_planned(i)) continue;
    const PlannedLaunch& planned = plan_->launch(i);
    params.is_last = --left == 0;
    params.tasks = planned.tasks;
    params.task_counts = planned.task_counts;
    params.claim = planned.claim;
    const AttendVariant& variant = kernels.variants[i];
    variant.family->launch(
        kernels.kernels[i],
        {.stream = stream,
         .grid = dim3(static_cast<unsigned>(planned.grid)),
         .block = dim3(static_cast<unsigned>(variant.threads)),
         .shared_bytes = static_cast<std::size_t>(variant.shared_bytes),
         .overlaps_previous = variant.overlaps && !(params.is_first && is_fresh_)},
        params, pool);
    params.is_first = false;
  }
  is_fresh_ = false;
  if (plan_->most_merges() == 0) return;
  exact_ ? launch_exact_merge(rows, sinks, stream) : launch_merge(rows, sinks, stream);
}

void CudaAttend::launch_exact_merge(const Rows& rows, const ConstTensorView& sinks,
                                    cudaStream_t stream) const {
  exact_merge_->launch({.merges = plan_->merges(),
                        .merge_count = plan_->merges_made(),
                        .rows = workspace_exact_.data(),
                        .to = rows.exact,
                        .sinks = static_cast<const float*>(sinks.data),
                        .out = rows.out,
                        .group = group_of(planned_)},
                       plan_->most_merges(), plan_->merge_rows(), stream);
}

void CudaAttend::launch_merge(const Rows& rows, const ConstTensorView& sinks,
                              cudaStream_t stream) const {
  const MergeParams params{.merges = plan_->merges(),
                           .merge_count = plan_->merges_made(),
                           .workspace_o = workspace_o_.data(),
                           .workspace_lse = workspace_lse_.data(),
                           .sinks = static_cast<const float*>(sinks.data),
                           .out = rows.out,
                           .to = rows.to,
                           .group = group_of(planned_)};
  const std::int64_t merges = plan_->most_merges();
  const std::int64_t chunks_of_row = (shape_.v_dim + kMergeColumns - 1) / kMergeColumns;
  const std::int64_t blocks =
      std::clamp<std::int64_t>(kMergeBlocks * store_->multiprocessors(), merges,
                               merges * plan_->merge_rows() * chunks_of_row);
  const bool merges_shared = plan_->launch(kSharedLaunch).grid != 0;
  (merges_shared ? shared_merge_kernel_ : merge_kernel_)
      .launch({.stream = stream,
               .grid = dim3(static_cast<unsigned>(blocks)),
               .block = dim3(32 * kMergeWarps),
               .overlaps_previous = jit::can_overlap_launches(store_->architecture())},
              params);
}

std::int64_t CudaAttend::workspace_bytes() const {
  return static_cast<std::int64_t>(workspace_o_.size_bytes() + workspace_lse_.size_bytes() +
                                   workspace_exact_.size_bytes());
}

}  // namespace kvmesh::cuda
