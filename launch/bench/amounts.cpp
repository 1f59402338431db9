#include "launch/bench/amounts.hpp"

#include <algorithm>
#include <numeric>

namespace kvmesh::bench {
namespace {

/// A page of this rank, and the positions of its sequence that it holds.
struct LocalPage {
  std::size_t sequence = 0;  ///< place in the batch
  std::int32_t index = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t length = 0;  ///< of the sequence

  std::int64_t tokens() const { return end - begin; }
};

template <class Body>
void for_local_pages(Workload& workload, Prefix prefix, const Body& body, int group = 0) {
  const std::int64_t page_size = workload.shape().model.page_size;
  const std::int64_t shared = prefix == Prefix::kOnce ? workload.shape().shared_prefix : 0;
  for (std::size_t i = 0; i < workload.sequences().size(); ++i) {
    const std::int64_t length = workload.lengths()[i];
    std::int64_t begin = 0;
    for (const PageId page : workload.cache().allocator(group).pages(workload.sequences()[i])) {
      const std::int64_t end = std::min(begin + page_size, length);
      const bool is_repeated = i > 0 && begin < shared;
      if (page.rank() == workload.mesh().page_rank() && !is_repeated)
        body(LocalPage{i, page.index(), begin, end, length});
      begin = end;
    }
  }
}

/// Calls `body(row, page, offset)` for each position in token lists [queries, length] that is on
/// this rank.
template <class Body>
void for_listed(Workload& workload, std::span<const std::int32_t> lists, std::int64_t queries,
                const Body& body) {
  const std::int64_t page_size = workload.shape().model.page_size;
  const auto rows = static_cast<std::size_t>(newest(workload.lengths(), queries));
  const std::size_t count = lists.size() / rows;
  std::size_t row = 0;
  for (std::size_t i = 0; i < workload.sequences().size(); ++i) {
    const std::span<const PageId> pages =
        workload.cache().allocator().pages(workload.sequences()[i]);
    const std::int64_t mine = std::min(queries, workload.lengths()[i]);
    for (const std::size_t end = row + static_cast<std::size_t>(mine); row < end; ++row) {
      for (const std::int32_t position : lists.subspan(row * count, count)) {
        if (position < 0) continue;
        const PageId page = pages[static_cast<std::size_t>(position / page_size)];
        if (page.rank() == workload.mesh().page_rank()) body(row, page, position % page_size);
      }
    }
  }
}

std::int64_t my_heads(Workload& workload, int heads) {
  return heads / workload.mesh().head_parallel();
}

// Elements of keys and values of one token, for this rank's heads.
double token_bytes(Workload& workload) {
  const Shape& model = workload.shape().model;
  return static_cast<double>(my_heads(workload, model.kv_heads) * model.page_row_bytes());
}

// 0 + 1 + ... + (n - 1)
std::int64_t triangle(std::int64_t n) { return n * (n - 1) / 2; }

// Number of visible pairs of the keys [begin, end) and the newest `queries` queries.
std::int64_t visible_pairs(std::int64_t begin, std::int64_t end, std::int64_t length,
                           std::int64_t queries) {
  const std::int64_t border =
      std::clamp(length - queries, begin, end);  // every query sees the keys before it
  return (border - begin) * queries + triangle(length - border + 1) - triangle(length - end + 1);
}

/// Q and the output of the newest `queries` of each sequence.
double row_bytes(Workload& workload, std::int64_t queries, Output output) {
  const Shape& model = workload.shape().model;
  const std::int64_t rows = newest(workload.lengths(), queries) * my_heads(workload, model.q_heads);
  const auto element = static_cast<std::int64_t>(size_bytes(model.dtype));
  const std::int64_t written = output == Output::kFinal
                                   ? model.v_dim * element
                                   : (model.v_dim + 1) * std::int64_t{sizeof(float)};
  return static_cast<double>(rows * (model.k_dim * element + written));
}

/// The same memory as pages of one token, of one head each.
void cut_into_tokens(TensorView& plane) {
  plane.shape[0] *= plane.size(2);
  plane.shape[2] = 1;
  plane.strides[0] = plane.strides[1] = plane.stride(2);
}

/// Tokens of `share` that `from` has keys of, and that go to `to`.
std::int64_t tokens_of(const Participation& participation, Rank from, Rank to, Scatter scatter,
                       IndexRange share) {
  std::int64_t count = 0;
  for (std::int64_t token = share.begin; token < share.end; ++token) {
    if (scatter == Scatter::kOwner && participation.owner(token) != to) continue;
    if (participation.has(token, from)) ++count;
  }
  return count;
}

/// Returns how many merged rows this rank's host has for the ranks at this rank's place on other
/// hosts; nothing if the hierarchical way refuses the combine. See
/// comm/combine/hierarchical/hierarchical_way.hpp.
std::optional<std::int64_t> rows_once_per_host(const Participation& participation, Scatter scatter,
                                               const HostLayout& hosts, Rank me,
                                               std::int64_t heads) {
  const int ranks = hosts.hosts * hosts.per_host, place = me.value % hosts.per_host;
  const int first = me.value - place;
  const bool takes = scatter == Scatter::kAll || (scatter == Scatter::kHeads && heads % ranks == 0);
  if (!hosts.is_hierarchy() || !takes) return std::nullopt;
  const IndexRange tokens = scatter == Scatter::kAll
                                ? share_of(participation.tokens(), place, hosts.per_host)
                                : IndexRange{0, participation.tokens()};
  std::int64_t count = 0;
  for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
    bool is_here = false;
    for (int rank = first; rank < first + hosts.per_host; ++rank)
      is_here = is_here || participation.has(token, {rank});
    count += is_here ? 1 : 0;
  }
  return count * (hosts.hosts - 1) * (scatter == Scatter::kAll ? heads : heads / ranks);
}

}  // namespace

