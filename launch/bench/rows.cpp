// The rows of an operation: which of the options vary within one table.
#include "launch/bench/manners.hpp"
#include "launch/bench/options.hpp"

namespace kvmesh::bench {

namespace {

using Rows = std::vector<std::pair<std::string, Options>>;

Rows rows_of_drafts(const Options& options, std::int64_t drafts) {
  Rows rows;
  const auto add = [&](const char* name, Drafts place) {
    rows.emplace_back(name, options);
    rows.back().second.drafts = place;
  };
  add("stay", Drafts::kStay);
  if (drafts <= options.shape.page_size) add("within", Drafts::kWithin);
  add("across", Drafts::kAcross);
  return rows;
}

/// The rows of an operation without states.
Rows rows_of_keys(const Options& options, Op op, std::int64_t queries) {
  if (op == Op::kCompact) return rows_of_drafts(options, queries);
  const bool attends_few = op == Op::kDecode || op == Op::kStep || op == Op::kPlan;
  if (options.shared_prefix > 0 && attends_few) {
    Options alone = options;
    alone.shares_prefixes = false;
    return {{"shared", options}, {"alone", alone}};
  }
  Rows rows;
  const bool has_ways = op == Op::kCombine || op == Op::kGather;
  if (!has_ways || options.ways.empty()) {
    rows.emplace_back("", options);
    for (const Manner manner : options.manners) {
      if (!has_manner(op, manner)) continue;
      rows.emplace_back(name(manner), options);
      rows.back().second.manner = manner;
    }
    return rows;
  }
  for (const Way& way : options.ways) {
    // A gather neither reduces nor has a step within hosts.
    const bool combines =
        way.strategy != CombineStrategy::kAuto || way.kind == WayKind::kHierarchical;
    if (op == Op::kGather && combines) continue;
    Options of_way = options;
    of_way.way = way.kind;
    if (way.strategy != CombineStrategy::kAuto) of_way.strategy = way.strategy;
    rows.emplace_back(way.name, of_way);
  }
  return rows;
}

}  // namespace

Rows rows_of(const Options& options, Op op, std::int64_t queries) {
  Options of_keys = options;
  of_keys.shape.state_bytes = 0;
  Rows rows = rows_of_keys(of_keys, op, queries);
  if (options.shape.state_bytes > 0 && has_states(op)) rows.emplace_back("states", options);
  return rows;
}

}  // namespace kvmesh::bench
