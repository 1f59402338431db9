#include "comm/combine/hierarchical/hierarchical_way.hpp"

#include <utility>

#include "core/check.hpp"
#include "core/cuda/memory.hpp"
#include "core/tensors/copy_tensor.hpp"

namespace kvmesh {
namespace {

/// Whether [tokens, heads, ...] is also [tokens * hosts, heads / hosts, ...].
bool is_evenly_spaced(const TensorView& view) {
  return view.size(0) == 1 || view.stride(0) == view.size(1) * view.stride(1);
}

/// The same memory, of `hosts` times as many tokens of fewer heads each.
TensorView divided(TensorView view, int hosts) {
  view.shape[0] *= hosts;
  view.shape[1] /= hosts;
  view.strides[0] = view.shape[1] * view.strides[1];
  return view;
}

}  // namespace

HierarchicalWay::HierarchicalWay(Rank me, const HostLayout& hosts, Device device,
                                 HierarchyStages stages)
    : hosts_(hosts), me_(me.value), device_(device), stages_(std::move(stages)) {}

void HierarchicalWay::identify(const PlanDigest& digest) {
  for (CombineWay* way : {stages_.inside.get(), stages_.across.get(), stages_.spread.get()}) {
    way->identify(digest);
  }
}

void HierarchicalWay::set_layer(int layer) {
  for (CombineWay* way : {stages_.inside.get(), stages_.across.get(), stages_.spread.get()}) {
    way->set_layer(layer);
  }
}

void HierarchicalWay::plan(const CombineShape& shape, const CombineOptions& options,
                           Stream stream) {
  check_plan(shape, options, ranks());
  require(takes_hosts(hosts_, shape, options.scatter),
          "combine: the hierarchical way takes rows to all, or to heads that {} ranks can share "
          "evenly, not {} heads to {}",
          ranks(), shape.heads, name(options.scatter));
  if (shape_ != shape || scatter_ != options.scatter) ++generation_;
  shape_ = shape;
  scatter_ = options.scatter;
  CombineOptions stage = options;
  if (stage.strategy == CombineStrategy::kAuto) stage.strategy = CombineStrategy::kAllToAll;
  scatter_ == Scatter::kAll ? plan_all(stage, stream) : plan_heads(stage, stream);
}

void HierarchicalWay::plan_heads(const CombineOptions& options, Stream stream) {
  const CombineShape& shape = *shape_;
  CombineOptions inside = options, across = options;
  std::optional<Participation> places, hosts;
  if (options.participation != nullptr) {
    places = inside_mask(*options.participation, hosts_.hosts);
    hosts = across_mask(*options.participation, {0, shape.tokens});
    inside.participation = &*places;
    across.participation = &*hosts;
  }
  const std::int64_t heads = shape.heads / hosts_.per_host;  // that this place gets, on all hosts
  stages_.inside->plan({shape.tokens * hosts_.hosts, shape.heads / hosts_.hosts, shape.dim}, inside,
                       stream);
  stages_.across->plan({shape.tokens, heads, shape.dim}, across, stream);
  reserve(packed_, shape.rows());
  reserve(merged_inside_, shape.tokens * heads);
}

void HierarchicalWay::plan_all(const CombineOptions& options, Stream stream) {
  const CombineShape& shape = *shape_;
  const IndexRange own = share_of(shape.tokens, place(), hosts_.per_host);
  CombineOptions inside = options, across = options, spread = options;
  inside.scatter = Scatter::kTokens;
  std::optional<Participation> places, hosts;
  if (options.participation != nullptr) {
    places = inside_mask(*options.participation, 1);
    hosts = across_mask(*options.participation, own);
    inside.participation = &*places;
    across.participation = &*hosts;
  }
  Participation owners(shape.tokens, hosts_.per_host);
  for (int place = 0; place < hosts_.per_host; ++place) {
    const IndexRange tokens = share_of(shape.tokens, place, hosts_.per_host);
    for (std::int64_t t = tokens.begin; t < tokens.end; ++t) owners.add(t, Rank{place});
  }
  spread.participation = &owners;
  spread.travels_as = Dtype::kFloat32;  // the partials were rounded before
  stages_.inside->plan(shape, inside, stream);
  stages_.across->plan({own.size(), shape.heads, shape.dim}, across, stream);
  stages_.spread->plan(shape, spread, stream);
  reserve(merged_inside_, own.size() * shape.heads);
  reserve(merged_, shape.rows());
}

void HierarchicalWay::check_run(const Partial& mine, const CombineOutput& output) const {
  require(shape_.has_value(), "combine: run without a plan");
  check_tensors(mine, output, *shape_, block_of(*shape_, scatter_, me_, ranks()), device_.kind);
}

void HierarchicalWay::run(const Partial& mine, const CombineOutput& output, Stream stream) {
  scatter_ == Scatter::kAll ? run_all(mine, output, stream) : run_heads(mine, output, stream);
}

void HierarchicalWay::run_heads(const Partial& mine, const CombineOutput& output, Stream stream) {
  const std::int64_t tokens = shape_->tokens, heads = shape_->heads / hosts_.per_host;
  const std::int64_t own_heads = heads / hosts_.hosts;
  if (stages_.may_give_up) merged_inside_.poison(tokens * heads, stream);
  stages_.inside->run(by_hosts(mine, stream),
                      {.o = merged_inside_.o(tokens * hosts_.hosts, own_heads),
                       .lse = merged_inside_.lse(tokens * hosts_.hosts, own_heads)},
                      stream);
  stages_.across->run({merged_inside_.o(tokens, heads), merged_inside_.lse(tokens, heads)}, output,
                      stream);
}

void HierarchicalWay::run_all(const Partial& mine, const CombineOutput& output, Stream stream) {
  const std::int64_t heads = shape_->heads;
  const IndexRange own = share_of(shape_->tokens, place(), hosts_.per_host);
  const Partial merged_here{merged_inside_.o(own.size(), heads),
                            merged_inside_.lse(own.size(), heads)};
  if (stages_.may_give_up) merged_inside_.poison(own.size() * heads, stream);
  stages_.inside->run(mine, {.o = merged_here.o, .lse = merged_here.lse}, stream);
  stages_.across->run(merged_here,
                      {.o = merged_.o(own.size(), heads, own.begin * heads),
                       .lse = merged_.lse(own.size(), heads, own.begin * heads)},
                      stream);
  stages_.spread->run({merged_.o(shape_->tokens, heads), merged_.lse(shape_->tokens, heads)},
                      output, stream);
}

Partial HierarchicalWay::by_hosts(const Partial& mine, Stream stream) {
  Partial rows = mine;
  const bool heads_follow = shape_->heads == 1 || mine.lse.stride(1) == 1;
  if (!is_evenly_spaced(mine.o) || !is_evenly_spaced(mine.lse) || !heads_follow) {
    rows = {packed_.o(shape_->tokens, shape_->heads), packed_.lse(shape_->tokens, shape_->heads)};
    copy_tensor(rows.o, mine.o, device_, stream);
    copy_tensor(rows.lse, mine.lse, device_, stream);
  }
  return {divided(rows.o, hosts_.hosts), divided(rows.lse, hosts_.hosts)};
}

/// Returns which ranks of this host take part in each token. Each token is there `copies` times,
/// one after the other.
Participation HierarchicalWay::inside_mask(const Participation& mask, int copies) const {
  Participation inside(mask.tokens() * copies, hosts_.per_host);
  for (std::int64_t t = 0; t < mask.tokens(); ++t) {
    for (int place = 0; place < hosts_.per_host; ++place) {
      if (!mask.has(t, rank_at(host(), place))) continue;
      for (int copy = 0; copy < copies; ++copy) inside.add(t * copies + copy, Rank{place});
    }
  }
  return inside;
}

/// Returns the hosts on which a rank takes part.
Participation HierarchicalWay::across_mask(const Participation& mask,
                                           const IndexRange& tokens) const {
  Participation across(tokens.size(), hosts_.hosts);
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    for (int host = 0; host < hosts_.hosts; ++host) {
      for (int place = 0; place < hosts_.per_host; ++place) {
        if (mask.has(t, rank_at(host, place))) across.add(t - tokens.begin, Rank{host});
      }
    }
  }
  return across;
}