double attend_bytes(Workload& workload, std::int64_t queries, Output output, Prefix prefix) {
  std::int64_t tokens = 0;
  for_local_pages(workload, prefix, [&](const LocalPage& page) { tokens += page.tokens(); });
  double of_layer = static_cast<double>(tokens);
  const std::int64_t window = workload.shape().model.window;
  if (window > 0) {
    std::int64_t in_window = 0;
    const auto count = [&](const LocalPage& page) {
      const std::int64_t first = page.length - std::min(queries, page.length) - window + 1;
      in_window += std::max<std::int64_t>(0, page.end - std::max(page.begin, first));
    };
    for_local_pages(workload, prefix, count, 1);
    of_layer = (of_layer + static_cast<double>(in_window)) / 2;
  }
  return of_layer * token_bytes(workload) + row_bytes(workload, queries, output);
}

double listed_bytes(Workload& workload, std::span<const std::int32_t> lists, std::int64_t queries,
                    Output output) {
  std::int64_t tokens = 0;
  for_listed(workload, lists, queries, [&](std::size_t, PageId, std::int64_t) { ++tokens; });
  return static_cast<double>(tokens) * token_bytes(workload) + row_bytes(workload, queries, output);
}

PageReads page_reads(Workload& workload, const ConstTensorView& q, std::vector<TensorView> out,
                     Prefix prefix) {
  PageReads reads{.sequences = std::vector<PageReads::Sequence>(workload.sequences().size()),
                  .q = q,
                  .out = std::move(out)};
  for_local_pages(workload, prefix, [&](const LocalPage& page) {
    PageReads::Sequence& sequence = reads.sequences[page.sequence];
    sequence.pages.push_back(page.index);
    sequence.tokens += page.tokens();
  });
  for (const int layer : workload.attended_layers()) {
    reads.pools.push_back(workload.cache().pool(layer));
  }
  return reads;
}

PageReads token_reads(Workload& workload, std::span<const std::int32_t> lists, std::int64_t queries,
                      const ConstTensorView& q, std::vector<TensorView> out) {
  const auto rows = static_cast<std::size_t>(newest(workload.lengths(), queries));
  PageReads reads{
      .sequences = std::vector<PageReads::Sequence>(rows), .q = q, .out = std::move(out)};
  const int page_size = workload.shape().model.page_size;
  for_listed(workload, lists, queries, [&](std::size_t row, PageId page, std::int64_t offset) {
    PageReads::Sequence& sequence = reads.sequences[row];
    sequence.pages.push_back(page.index() * page_size + static_cast<std::int32_t>(offset));
    ++sequence.tokens;
  });
  for (const int layer : workload.attended_layers()) {
    KvPool& pool = reads.pools.emplace_back(workload.cache().pool(layer));
    cut_into_tokens(pool.k);
    cut_into_tokens(pool.v);
  }
  return reads;
}

