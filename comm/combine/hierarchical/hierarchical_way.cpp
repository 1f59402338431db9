#include "comm/combine/hierarchical/hierarchical_way.hpp"

#include <algorithm>

#include "comm/combine/host/output_rows.hpp"
#include "core/check.hpp"
#include "kvmesh/partial.hpp"

namespace kvmesh {
namespace {

enum class Axis { kPlaces, kHosts };

/// Returns the ranks of this rank's host, or the ranks at its place on each host.
std::vector<Rank> members_of(const HostLayout& hosts, int me, Axis axis) {
  std::vector<Rank> members;
  const int count = axis == Axis::kPlaces ? hosts.per_host : hosts.hosts;
  for (int i = 0; i < count; ++i) {
    members.push_back(Rank{axis == Axis::kPlaces ? me / hosts.per_host * hosts.per_host + i
                                                 : i * hosts.per_host + me % hosts.per_host});
  }
  return members;
}

}  // namespace

HierarchicalWay::HierarchicalWay(Communicator& comm, const HostLayout& hosts)
    : hosts_(hosts),
      ranks_(comm.size()),
      me_(comm.rank().value),
      inside_comm_(comm, members_of(hosts, me_, Axis::kPlaces)),
      across_comm_(comm, members_of(hosts, me_, Axis::kHosts)),
      inside_rows_(std::make_shared<RowExchange>(inside_comm_, inside_comm_.members())),
      inside_(inside_rows_),
      across_(std::make_shared<RowExchange>(across_comm_, across_comm_.members())),
      spread_(inside_rows_) {
  require(hosts.hosts * hosts.per_host == ranks_, "combine: {} hosts of {} ranks, {} ranks",
          hosts.hosts, hosts.per_host, ranks_);
}

void HierarchicalWay::identify(const PlanDigest& digest) {
  for (HostWay* way : {&inside_, &across_, &spread_}) way->identify(digest);
}

void HierarchicalWay::plan(const CombineShape& shape, const CombineOptions& options, Stream) {
  check_plan(shape, options, ranks_);
  require(takes_hosts(hosts_, shape, options.scatter),
          "combine: the hierarchical way takes rows to all, or to heads that {} ranks can share "
          "evenly, not {} heads to {}",
          ranks_, shape.heads, name(options.scatter));
  shape_ = shape;
  scatter_ = options.scatter;
  scatter_ == Scatter::kAll ? plan_all(options) : plan_heads(options);
}

void HierarchicalWay::plan_heads(const CombineOptions& options) {
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
  inside_.plan({shape.tokens * hosts_.hosts, shape.heads / hosts_.hosts, shape.dim}, inside, {});
  across_.plan({shape.tokens, heads, shape.dim}, across, {});
  merged_inside_.resize(shape.tokens * heads, shape.dim);
}

void HierarchicalWay::plan_all(const CombineOptions& options) {
  const CombineShape& shape = *shape_;
  const Share own = share_of(shape.tokens, place(), hosts_.per_host);
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
    const Share tokens = share_of(shape.tokens, place, hosts_.per_host);
    for (std::int64_t t = tokens.begin; t < tokens.end; ++t) owners.add(t, Rank{place});
  }
  spread.participation = &owners;
  inside_.plan(shape, inside, {});
  across_.plan({own.size(), shape.heads, shape.dim}, across, {});
  spread_.plan(shape, spread, {});
  merged_inside_.resize(own.size() * shape.heads, shape.dim);
  merged_.resize(shape.rows(), shape.dim);
}

void HierarchicalWay::check_run(const Partial& mine, const CombineOutput& output) const {
  require(shape_.has_value(), "combine: run without a plan");
  check_tensors(mine, output, *shape_, block_of(*shape_, scatter_, me_, ranks_), DeviceKind::kCpu);
}