std::uint64_t HierarchicalWay::generation() const {
  return generation_ + stages_.inside->generation() + stages_.across->generation() +
         stages_.spread->generation();
}

std::size_t HierarchicalWay::workspace_bytes() const {
  std::size_t bytes = stages_.inside->workspace_bytes() + stages_.across->workspace_bytes();
  // Between host memories `spread` shares the buffers of `inside`.
  if (device_.kind == DeviceKind::kCuda) bytes += stages_.spread->workspace_bytes();
  for (const RowBuffer* rows : {&packed_, &merged_inside_, &merged_}) bytes += rows->size_bytes();
  return bytes;
}

std::size_t HierarchicalWay::host_bytes() const {
  if (device_.kind == DeviceKind::kCpu) return workspace_bytes();
  return stages_.inside->host_bytes() + stages_.across->host_bytes() + stages_.spread->host_bytes();
}

void HierarchicalWay::reserve(RowBuffer& buffer, std::int64_t rows) {
  if (buffer.reserve(rows, shape_->dim, device_)) ++generation_;
}

bool HierarchicalWay::RowBuffer::reserve(std::int64_t rows, std::int64_t dim, Device device) {
  dim_ = dim;
  device_ = device;
  const auto grow = [&](GrowingBlock<DeviceMemory>& block, std::int64_t floats) {
    return block.reserve(
        static_cast<std::size_t>(floats) * sizeof(float),
        [&](std::size_t bytes) { return DeviceMemory(device, bytes); },
        device.kind == DeviceKind::kCuda);
  };
  const bool o_moved = grow(o_, rows * dim);
  return grow(lse_, rows) || o_moved;
}

// Rows that were not merged because a rank was late then reach the other hosts as NaN.
void HierarchicalWay::RowBuffer::poison(std::int64_t rows, Stream stream) const {
  if (rows == 0) return;
  constexpr unsigned char kNan = 0xFF;  // in each byte of a float
  const auto floats = static_cast<std::size_t>(rows);
  const auto dim = static_cast<std::size_t>(dim_);
  cuda_memory::fill(o_.data(), kNan, floats * dim * sizeof(float), stream);
  cuda_memory::fill(lse_.data(), kNan, floats * sizeof(float), stream);
}

TensorView HierarchicalWay::RowBuffer::o(std::int64_t tokens, std::int64_t heads,
                                         std::int64_t first) const {
  return {static_cast<float*>(o_.data()) + first * dim_,
          Dtype::kFloat32,
          {tokens, heads, dim_},
          device_};
}

TensorView HierarchicalWay::RowBuffer::lse(std::int64_t tokens, std::int64_t heads,
                                           std::int64_t first) const {
  return {static_cast<float*>(lse_.data()) + first, Dtype::kFloat32, {tokens, heads}, device_};
}

}  // namespace kvmesh
