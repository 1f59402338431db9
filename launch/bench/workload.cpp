#include "launch/bench/workload.hpp"

#include <algorithm>
#include <numeric>
#include <optional>
#include <random>

#include "launch/bench/scales.hpp"

namespace kvmesh::bench {
namespace {

constexpr std::int64_t kHomeTokens = 2048;  // the cache's default, by which pages are counted here

/// States of a rank: all sequences may have theirs there, and Workload::with_a_state makes one
/// more.
std::int64_t states_per_rank(const WorkloadShape& shape) { return shape.batch + 1; }

/// The kinds of layers but the first. A window has as many pages as the layers without one, since
/// the whole sequence is appended at once.
std::vector<LayerGroup> groups_of(const WorkloadShape& shape, std::int64_t pages) {
  std::vector<LayerGroup> groups;
  if (shape.model.window > 0) groups.push_back({.window = shape.model.window});
  if (shape.model.state_bytes > 0) {
    const auto states = static_cast<double>(states_per_rank(shape));
    groups.push_back({.page_share = states / static_cast<double>(pages),
                      .state_bytes = shape.model.state_bytes});
  }
  for (int layer = 0; layer < shape.layers; ++layer) {
    const int kind = layer % shape.model.layer_kinds();
    if (kind > 0) groups[static_cast<std::size_t>(kind - 1)].layers.push_back(layer);
  }
  return groups;
}

CacheOptions options_of(const WorkloadShape& shape, int kv_parallel) {
  const std::int64_t pages = pages_per_rank(shape, kv_parallel);
  CacheOptions options = cache_options(shape, pages);
  options.home_threshold_tokens = kHomeTokens;
  options.reproducible = shape.model.reproducible;
  options.groups = groups_of(shape, pages);
  return options;
}

std::int64_t divided_up(std::int64_t count, std::int64_t by) { return (count + by - 1) / by; }

}  // namespace

WorkloadShape listed_shape(const Shape& model, const std::vector<std::int64_t>& listed) {
  const std::int64_t sum = std::accumulate(listed.begin(), listed.end(), std::int64_t{0});
  return {.model = model,
          .batch = std::ssize(listed),
          .context = sum / std::ssize(listed),
          .lengths = Lengths::kListed,
          .listed = listed};
}

// Rounds two at a time, one as far below the mean as the other is above it, so that their sum
// stays; an odd one in the middle gets the mean. The shortest still has a token.
std::vector<std::int64_t> lengths_of(const WorkloadShape& shape) {
  if (shape.lengths == Lengths::kListed) return shape.listed;
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(shape.batch), shape.context);
  if (shape.lengths == Lengths::kEven) return lengths;
  for (std::size_t i = 0; i < lengths.size() / 2; ++i) {
    const auto odd = static_cast<std::int64_t>(2 * i + 1);
    lengths[i] = std::max<std::int64_t>(1, shape.context * odd / shape.batch);
    lengths[lengths.size() - 1 - i] = 2 * shape.context - lengths[i];
  }
  std::ranges::shuffle(lengths, std::mt19937_64(2));
  return lengths;
}

std::int64_t newest(std::span<const std::int64_t> lengths, std::int64_t tokens) {
  return std::accumulate(
      lengths.begin(), lengths.end(), std::int64_t{0},
      [&](std::int64_t sum, std::int64_t length) { return sum + std::min(tokens, length); });
}

// Enough pages for every placement: long sequences evenly over the ranks, with the beginning of
// each whole on its home. The ranks are homes in turn, and any of the sequences, also the longest,
// may have its home on this one. A shared prefix counts for each, except on one rank.
std::int64_t pages_per_rank(const WorkloadShape& shape, int kv_parallel) {
  const std::int64_t home = divided_up(kHomeTokens, shape.model.page_size);
  std::int64_t shares = 0;
  std::vector<std::int64_t> more_at_home;
  if (kv_parallel == 1) shares -= (shape.batch - 1) * shape.shared_prefix / shape.model.page_size;
  for (const std::int64_t length : lengths_of(shape)) {
    const std::int64_t pages = divided_up(length, shape.model.page_size);
    const std::int64_t share = pages > home ? divided_up(pages, kv_parallel) : 0;
    shares += share;
    more_at_home.push_back(std::max<std::int64_t>(0, std::min(pages, home) - share));
  }
  std::ranges::sort(more_at_home, std::greater());
  const std::int64_t homes = divided_up(shape.batch, kv_parallel);
  return std::accumulate(more_at_home.begin(), more_at_home.begin() + homes, shares);
}

