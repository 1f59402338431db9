#include "kvmesh/combine.hpp"

#include <algorithm>
#include <cmath>

#include "comm/combine/merge.hpp"
#include "comm/combine/work.hpp"
#include "core/softmax_merge.hpp"

namespace kvmesh {
namespace {

// Scatter::kAll by all_to_all: with n ranks, sending every partial to everyone costs n - 1 times
// its bytes in one step, scattering and gathering about 2 (n - 1) / n times in two. Four ranks on
// two cores: 7 KB sent by each rank take 16 us in one step and 25 in two, 50 KB take as long either
// way, 200 KB take 180 and 115.
constexpr std::int64_t kDirectBytes = 32 * 1024;

bool goes_directly(const RowMap& map) {
  const std::int64_t row_bytes = (map.dim() + 1) * static_cast<std::int64_t>(sizeof(float));
  return map.all().rows() * row_bytes * (map.ranks() - 1) <= kDirectBytes;
}

/// Stores the merged rows of `block`: `merged` is all of their O, then all of their LSE.
void store_block(const CombineOutput& output, const CombineBlock& block, std::int64_t dim,
                 const float* merged) {
  const float* o = merged;
  const float* lse = merged + block.rows() * dim;
  for (std::int64_t t = block.tokens.begin; t < block.tokens.end; ++t) {
    for (std::int64_t h = block.heads.begin; h < block.heads.end; ++h, o += dim) {
      store_row(output, t, h, o, *lse++);
    }
  }
}

}  // namespace

Combiner::Combiner(Communicator& comm) : work_(std::make_unique<Work>(comm)) {}
Combiner::~Combiner() = default;
Combiner::Combiner(Combiner&&) noexcept = default;
Combiner& Combiner::operator=(Combiner&&) noexcept = default;

void Combiner::operator()(const Partial& mine, const CombineOptions& options,
                          const CombineOutput& output) {
  work_->combine(mine, options, output);
}

Combiner::Work::Work(Communicator& comm)
    : comm_(&comm),
      me_(comm.rank().value),
      outgoing_(static_cast<std::size_t>(comm.size())),
      incoming_(static_cast<std::size_t>(comm.size())) {}

// kAuto is kAllToAll: between hosts' memories it sends fewer bytes (each LSE to one owner, not to
// all) in one step less. Reduce-scatter is for links that add on the way.
void Combiner::Work::combine(const Partial& mine, const CombineOptions& options,
                             const CombineOutput& output) {
  check_combine(mine, options, output, me_, comm_->size());
  const RowMap map(mine, comm_->size(), options.participation);
  const bool reduce = options.strategy == CombineStrategy::kReduceScatter;
  row_.resize(static_cast<std::size_t>(map.dim()));
  if (map.ranks() == 1) {
    copy_mine(mine, map, output);
  } else if (options.scatter == Scatter::kAll && (reduce || !goes_directly(map))) {
    scatter_and_gather(mine, map, reduce, output);
  } else if (reduce) {
    reduce_scatter(mine, map, options.scatter, output);
  } else {
    all_to_all(mine, map, options.scatter, output);
  }
}

void Combiner::Work::scatter_and_gather(const Partial& mine, const RowMap& map, bool reduce,
                                        const CombineOutput& output) {
  const Scatter scatter = map.longer_axis();
  const CombineBlock own = map.block(scatter, me_);
  float* merged = merged_.resize(own.rows() * (map.dim() + 1));
  const std::int64_t tokens = own.tokens.size();
  const std::int64_t heads = own.heads.size();
  const CombineOutput own_rows{
      .o = tensor(merged, {tokens, heads, map.dim()}),
      .lse = tensor(merged + own.rows() * map.dim(), {tokens, heads}),
  };
  if (reduce) {
    reduce_scatter(mine, map, scatter, own_rows);
  } else {
    all_to_all(mine, map, scatter, own_rows);
  }

  for (int peer = 0; peer < map.ranks(); ++peer) {
    incoming(peer).resize(map.block(scatter, peer).rows() * (map.dim() + 1));
  }
  exchange("combine: gather the merged rows", &merged_);
  for (int rank = 0; rank < map.ranks(); ++rank) {
    const float* rows = rank == me_ ? merged_.data() : incoming(rank).data();
    store_block(output, map.block(scatter, rank), map.dim(), rows);
  }
}

void Combiner::Work::copy_mine(const Partial& mine, const RowMap& map,
                               const CombineOutput& output) {
  const CombineBlock all = map.all();
  for (std::int64_t t = 0; t < all.tokens.end; ++t) {
    for (std::int64_t h = 0; h < all.heads.end; ++h) {
      const float lse = map.takes_part(t, me_) ? lse_of(mine, t, h) : kNoKeys;
      const float merged = merged_lse(std::span(&lse, 1));
      // The weight of any other row is 1.
      const bool is_constant = merged == kNoKeys || std::isnan(merged);
      if (is_constant) std::fill(row_.begin(), row_.end(), merged == kNoKeys ? 0.0f : merged);
      store_row(output, t, h, is_constant ? row_.data() : o_row(mine, t, h), merged);
    }
  }
}

void Combiner::Work::start_reading(const RowMap& map, const CombineBlock& own) {
  readers_.clear();
  for (int rank = 0; rank < map.ranks(); ++rank) {
    const float* rows = incoming(rank).data();
    readers_.push_back({rank, rows, rows + map.rows_of(rank, own) * map.dim()});
  }
}

void Combiner::Work::exchange(std::string_view operation, RowBuffer* to_all) {
  outgoing_entries_.clear();
  incoming_entries_.clear();
  for (int peer = 0; peer < comm_->size(); ++peer) {
    if (peer == me_) continue;
    RowBuffer& buffer = to_all != nullptr ? *to_all : outgoing(peer);
    outgoing_entries_.push_back({Rank{peer}, std::as_bytes(buffer.values())});
    incoming_entries_.push_back({Rank{peer}, std::as_writable_bytes(incoming(peer).values())});
  }
  comm_->exchange(outgoing_entries_, incoming_entries_, operation);
}

}  // namespace kvmesh
