// The flags of `kvmesh bench`.
#include <CLI/CLI.hpp>

#include <string>

#include "launch/bench/options.hpp"

namespace kvmesh::bench {

namespace {

/// Adds options to a command, whose help lists them in this order.
class Adder {
 public:
  explicit Adder(CLI::App& command) : command_(command) {}

  template <class Values>
  void list(const char* name, Values& into, const char* text) const {
    command_.add_option(name, into, text)->delimiter(',');
  }
  template <class Value>
  void value(const char* name, Value& into, const char* text) const {
    command_.add_option(name, into, text)->capture_default_str();
  }
  void optional(const char* name, std::string& into, const char* text) const {
    command_.add_option(name, into, text);
  }
  void flag(const char* name, bool& into, const char* text) const {
    command_.add_flag(name, into, text);
  }

 private:
  CLI::App& command_;
};

void add_cases(const Adder& add, Flags& flags) {
  add.list(
      "--op", flags.ops,
      "decode, prefill, append, combine, step, plan; default: all of these; gather: the queries of "
      "all heads to every kv rank; compact: of --queries drafts of each sequence (16) a path of a "
      "tree is kept, with --tree children (2) of each, in all layers; fork: of each sequence, and "
      "the plan that appends --queries tokens to each fork; pages of the batch, in all "
      "layers: move (within the device), "
      "store (to the host tier), load (back)");
  add.list("--batch", flags.batches, "sequences in the batch");
  add.list("--context", flags.contexts, "tokens of each sequence, or their mean");
  add.list(
      "--lengths", flags.lengths,
      "of the n sequences: even (default), all of --context; ragged, 1/n, 3/n ... (2n - 1)/n of "
      "it, shuffled, where one shorter than --queries is queried whole; or the tokens of each "
      "sequence, as 65536,7*4096, which is one batch without --batch and --context; 8192/64*512 "
      "are two");
  add.list(
      "--queries", flags.queries,
      "queries (append: new tokens) of each sequence; default: 1, of prefill and append a chunk");
}

void add_shape(const Adder& add, Flags& flags) {
  add.value("--q-heads", flags.q_heads, "of the whole model");
  add.value("--kv-heads", flags.kv_heads, "of the whole model");
  add.value("--dim", flags.dim, "of queries and keys");
  add.value("--v-dim", flags.v_dim, "of values; 0: as --dim");
  add.value("--page-size", flags.page_size, "tokens a page");
  add.flag("--latent", flags.latent,
           "values are the first --v-dim elements of the keys, as in MLA");
  add.value("--dtype", flags.dtype, "dtype of all tensors: float32, float16, bfloat16");
  add.optional("--kv-dtype", flags.kv_dtype,
               "dtype of the cache, if not --dtype: float8_e4m3, too");
  add.value("--kv-scales", flags.kv_scales,
            "of float8 pages: per_token_and_head, which append computes, per_head, per_tensor");
}

void add_combine(const Adder& add, Flags& flags) {
  add.value("--scatter", flags.scatter,
            "what the combine gives each rank: heads, tokens, all, owner");
  add.value("--strategy", flags.strategy, "auto, reduce_scatter, all_to_all, all_reduce");
  add.list(
      "--ways", flags.ways,
      "of combine and gather, a row for each: auto, host, staged, nccl, peer; recipe: the LSEs of "
      "all "
      "gathered, partials rescaled and reduce-scattered; default: on GPUs all that the ranks have");
  add.value("--travels-as", flags.travels_as,
            "type of the partials that the peer way sends: float32, float16, bfloat16; default: as "
            "--dtype");
}

void add_plan(const Adder& add, Flags& flags) {
  add.value("--output", flags.output,
            "output of decode and prefill: partial, O and LSE in float32; final, the merged O in "
            "--dtype, too (one kv rank)");
  add.flag("--reproducible", flags.reproducible,
           "measure a cache whose bits depend on no rank, placement or batch");
  add.value("--layers", flags.layers, "layers to rotate over; 0: enough to exceed the caches");
  add.value("--kinds", flags.kinds,
            "kinds of layers, each with a mask of its own, for plan: at most as many as --layers");
  add.value("--window", flags.window,
            "positions that queries of every second layer see, in a layer group that gives up its "
            "other pages; decode and step are then means of both kinds of layers, plan is of both "
            "together; 0: none");
  add.value(
      "--state-bytes", flags.state_bytes,
      "step, plan and fork have a row more (states): the layers alternate with layers that have a "
      "state of as many bytes for each sequence, as of linear attention, which the model computes "
      "and forks copy; 0: none");
  add.value(
      "--shared-prefix", flags.shared_prefix,
      "tokens that the sequences of a batch begin with together, in whole pages; decode, step and "
      "plan have rows that read them once for all (shared) and once for each (alone)");
}

/// Each has rows of its own.
void add_extra_rows(const Adder& add, Flags& flags) {
  add.flag("--external", flags.external,
           "decode and prefill have a row more (tables): an ExternalPlan over page tables "
           "of the same pages, as of an engine's own");
  add.flag("--nhd", flags.nhd,
           "decode and prefill have a row more (nhd): the same over pages [tokens, heads, dim], as "
           "engines have them; the cache's are [heads, tokens, dim]");
  add.flag("--sinks", flags.sinks,
           "decode, prefill and step have a row more (sinks): each head has a sink");
  add.value("--token-list", flags.token_list,
            "decode has a row more (list): each query sees this many positions, spread over its "
            "sequence, by an ExternalPlan with token lists; 0: none");
  add.value(
      "--tree", flags.tree,
      "decode and step have a row more (tree): the newest --queries tokens of each sequence are "
      "a draft tree in which each has this many children; 0: none");
  add.flag("--score-mod", flags.score_mod,
           "decode, prefill and step have a row more (mod): by a score mod of ten "
           "operations, a soft cap and slopes of the heads past the first positions");
  add.value(
      "--fixed-split", flags.fixed_split,
      "decode, prefill and step have a row more (fixed): keys are read in pieces of this many "
      "tokens, a multiple of 128 and of the page size, so that no bit of a sequence's rows "
      "depends on the rest of the batch; 0: none");
  add.flag("--limits", flags.limits,
           "step has a row more (limits): by a plan with StepLimits that sequences of twice the "
           "length would fit, replanned before each turn as an engine does before it replays a "
           "graph; the time does not include the replan, see plan");
}

void add_effort(const Adder& add, Flags& flags) {
  add.value("--repeats", flags.repeats, "turns of operation and ceiling");
  add.value("--row-seconds", flags.row_seconds,
            "about the longest time for a row, with fewer turns (at least 3); 0: by the device");
  add.value("--rotate-mib", flags.rotate_mib,
            "data to rotate over; 0: several times the last-level cache");
  add.value("--memory-gib", flags.memory_gib,
            "memory per rank, larger cases are left out; 0: the free memory");
}

}  // namespace

void add_options(CLI::App& command, Flags& flags) {
  const Adder add(command);
  add_cases(add, flags);
  add_shape(add, flags);
  add_combine(add, flags);
  add_plan(add, flags);
  add_extra_rows(add, flags);
  add_effort(add, flags);
}

}  // namespace kvmesh::bench