std::int64_t layer_bytes(const WorkloadShape& shape, const Mesh& mesh) {
  const Shape& model = shape.model;
  return pages_per_rank(shape, mesh.kv_parallel()) * model.page_size *
         (model.kv_heads / mesh.head_parallel()) * model.page_row_bytes();
}

std::int64_t bytes_of_kinds(const WorkloadShape& shape, const Mesh& mesh) {
  const std::int64_t state_bytes = shape.model.state_bytes;
  const int attended = shape.model.layer_kinds() - (state_bytes > 0 ? 1 : 0);
  return attended * layer_bytes(shape, mesh) + states_per_rank(shape) * state_bytes;
}

CacheOptions cache_options(const WorkloadShape& shape, std::int64_t pages) {
  return {.layers = shape.layers,
          .q_heads = shape.model.q_heads,
          .kv_heads = shape.model.kv_heads,
          .k_dim = shape.model.k_dim,
          .v_dim = shape.model.v_dim,
          .page_size = shape.model.page_size,
          .pages_per_rank = pages,
          .dtype = shape.model.page_dtype(),
          .page_kind = shape.model.page_kind,
          .scales = scales_of(shape.model)};
}

TensorView GrowingTensor::get(Mesh& mesh, Machine& machine, Dtype dtype, std::int64_t tokens,
                              std::int64_t heads, std::int64_t dim) {
  const auto bytes =
      static_cast<std::size_t>(tokens * heads * std::max<std::int64_t>(dim, 1)) * size_bytes(dtype);
  const bool grows = memory_.size_bytes() < bytes;
  if (grows) {
    memory_ = DeviceMemory();  // freed first, so that both do not need room
    memory_ = DeviceMemory(mesh.device(), bytes);
  }
  TensorView view = dim == 0
                        ? TensorView(memory_.data(), dtype, {tokens, heads}, mesh.device())
                        : TensorView(memory_.data(), dtype, {tokens, heads, dim}, mesh.device());
  if (grows) machine.fill(view, fill_pattern(dtype), 7);
  return view;
}

Workload::Workload(Mesh& mesh, Machine& machine, const WorkloadShape& shape)
    : mesh_(mesh),
      machine_(machine),
      shape_(shape),
      lengths_(lengths_of(shape)),
      cache_(mesh, options_of(shape, mesh.kv_parallel())) {
  for (int layer = 0; layer < shape.layers; ++layer) {
    if (cache_.group_options(cache_.group_of(layer)).state_bytes == 0) attended_.push_back(layer);
  }
  fill_pools();
  scatter_free_pages();
  grow();
}

void Workload::fill_pools() {
  for (const int layer : attended_) {
    unsigned seed = PagePlanes::kMost * static_cast<unsigned>(layer);
    for (const TensorView& plane : cache_.planes(layer)) {
      const bool is_scales = plane.dtype != shape_.model.page_dtype();
      machine_.fill(plane, is_scales ? kScalePattern : fill_pattern(plane.dtype), ++seed);
    }
  }
}

// A page that is freed is the first to be handed out again, so freeing all pages in random order
// makes the pools resemble those of a server that has run for long. Each is of a sequence of its
// own; there are fewer states than pages, so with states all are forks of a sequence that has one.
void Workload::scatter_free_pages() {
  std::optional<SequenceId> parent;
  if (shape_.model.state_bytes > 0) parent = with_a_state();
  const std::int64_t page = shape_.model.page_size;
  std::vector<SequenceId> single(static_cast<std::size_t>(cache_.allocator().free_pages()));
  for (SequenceId& sequence : single) {
    sequence = parent ? cache_.fork(*parent) : cache_.create();
    cache_.reserve(sequence, parent ? 2 * page : page);
  }
  if (parent) single.push_back(*parent);
  std::mt19937_64 random(1);  // the same on every rank
  std::ranges::shuffle(single, random);
  for (const SequenceId sequence : single) cache_.erase(sequence);
}