void HierarchicalWay::run(const Partial& mine, const CombineOutput& output, Stream) {
  scatter_ == Scatter::kAll ? run_all(mine, output) : run_heads(mine, output);
}

void HierarchicalWay::run_heads(const Partial& mine, const CombineOutput& output) {
  const std::int64_t tokens = shape_->tokens, heads = shape_->heads / hosts_.per_host;
  const std::int64_t own_heads = heads / hosts_.hosts;
  inside_.run(by_hosts(mine),
              {.o = merged_inside_.o_view(tokens * hosts_.hosts, own_heads),
               .lse = merged_inside_.lse_view(tokens * hosts_.hosts, own_heads)},
              {});
  across_.run({merged_inside_.o_view(tokens, heads), merged_inside_.lse_view(tokens, heads)},
              output, {});
}

void HierarchicalWay::run_all(const Partial& mine, const CombineOutput& output) {
  const std::int64_t heads = shape_->heads;
  const Share own = share_of(shape_->tokens, place(), hosts_.per_host);
  inside_.run(mine,
              {.o = merged_inside_.o_view(own.size(), heads),
               .lse = merged_inside_.lse_view(own.size(), heads)},
              {});
  across_.run(
      {merged_inside_.o_view(own.size(), heads), merged_inside_.lse_view(own.size(), heads)},
      {.o = merged_.o_view(own.size(), heads, own.begin * heads),
       .lse = merged_.lse_view(own.size(), heads, own.begin * heads)},
      {});
  spread_.run({merged_.o_view(shape_->tokens, heads), merged_.lse_view(shape_->tokens, heads)},
              output, {});
}

Partial HierarchicalWay::by_hosts(const Partial& mine) {
  const std::int64_t tokens = shape_->tokens, heads = shape_->heads, dim = shape_->dim;
  Partial rows = mine;
  const bool is_contiguous = is_in_one_piece(mine.o) && (heads == 1 || mine.lse.stride(1) == 1) &&
                             (tokens == 1 || mine.lse.stride(0) == heads);
  if (!is_contiguous) {
    packed_.resize(shape_->rows(), dim);
    rows = {packed_.o_view(tokens, heads), packed_.lse_view(tokens, heads)};
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t h = 0; h < heads; ++h) {
        std::copy_n(o_row(mine, t, h), dim, packed_.o.data() + (t * heads + h) * dim);
        packed_.lse[static_cast<std::size_t>(t * heads + h)] = lse_of(mine, t, h);
      }
    }
  }
  const std::int64_t count = tokens * hosts_.hosts, per_host = heads / hosts_.hosts;
  return {tensor(static_cast<float*>(rows.o.data), {count, per_host, dim}),
          tensor(static_cast<float*>(rows.lse.data), {count, per_host})};
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
Participation HierarchicalWay::across_mask(const Participation& mask, const Share& tokens) const {
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

std::size_t HierarchicalWay::workspace_bytes() const {
  std::size_t bytes = inside_.workspace_bytes() + across_.workspace_bytes();
  for (const Rows* rows : {&packed_, &merged_inside_, &merged_}) {
    bytes += (rows->o.size() + rows->lse.size()) * sizeof(float);
  }
  return bytes;
}

void HierarchicalWay::Rows::resize(std::int64_t rows, std::int64_t row_dim) {
  dim = row_dim;
  o.resize(std::max(o.size(), static_cast<std::size_t>(rows * dim)));
  lse.resize(std::max(lse.size(), static_cast<std::size_t>(rows)));
}

TensorView HierarchicalWay::Rows::o_view(std::int64_t tokens, std::int64_t heads,
                                         std::int64_t first) {
  return tensor(o.data() + first * dim, {tokens, heads, dim});
}

TensorView HierarchicalWay::Rows::lse_view(std::int64_t tokens, std::int64_t heads,
                                           std::int64_t first) {
  return tensor(lse.data() + first, {tokens, heads});
}

}  // namespace kvmesh
