#include "launch/bench/options.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <numeric>
#include <optional>

#include "launch/bench/ways.hpp"
#include "launch/common/scale_flag.hpp"

namespace kvmesh::bench {
namespace {

constexpr std::array kOps{Op::kDecode, Op::kPrefill, Op::kAppend, Op::kCombine,
                          Op::kStep,   Op::kGather,  Op::kPlan,   Op::kCompact,
                          Op::kFork,   Op::kMove,    Op::kStore,  Op::kLoad};
constexpr std::array kLengths{Lengths::kEven, Lengths::kRagged};
constexpr std::array kOutputs{Output::kPartial, Output::kFinal};

// The value of `values` whose name is `text`.
template <class Value, std::size_t Count>
Value named(const char* flag, const std::string& text, const std::array<Value, Count>& values) {
  std::string all;
  for (const Value value : values) {
    if (text == name(value)) return value;
    all += (all.empty() ? "" : ", ") + std::string(name(value));
  }
  throw InvalidArgument(fmt::format("{} '{}' is none of {}", flag, text, all));
}

template <class Value, std::size_t Count>
std::vector<Value> named(const char* flag, const std::vector<std::string>& texts,
                         const std::array<Value, Count>& values) {
  std::vector<Value> list;
  for (const std::string& text : texts) list.push_back(named(flag, text, values));
  return list;
}

void check_positive(const char* flag, std::int64_t value) {
  if (value <= 0) throw InvalidArgument(fmt::format("{} {} must be positive", flag, value));
}

// Products of these sizes fit into 64 bits. Limits of a shape: heads, and dims.
constexpr std::int64_t kMostSequences = 1 << 20;
constexpr std::int64_t kMostTokens = std::int64_t{1} << 36;
constexpr std::int64_t kMostPerShape = 1 << 12;
constexpr std::int64_t kMostListed = 1 << 20;
constexpr std::int64_t kMostWindowQueries = 64;  // more are not a read of keys and values
constexpr std::int64_t kMostGraphRows = 64;      // see PlanOptions::limits
constexpr std::int64_t kSplitUnit = 128, kMostSplit = std::int64_t{1} << 30;  // as PlanOptions has
constexpr std::int64_t kStateAlignment = 16, kMostStateBytes = (std::int64_t{1} << 33) - 16;
constexpr std::int64_t kDrafts = 16;  // of each sequence, without --queries
constexpr std::int64_t kMostBytes = std::int64_t{1} << 50;

template <class Value>
Value at_most(const char* flag, Value value, std::int64_t most) {
  if (value <= static_cast<Value>(most)) return value;
  throw InvalidArgument(fmt::format("{} {} is over {}", flag, value, most));
}

// A limit or a size; 0 means that the program chooses.
template <class Number>
Number not_negative(const char* flag, Number value) {
  if (!(value >= 0)) throw InvalidArgument(fmt::format("{} {} is negative", flag, value));
  return value;
}

// The tokens of a case.
void check_together(const std::vector<std::int64_t>& batches,
                    const std::vector<std::int64_t>& lengths, const char* flag) {
  const auto most = [](const std::vector<std::int64_t>& list) {
    return list.empty() ? 0 : std::ranges::max(list);
  };
  at_most("--batch", most(batches), kMostSequences);
  at_most(flag, most(lengths), kMostTokens / std::max<std::int64_t>(1, most(batches)));
}

std::vector<std::int64_t> list_or(const char* flag, const std::vector<std::int64_t>& list,
                                  std::vector<std::int64_t> otherwise) {
  for (const std::int64_t value : list) check_positive(flag, value);
  return list.empty() ? std::move(otherwise) : list;
}

// Parses a number of sequences or tokens; nothing if `text` is none.
std::optional<std::int64_t> number_of(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc{} && end == text.data() + text.size();
  return whole && value > 0 ? std::optional(value) : std::nullopt;
}

// Adds the sequences of "4096" or "7*4096"; false if `text` is neither.
bool add_listed(std::string_view text, std::vector<std::int64_t>& listed) {
  const std::size_t star = text.find('*');
  const auto count = star == std::string::npos ? 1 : number_of(text.substr(0, star));
  const auto tokens = number_of(text.substr(star == std::string::npos ? 0 : star + 1));
  if (!count || !tokens) return false;
  at_most("--lengths: sequences", *count + std::ssize(listed), kMostSequences);
  at_most("--lengths", *tokens, kMostTokens);
  listed.insert(listed.end(), static_cast<std::size_t>(*count), *tokens);
  return true;
}

// Takes "4096/7*64" for the end of one batch and the beginning of the next; false if `text` is a
// name.
bool take_listed(std::string_view text, std::vector<std::vector<std::int64_t>>& batches) {
  std::vector<std::vector<std::int64_t>> taken = batches;
  if (taken.empty()) taken.emplace_back();
  for (std::size_t end = text.find('/'); end != std::string_view::npos; end = text.find('/')) {
    if (!add_listed(text.substr(0, end), taken.back())) return false;
    taken.emplace_back();
    text.remove_prefix(end + 1);
  }
  if (!add_listed(text, taken.back())) return false;
  batches = std::move(taken);
  return true;
}

// Names are a case each; lengths are one up to each "/".
void take_lengths(const std::vector<std::string>& texts, Options& options) {
  for (const std::string& text : texts) {
    if (take_listed(text, options.listed)) continue;
    const auto named = std::ranges::find(kLengths, text, [](Lengths of) { return name(of); });
    if (named == kLengths.end()) {
      throw InvalidArgument(fmt::format(
          "--lengths '{}' is none of even, ragged, and no lengths from 1 such as 65536,7*4096",
          text));
    }
    options.lengths.push_back(*named);
  }
  if (options.lengths.empty() && options.listed.empty()) options.lengths = {Lengths::kEven};
  for (const std::vector<std::int64_t>& batch : options.listed) {
    at_most("--lengths: tokens together",
            std::accumulate(batch.begin(), batch.end(), std::int64_t{0}), kMostTokens);
  }
}

Shape shape_of(const Flags& flags, int head_parallel) {
  check_positive("--q-heads", flags.q_heads);
  check_positive("--kv-heads", flags.kv_heads);
  check_positive("--dim", flags.dim);
  check_positive("--page-size", flags.page_size);
  if (flags.q_heads % flags.kv_heads != 0 || flags.kv_heads % head_parallel != 0) {
    throw InvalidArgument(
        fmt::format("{} query heads must divide over {} kv heads, and those over head_parallel {}",
                    flags.q_heads, flags.kv_heads, head_parallel));
  }
  at_most("--q-heads", flags.q_heads, kMostPerShape);
  at_most("--dim", std::max(flags.dim, flags.v_dim), kMostPerShape);
  if (flags.v_dim < 0) throw InvalidArgument(fmt::format("--v-dim {} is negative", flags.v_dim));
  if (flags.latent && flags.v_dim > flags.dim) {
    throw InvalidArgument(
        fmt::format("--v-dim {}: latent keys have {} elements", flags.v_dim, flags.dim));
  }
  const Dtype dtype = dtype_from(flags.dtype);
  if (info_of(dtype).has_scales) {
    throw InvalidArgument(fmt::format("--dtype {}: only --kv-dtype can be that", flags.dtype));
  }
  return {.q_heads = flags.q_heads,
          .kv_heads = flags.kv_heads,
          .k_dim = flags.dim,
          .v_dim = flags.v_dim > 0 ? flags.v_dim : flags.dim,
          .page_size = flags.page_size,
          .page_kind = flags.latent ? PageKind::kLatent : PageKind::kKv,
          .dtype = dtype,
          .kv_dtype = flags.kv_dtype.empty() ? dtype : dtype_from(flags.kv_dtype),
          .kv_scales = launch::scale_kind_from(flags.kv_scales),
          .reproducible = flags.reproducible,
          .window = at_most("--window", not_negative("--window", flags.window), kMostTokens),
          .state_bytes = at_most("--state-bytes", not_negative("--state-bytes", flags.state_bytes),
                                 kMostStateBytes)};
}

// With several kv ranks a final output needs a combine, which `step` measures.
Output output_of(const std::string& text, const Mesh& mesh) {
  const Output output = named("--output", text, kOutputs);
  if (output == Output::kFinal && mesh.kv_parallel() > 1) {
    throw InvalidArgument(fmt::format(
        "--output final is of one kv rank, not {}; --op step has the combine", mesh.kv_parallel()));
  }
  return output;
}

bool takes_partials(Op op, Output output) {
  const bool attends = op == Op::kDecode || op == Op::kPrefill;
  return op == Op::kCombine || (attends && output == Output::kPartial);
}

bool has_windows(Op op) { return op == Op::kDecode || op == Op::kStep || op == Op::kPlan; }

// The operations of --op, or the usual ones. With a reproducible cache none may take a float32
// partial out of a step.
std::vector<Op> ops_of(const Flags& flags, Output output, const Mesh& mesh) {
  std::vector<Op> ops = named("--op", flags.ops, kOps);
  for (const Op op : ops) {
    if (moves_pages(op) && mesh.kv_parallel() > 1)
      throw InvalidArgument(
          fmt::format("--op {} is of one kv rank, not {}", name(op), mesh.kv_parallel()));
    if (op == Op::kGather && mesh.kv_parallel() == 1)
      throw InvalidArgument("--op gather is of several kv ranks, not 1");
  }
  if (ops.empty()) {
    std::ranges::copy_if(kOps, std::back_inserter(ops),
                         [&](Op op) { return flags.window > 0 ? has_windows(op) : !is_extra(op); });
    if (flags.reproducible) std::erase_if(ops, [&](Op op) { return takes_partials(op, output); });
  }
  for (const Op op : ops) {
    if (!flags.reproducible || !takes_partials(op, output)) continue;
    throw InvalidArgument(fmt::format(
        "--op {} takes a partial out of its step: with --reproducible measure step, or decode and "
        "prefill with --output final",
        name(op)));
  }
  return ops;
}

int kinds_of(const Flags& flags) {
  check_positive("--kinds", flags.kinds);
  if (flags.kinds > 1 && flags.kinds > flags.layers) {
    throw InvalidArgument(fmt::format("--kinds {} of --layers {}", flags.kinds, flags.layers));
  }
  return flags.kinds;
}

// A reproducible cache's pages are attended to by its own plans alone, and it ignores a fixed
// split.
std::vector<Manner> manners_of(const Flags& flags) {
  std::vector<Manner> manners;
  const auto take = [&](const char* flag, bool asked, Manner manner, bool not_reproducible) {
    if (!asked) return;
    if (flags.shared_prefix > 0 || (not_reproducible && flags.reproducible)) {
      throw InvalidArgument(fmt::format(
          "{}, with {}", flag, flags.shared_prefix > 0 ? "--shared-prefix" : "--reproducible"));
    }
    manners.push_back(manner);
  };
  take("--external", flags.external, Manner::kTables, true);
  take("--nhd", flags.nhd, Manner::kNhd, true);
  take("--sinks", flags.sinks, Manner::kSinks, false);
  take("--token-list", flags.token_list > 0, Manner::kList, true);
  take("--tree", flags.tree > 0, Manner::kTree, false);
  take("--score-mod", flags.score_mod, Manner::kMod, false);
  take("--fixed-split", flags.fixed_split > 0, Manner::kFixed, true);
  take("--limits", flags.limits, Manner::kLimits, false);
  return manners;
}

std::int64_t fixed_split_of(const Flags& flags) {
  const std::int64_t tokens = not_negative("--fixed-split", flags.fixed_split);
  const std::int64_t unit = std::lcm(kSplitUnit, std::int64_t{flags.page_size});
  if (tokens % unit == 0) return at_most("--fixed-split", tokens, kMostSplit);
  throw InvalidArgument(
      fmt::format("--fixed-split {} must be a multiple of {}: of {} tokens, and of pages of {}",
                  tokens, unit, kSplitUnit, flags.page_size));
}

bool has_op(const Options& options, Op op) {
  return std::ranges::find(options.ops, op) != options.ops.end();
}

// A captured graph takes few rows of each sequence and kv head. A GPU divides the heads of a group
// of more than as many into blocks, if it can.
void check_limits(const Flags& flags, const Options& options) {
  if (!flags.limits) return;
  if (!has_op(options, Op::kStep)) throw InvalidArgument("--limits is for --op step");
  const std::int64_t queries = std::ranges::max(queries_of(options, Op::kStep));
  const int group = flags.q_heads / flags.kv_heads;
  if (queries * std::min<std::int64_t>(group, kMostGraphRows) <= kMostGraphRows) return;
  throw InvalidArgument(
      fmt::format("--limits, with {} queries of {} query heads per kv head: a graph takes up to {} "
                  "rows of a sequence",
                  queries, group, kMostGraphRows));
}

// Pages that a window has given up do not come back: all plans have the same newest queries.
void check_window(const Flags& flags, const Options& options) {
  if (flags.window == 0) return;
  for (const Op op : options.ops) {
    if (has_windows(op)) continue;
    throw InvalidArgument(
        fmt::format("--window, with --op {}: it has decode, step and plan", name(op)));
  }
  if (options.queries.size() > 1) throw InvalidArgument("--window is for one number of --queries");
  at_most("--window: --queries", queries_of(options, Op::kDecode).front(), kMostWindowQueries);
  if (flags.shared_prefix > 0 || flags.external || flags.nhd || flags.token_list > 0) {
    throw InvalidArgument("--window, with --shared-prefix, --external, --nhd or --token-list");
  }
}

// Layers of several --kinds share their pages, and a fork of a shared prefix has no new state.
void check_states(const Flags& flags, const Options& options) {
  if (flags.kinds > 1 && (flags.window > 0 || flags.state_bytes > 0)) {
    throw InvalidArgument("--kinds, with --window or --state-bytes");
  }
  if (flags.state_bytes == 0) return;
  if (std::ranges::none_of(options.ops, has_states)) {
    throw InvalidArgument("--state-bytes is for --op step, plan and fork");
  }
  if (flags.state_bytes % kStateAlignment != 0) {
    throw InvalidArgument(
        fmt::format("--state-bytes {} is no multiple of {}", flags.state_bytes, kStateAlignment));
  }
  if (flags.shared_prefix > 0) throw InvalidArgument("--state-bytes, with --shared-prefix");
}

// A sequence shorter than the prefix would have to be the prefix's beginning.
void check_prefix(const Options& options) {
  if (options.shared_prefix == 0) return;
  for (const Op op : {Op::kCompact, Op::kFork}) {
    if (!has_op(options, op)) continue;
    throw InvalidArgument(fmt::format("--shared-prefix, with --op {}", name(op)));
  }
  if (options.lengths != std::vector{Lengths::kEven} || !options.listed.empty()) {
    throw InvalidArgument("--shared-prefix is for even --lengths");
  }
  if (options.shared_prefix >= std::ranges::min(options.contexts)) {
    throw InvalidArgument(fmt::format("--shared-prefix {}: a --context of {} is no longer",
                                      options.shared_prefix, std::ranges::min(options.contexts)));
  }
}

}  // namespace

Options resolve(const Flags& flags, Mesh& mesh) {
  const bool gpu = mesh.device().kind == DeviceKind::kCuda;
  check_positive("--repeats", flags.repeats);
  const Output output = output_of(flags.output, mesh);
  Options options{
      .ops = ops_of(flags, output, mesh),
      .batches =
          list_or("--batch", flags.batches,
                  gpu ? std::vector<std::int64_t>{1, 8, 64} : std::vector<std::int64_t>{1, 4}),
      .contexts = list_or(
          "--context", flags.contexts,
          gpu ? std::vector<std::int64_t>{8192, 131072} : std::vector<std::int64_t>{1024, 4096}),
      .queries = list_or("--queries", flags.queries, {}),
      .prefill_queries = gpu ? 2048 : 256,
      .shape = shape_of(flags, mesh.head_parallel()),
      .scatter =
          named("--scatter", flags.scatter,
                std::array{Scatter::kHeads, Scatter::kTokens, Scatter::kAll, Scatter::kOwner}),
      .strategy = named("--strategy", flags.strategy,
                        std::array{CombineStrategy::kAuto, CombineStrategy::kReduceScatter,
                                   CombineStrategy::kAllToAll, CombineStrategy::kAllReduce}),
      .ways = ways_of(flags, mesh),
      .travels_as = dtype_from(flags.travels_as.empty() ? flags.dtype : flags.travels_as),
      .output = output,
      .layers = not_negative("--layers", flags.layers),
      .kinds = kinds_of(flags),
      .shared_prefix =
          not_negative("--shared-prefix", flags.shared_prefix) / flags.page_size * flags.page_size,
      .manners = manners_of(flags),
      .token_list =
          at_most("--token-list", not_negative("--token-list", flags.token_list), kMostListed),
      .tree = at_most("--tree", not_negative("--tree", flags.tree), kMostPerShape),
      .fixed_split = fixed_split_of(flags),
      .repeats = flags.repeats,
      .row_seconds = not_negative("--row-seconds", flags.row_seconds),
      .rotate_bytes =
          at_most("--rotate-mib", not_negative("--rotate-mib", flags.rotate_mib), kMostBytes >> 20)
          << 20,
      .memory_bytes = static_cast<std::int64_t>(
          at_most("--memory-gib", not_negative("--memory-gib", flags.memory_gib),
                  kMostBytes >> 30) *
          (1 << 30))};
  check_together(options.batches, options.contexts, "--context");
  check_together(options.batches, options.queries, "--queries");
  if (options.row_seconds == 0) options.row_seconds = gpu ? 1 : 2;
  take_lengths(flags.lengths, options);
  check_prefix(options);
  check_limits(flags, options);
  check_window(flags, options);
  check_states(flags, options);
  return options;
}

std::vector<std::int64_t> queries_of(const Options& options, Op op) {
  if (!options.queries.empty()) return options.queries;
  if (op == Op::kCompact) return {kDrafts};
  return {op == Op::kPrefill || op == Op::kAppend ? options.prefill_queries : 1};
}

}  // namespace kvmesh::bench