/// A sequence of one page.
SequenceId Workload::with_a_state() {
  const SequenceId sequence = cache_.create();
  static_cast<void>(cache_.plan({{sequence, shape_.model.page_size, 0}}));
  return sequence;
}

// With what all sequences have in common: then the others are forks of the first.
void Workload::begin() {
  const std::int64_t shared = shape_.shared_prefix;
  sequences_.push_back(cache_.create());
  if (shared > 0) static_cast<void>(cache_.plan({{sequences_[0], shared, 0}}));
  while (std::ssize(sequences_) < shape_.batch) {
    sequences_.push_back(shared > 0 ? cache_.fork(sequences_[0]) : cache_.create());
  }
}

// One page each, in turn, as a batch grows that decodes together.
void Workload::grow() {
  begin();
  const std::int64_t page = shape_.model.page_size, shared = shape_.shared_prefix;
  for (std::int64_t tokens = shared + page; tokens < std::ranges::max(lengths_) + page;
       tokens += page) {
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      cache_.reserve(sequences_[i], std::min(tokens, lengths_[i]));
    }
  }
  std::vector<BatchEntry> batch, newest;
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    const std::int64_t last = shape_.model.window > 0 ? std::min(shape_.again, lengths_[i]) : 0;
    batch.push_back({sequences_[i], lengths_[i] - shared - last, 0});
    newest.push_back({sequences_[i], last, last});
  }
  static_cast<void>(cache_.plan(batch));
  // A window keeps the pages that these queries see, as those of every later plan do.
  if (shape_.model.window > 0) static_cast<void>(cache_.plan(newest));
}

StepPlan Workload::plan(std::int64_t append, std::int64_t queries, const PlanOptions& options) {
  return cache_.plan(truncated(append, queries), options);
}

void Workload::replan(StepPlan& plan, std::int64_t append, std::int64_t queries, Stream stream) {
  cache_.replan(plan, truncated(append, queries), stream);
}

std::vector<BatchEntry> Workload::truncated(std::int64_t append, std::int64_t queries) {
  std::vector<BatchEntry> batch;
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    const std::int64_t fresh = std::min(append, lengths_[i]);
    if (append > 0) cache_.truncate(sequences_[i], lengths_[i] - fresh);
    batch.push_back({sequences_[i], fresh, std::min(queries, lengths_[i])});
  }
  return batch;
}

std::vector<BatchEntry> Workload::queried(std::int64_t queries) const {
  std::vector<BatchEntry> batch;
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    batch.push_back({sequences_[i], 0, std::min(queries, lengths_[i])});
  }
  return batch;
}

LayerInput Workload::input(const StepPlan& plan) {
  const Shape& model = shape_.model;
  const int parts = mesh_.head_parallel();
  LayerInput input{.q = q_.get(mesh_, machine_, model.dtype, plan.query_tokens(),
                               model.q_heads / parts, model.k_dim),
                   .k = k_.get(mesh_, machine_, model.dtype, plan.append_tokens(),
                               model.kv_heads / parts, model.k_dim),
                   .v = {}};
  if (!model.is_latent()) {
    input.v = v_.get(mesh_, machine_, model.dtype, plan.append_tokens(), model.kv_heads / parts,
                     model.v_dim);
  }
  return input;
}

Partial Workload::partial(const StepPlan& plan) {
  const std::int64_t heads = shape_.model.q_heads / mesh_.head_parallel();
  return {o_.get(mesh_, machine_, Dtype::kFloat32, plan.query_tokens(), heads, shape_.model.v_dim),
          lse_.get(mesh_, machine_, Dtype::kFloat32, plan.query_tokens(), heads)};
}

CombineOutput Workload::output(const StepPlan& plan) {
  return {.o = merged_.get(mesh_, machine_, shape_.model.dtype, plan.tokens_of_output().size(),
                           plan.heads_of_output().size(), shape_.model.v_dim)};
}

ConstTensorView Workload::sinks() {
  const std::int64_t heads = shape_.model.q_heads / mesh_.head_parallel();
  const TensorView filled = sinks_.get(mesh_, machine_, Dtype::kFloat32, 1, heads);
  return {filled.data, Dtype::kFloat32, {heads}, mesh_.device()};
}

}  // namespace kvmesh::bench