double attend_operations(Workload& workload, std::int64_t queries) {
  const Shape& model = workload.shape().model;
  std::int64_t pairs = 0;
  for_local_pages(workload, Prefix::kOfEach, [&](const LocalPage& page) {
    pairs += visible_pairs(page.begin, page.end, page.length, queries);
  });
  return 2.0 * static_cast<double>(pairs) *
         static_cast<double>(my_heads(workload, model.q_heads) * (model.k_dim + model.v_dim));
}

double appended_bytes(Workload& workload, std::int64_t tokens) {
  std::int64_t mine = 0;
  for_local_pages(workload, Prefix::kOfEach, [&](const LocalPage& page) {
    mine += std::max<std::int64_t>(0, page.end - std::max(page.begin, page.length - tokens));
  });
  return static_cast<double>(mine) * token_bytes(workload);
}

Traffic combine_traffic(Workload& workload, const StepPlan& plan, Scatter scatter,
                        Dtype travels_as) {
  const Shape& model = workload.shape().model;
  const int ranks = workload.mesh().kv_parallel();
  const Rank me = workload.mesh().kv_rank();
  const std::int64_t heads = my_heads(workload, model.q_heads);
  const auto bytes = [&](Rank from, Rank to) -> std::int64_t {
    if (from == to) return 0;
    const auto share = [&](Scatter axis, std::int64_t count) {
      return scatter == axis ? share_of(count, to.value, ranks) : IndexRange{0, count};
    };
    const std::int64_t tokens = tokens_of(plan.participation(), from, to, scatter,
                                          share(Scatter::kTokens, plan.query_tokens()));
    const auto o_bytes = model.v_dim * static_cast<std::int64_t>(size_bytes(travels_as));
    return tokens * share(Scatter::kHeads, heads).size() *
           (o_bytes + static_cast<std::int64_t>(sizeof(float)));
  };
  Traffic traffic;
  for (int rank = 0; rank < ranks; ++rank) {
    traffic.sent.push_back(bytes(me, {rank}));
    traffic.received.push_back(bytes({rank}, me));
  }
  return traffic;
}

std::optional<HostTraffic> host_traffic(Workload& workload, const StepPlan& plan, Scatter scatter) {
  Mesh& mesh = workload.mesh();
  const HostLayout& hosts = mesh.device_group().hosts();
  if (hosts.hosts == 1) return std::nullopt;
  const Shape& model = workload.shape().model;
  const Traffic traffic = combine_traffic(workload, plan, scatter);
  HostTraffic between;
  for (int rank = 0; rank < mesh.kv_parallel(); ++rank) {
    const bool is_far = rank / hosts.per_host != mesh.kv_rank().value / hosts.per_host;
    if (is_far) between.flat += traffic.sent[static_cast<std::size_t>(rank)];
  }
  between.hierarchical = rows_once_per_host(plan.participation(), scatter, hosts, mesh.kv_rank(),
                                            my_heads(workload, model.q_heads));
  if (between.hierarchical) {
    *between.hierarchical *= (model.v_dim + 1) * static_cast<std::int64_t>(sizeof(float));
  }
  return between;
}

Traffic gather_traffic(Workload& workload, const StepPlan& plan) {
  const Shape& model = workload.shape().model;
  const int ranks = workload.mesh().kv_parallel(), me = workload.mesh().kv_rank().value;
  const auto row_bytes = model.k_dim * static_cast<std::int64_t>(size_bytes(model.dtype));
  const auto bytes = [&](int from, int to) -> std::int64_t {
    if (from == to) return 0;
    const std::int64_t heads = share_of(my_heads(workload, model.q_heads), from, ranks).size();
    return plan.query_tokens() * heads * row_bytes;
  };
  Traffic traffic;
  for (int rank = 0; rank < ranks; ++rank) {
    traffic.sent.push_back(bytes(me, rank));
    traffic.received.push_back(bytes(rank, me));
  }
  return traffic;
}

}  // namespace kvmesh::bench
