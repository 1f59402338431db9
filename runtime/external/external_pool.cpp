// The form of an engine's pools: checks, and what plans are made with.
#include <algorithm>
#include <limits>

#include "core/check.hpp"
#include "kernels/attend_checks.hpp"
#include "kernels/attend_steps.hpp"
#include "kernels/pool_checks.hpp"
#include "runtime/external/external_state.hpp"

namespace kvmesh {
namespace {

constexpr std::int64_t kMostExtent = std::numeric_limits<std::int32_t>::max();

AttentionShape shape_of(const ConstKvPool& layer, int q_heads) {
  check_pool("external pool", layer);
  const ConstTensorView& k = layer.k;
  require(std::ranges::max(k.shape) <= kMostExtent && layer.v.size(3) <= kMostExtent,
          "external pool: {} has an extent that does not fit in int32", k);
  const auto size = [](std::int64_t extent) { return static_cast<int>(extent); };
  const AttentionShape shape{.q_heads = q_heads,
                             .kv_heads = size(k.size(1)),
                             .k_dim = size(k.size(3)),
                             .v_dim = size(layer.v.size(3)),
                             .page_size = size(k.size(2))};
  check_attention(
      shape, {.q_indptr = {0}, .kv_lens = {}, .q_positions = {}, .page_indptr = {0}, .pages = {}});
  return shape;
}

ScaleKind kind_of(const BasicRowScale<ConstTensorView>& scale) {
  if (scale.per_token.empty()) return ScaleKind::kPerTensor;
  return is_per_head(scale.per_token) ? ScaleKind::kPerHead : ScaleKind::kPerTokenAndHead;
}

KvFormat format_of(const ConstKvPool& layer) {
  const ScaleKind k = kind_of(layer.k_scale), v = kind_of(layer.v_scale);
  require((k == ScaleKind::kPerTensor) == (v == ScaleKind::kPerTensor),
          "external pool: keys and values must have one kind of scale");
  return {.kind = layer.is_latent() ? PageKind::kLatent : PageKind::kKv,
          .dtype = layer.k.dtype,
          .scales = {.kind = k == v ? k : ScaleKind::kPerTokenAndHead}};
}

/// On one rank every page is whole: turns of any length are the same.
std::int64_t tokens_per_turn(const ExternalPoolOptions& options, int page_size, int ranks) {
  const std::int64_t tokens = options.interleave == 0 ? page_size : options.interleave;
  require(
      tokens > 0 && tokens <= kMaxLength && (page_size % tokens == 0 || tokens % page_size == 0),
      "external pool: an interleave of {} tokens, in pages of {}", tokens, page_size);
  return ranks == 1 ? page_size : tokens;
}

}  // namespace

ExternalPool::State::State(Mesh owner, const ConstKvPool& layer, const ExternalPoolOptions& options)
    : mesh(std::move(owner)),
      form(layer),
      shape(shape_of(layer, options.q_heads)),
      format(format_of(layer)) {
  const std::int64_t turn = tokens_per_turn(options, shape.page_size, mesh.kv_parallel());
  rules = {
      .pages = layer.k.size(0),
      .page_size = shape.page_size,
      .units = page_units(layer, static_cast<int>(std::min<std::int64_t>(turn, shape.page_size))),
      .turn = turn,
      .ranks = mesh.kv_parallel(),
      .me = mesh.page_rank(),
      .members = &mesh.membership(),
      .model_heads = shape.q_heads * mesh.head_parallel()};
  require(layer.k.device == mesh.device(), "external pool: {} is in {}, the mesh's device is {}",
          layer.k, layer.k.device, mesh.device());
  backend = make_backend(mesh);
}

TableRules ExternalPool::State::rules_for(const PageTables& tables) const {
  TableRules chosen = rules;
  if (tables.list_length > 0) chosen.units = page_units(form, 1);
  return chosen;
}

Backend& ExternalPool::State::backend_for(const PageTables& tables) {
  if (tables.list_length == 0) return *backend;
  if (!token_backend) token_backend = make_backend(mesh);
  return *token_backend;
}

void ExternalPool::State::let_go() noexcept {
  try {
    wait_for_peers();
  } catch (const std::exception&) {
    // The error is dropped: the NCCL group is broken now, and its next use reports that.
  }
}

void ExternalPool::State::check_form(const KvPool& pool) const {
  check_pool("external pool", pool);
  require(pool.k.shape == form.k.shape && pool.v.shape == form.v.shape &&
              pool.k.dtype == form.k.dtype && pool.is_latent() == form.is_latent(),
          "external pool: {} and {}, the plan is for pools of {} and {}", pool.k, pool.v, form.k,
          form.v);
  require(pool.k_scale.per_token.empty() == form.k_scale.per_token.empty() &&
              pool.v_scale.per_token.empty() == form.v_scale.per_token.empty(),
          "external pool: {} has another kind of scales than the pool of the plan", pool.k);
  for (const TensorView* plane :
       {&pool.k, &pool.v, &pool.k_scale.per_token, &pool.v_scale.per_token}) {
    require(plane->empty() || plane->device == mesh.device(),
            "external pool: {} is in {}, the mesh's device is {}", *plane, plane->device,
            mesh.device());
  }
}

ExternalPool::ExternalPool(Mesh& mesh, const ConstKvPool& layer, const ExternalPoolOptions& options)
    : state_(std::make_shared<State>(mesh.share(), layer, options)) {}
ExternalPool::~ExternalPool() = default;
ExternalPool::ExternalPool(ExternalPool&&) noexcept = default;
ExternalPool& ExternalPool::operator=(ExternalPool&&) noexcept = default;

ExternalPool::State& ExternalPool::state() const {
  require(state_ != nullptr, "external pool: it was moved from");
  return *state_;
}

KvPool nhd_pool(const TensorView& k, const TensorView& v) {
  KvPool pool{k, v};
  for (TensorView* plane : {&pool.k, &pool.v}) {
    require(plane->dims == 4, "nhd_pool: {} has not 4 dimensions", *plane);
    std::swap(plane->shape[1], plane->shape[2]);
    std::swap(plane->strides[1], plane->strides[2]);
  }
  return pool;
}

KvPool side_by_side_pool(const TensorView& rows, int k_dim) {
  require(rows.dims == 4 && k_dim > 0 && k_dim < rows.size(3),
          "side_by_side_pool: keys of {} elements in {}", k_dim, rows);
  require(is_valid(rows.dtype), "side_by_side_pool: element type {} is not valid",
          static_cast<int>(rows.dtype));
  KvPool pool{rows, rows};
  pool.k.shape[3] = k_dim;
  pool.v.shape[3] = rows.size(3) - k_dim;
  if (rows.data != nullptr) {
    pool.v.data = static_cast<std::byte*>(rows.data) +
                  static_cast<std::size_t>(k_dim) * size_bytes(rows.dtype);
  }
  return pool;
}

}  // namespace kvmesh
