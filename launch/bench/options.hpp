// The options of `kvmesh bench`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvmesh/combine.hpp"
#include "kvmesh/mesh.hpp"
#include "kvmesh/page_format.hpp"

namespace CLI {
class App;
}

namespace kvmesh::bench {

enum class Op : std::uint8_t {
  kDecode,   ///< attention of few queries: the read of the keys and values is the cost
  kPrefill,  ///< attention of many queries: the arithmetic is the cost
  kAppend,
  kCombine,
  kStep,     ///< append, attend_partial and combine of one layer: StepPlan::run
  kGather,   ///< StepPlan::gather_queries; only if it is asked for
  kPlan,     ///< KvCache::replan, once for all layers: the host's time alone
  kCompact,  ///< KvCache::compact: a path of each sequence's drafts is kept; only if it is asked
             ///< for
  kFork,     ///< KvCache::fork, and a plan that appends to each fork; only if it is asked for
  kMove,     ///< KvCache::resize: pages that move within the device
  kStore,    ///< pages that are evicted to the host tier
  kLoad,     ///< KvCache::match_prefix: pages that come back from there
};
/// Times of whole pages in all layers.
inline bool moves_pages(Op op) { return op >= Op::kMove; }
/// Times of all layers together, by the host's clock.
inline bool is_by_host(Op op) { return op >= Op::kPlan; }
/// Has a row with states beside it.
inline bool has_states(Op op) { return op == Op::kStep || op == Op::kPlan || op == Op::kFork; }
/// Measured only if --op has it.
inline bool is_extra(Op op) { return op == Op::kGather || op > Op::kPlan; }

std::string_view name(Op op);

/// The lengths of the n sequences of a batch: their mean is --context, or they are listed.
enum class Lengths : std::uint8_t {
  kEven,
  kRagged,  ///< --context times 1/n, 3/n, 5/n ... (2n - 1)/n, shuffled
  kListed,
};
std::string_view name(Lengths lengths);

/// The output of decode and prefill.
enum class Output : std::uint8_t {
  kPartial,  ///< attend_partial alone: O and LSE in float32
  kFinal,    ///< the merged O in the model's dtype, too
};
std::string_view name(Output output);

/// The positions that a row of decode, prefill or step attends to, and the call that does it.
enum class Manner : std::uint8_t {
  kPlain,
  kTables,  ///< by an ExternalPlan over page tables of the same pages
  kNhd,     ///< the same, where each page has its heads within its tokens
  kSinks,   ///< with a sink per head
  kList,    ///< each query to the positions in a token list, by an ExternalPlan
  kTree,    ///< the newest tokens of each sequence are a draft tree
  kMod,     ///< with a score mod of ten operations
  kFixed,   ///< with a fixed split
  kLimits,  ///< by a plan with limits, which is planned again before each turn
};

/// The place of the drafts of a row of kCompact, and whether those that are kept move.
enum class Drafts : std::uint8_t {
  kStay,    ///< as many are kept as of the others, the first ones
  kWithin,  ///< all on one page
  kAcross,  ///< the kept ones move to the end of the page before those that do not fit it
};

/// One way of the combine, as a row of its own.
struct Way {
  std::string name{};
  std::optional<WayKind> kind{};  ///< empty: the cache's choice
  CombineStrategy strategy = CombineStrategy::kAuto;
};

/// The values as typed. Empty lists and zeros are chosen for the device.
struct Flags {
  std::vector<std::string> ops{};
  std::vector<std::int64_t> batches{};
  std::vector<std::int64_t> contexts{};
  std::vector<std::string> lengths{};
  std::vector<std::int64_t> queries{};
  std::vector<std::string> ways{};
  int q_heads = 64;
  int kv_heads = 8;
  int dim = 128;
  int v_dim = 0;
  int page_size = 16;
  bool latent = false;
  std::string dtype = "bfloat16";
  std::string kv_dtype{};
  std::string kv_scales = "per_token_and_head";
  std::string scatter = "heads";
  std::string strategy = "auto";
  std::string travels_as{};
  std::string output = "partial";
  bool reproducible = false;
  int layers = 0;
  int kinds = 1;
  std::int64_t window = 0;
  std::int64_t state_bytes = 0;
  std::int64_t shared_prefix = 0;
  bool external = false;
  bool nhd = false;
  bool sinks = false;
  std::int64_t token_list = 0;
  int tree = 0;
  bool score_mod = false;
  std::int64_t fixed_split = 0;
  bool limits = false;
  int repeats = 15;
  double row_seconds = 0;
  std::int64_t rotate_mib = 0;
  double memory_gib = 0;
};

/// Adds the options to the subcommand.
void add_options(CLI::App& command, Flags& flags);

struct Shape {
  int q_heads = 0;
  int kv_heads = 0;
  int k_dim = 0;
  int v_dim = 0;
  int page_size = 0;
  PageKind page_kind = PageKind::kKv;
  Dtype dtype = Dtype::kBFloat16;
  std::optional<Dtype> kv_dtype{};                    ///< of pages; unset: dtype
  ScaleKind kv_scales = ScaleKind::kPerTokenAndHead;  ///< of float8 pages
  bool reproducible = false;                          ///< the cache is reproducible
  /// The number of positions that queries of every second layer see, which are a layer group of
  /// their own; 0: all layers are alike.
  std::int64_t window = 0;
  /// Bytes of the states that some layers have in an additional row of some operations; 0: no such
  /// row.
  std::int64_t state_bytes = 0;

  Dtype page_dtype() const { return kv_dtype.value_or(dtype); }
  /// The number of kinds of layers, which alternate: with every key, with a window, with states.
  int layer_kinds() const { return 1 + (window > 0 ? 1 : 0) + (state_bytes > 0 ? 1 : 0); }
  bool is_latent() const { return page_kind == PageKind::kLatent; }
  /// Elements of a token and KV head: its key, and its value unless that is part of the key.
  std::int64_t row_elements() const { return is_latent() ? k_dim : k_dim + v_dim; }
  /// Whether each row of a page has a scale.
  bool has_row_scales() const {
    return has_scales(page_dtype(), {.kind = kv_scales}, ScaleKind::kPerTokenAndHead);
  }
  /// Bytes of a token and KV head, with those of the scales.
  std::int64_t page_row_bytes() const {
    const std::int64_t rows = is_latent() ? 1 : 2;
    const std::int64_t scales = has_row_scales() ? rows * sizeof(float) : 0;
    return row_elements() * static_cast<std::int64_t>(size_bytes(page_dtype())) + scales;
  }
};

struct Options {
  std::vector<Op> ops{};
  std::vector<std::int64_t> batches{};
  std::vector<std::int64_t> contexts{};
  std::vector<Lengths> lengths{};
  /// For kListed: the tokens of each sequence, one list per case.
  std::vector<std::vector<std::int64_t>> listed{};
  std::vector<std::int64_t> queries{};  ///< empty: queries_of's defaults
  std::int64_t prefill_queries = 0;     ///< where `queries` is empty
  Shape shape{};
  Scatter scatter = Scatter::kHeads;
  CombineStrategy strategy = CombineStrategy::kAuto;
  std::vector<Way> ways{};  ///< of `combine`
  std::optional<WayKind> way{};
  Dtype travels_as = Dtype::kFloat32;
  Output output = Output::kPartial;
  int layers = 0;  ///< 0: enough to exceed the caches
  int kinds = 1;   ///< of layers, of kPlan: each but the first has a window of its own
  /// First tokens that all sequences of a batch have in common, in whole pages.
  std::int64_t shared_prefix = 0;
  bool shares_prefixes = true;     ///< plans may read them once for all
  std::vector<Manner> manners{};   ///< that have rows beside the plain one, where they apply
  Manner manner = Manner::kPlain;  ///< of this row
  Drafts drafts = Drafts::kStay;   ///< of this row
  std::int64_t token_list = 0;     ///< positions in each list of kList
  int tree = 0;                    ///< children of each token of kTree
  std::int64_t fixed_split = 0;    ///< tokens of the pieces of kFixed
  int repeats = 0;
  double row_seconds = 0;         ///< fewer repeats if a row would take longer
  std::int64_t rotate_bytes = 0;  ///< 0: by the device's caches
  std::int64_t memory_bytes = 0;  ///< 0: by what is free
};

/// @throws InvalidArgument.
Options resolve(const Flags& flags, Mesh& mesh);

/// Such a list as typed: "65536,7*4096".
std::string text_of(const std::vector<std::int64_t>& listed);

/// Returns one set of options for each row of `op` with the same queries: `combine` and `gather`
/// have a row for each way, operations that may share a prefix have one that does and one that does
/// not, attention has one for each manner of the options, `compact` one for each place of the
/// drafts that `queries` of them can have. Operations with has_states have one with states, if the
/// shape has them; the other rows' shapes have none.
std::vector<std::pair<std::string, Options>> rows_of(const Options& options, Op op,
                                                     std::int64_t queries);

/// Returns the numbers of queries (append: new tokens) per sequence with which `op` is measured.
std::vector<std::int64_t> queries_of(const Options& options, Op op);

}  // namespace kvmesh::bench
