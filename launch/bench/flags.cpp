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
      "what to measure. Of one layer: decode (attention of few queries), prefill (of many), append "
      "(of new keys and values), combine (of the kv ranks' partials), step (all of these), gather "
      "(of all heads' queries to every kv rank). Of all layers: plan (by the host), compact (keep "
      "a path of --queries drafts, 16, in a tree of --tree children each, 2), fork (each sequence, "
      "and the plan that appends --queries tokens to each fork), and the batch's pages: move "
      "(within the device), store (to the host tier), load (back). Default: decode, prefill, "
      "append, combine, step, plan");
  add.list("--batch", flags.batches, "sequences in the batch; several: a table row for each");
  add.list("--context", flags.contexts, "tokens of each sequence, or their mean");
  add.list(
      "--lengths", flags.lengths,
      "lengths of a batch's n sequences: even (default), each has --context tokens; ragged, they "
      "have 1/n, 3/n ... (2n - 1)/n of it, shuffled, and one shorter than --queries is queried "
      "whole; or numbers, a batch whatever --batch and --context say: 65536,7*4096 has one long "
      "sequence and seven short ones, 8192/64*512 are two batches");
  add.list(
      "--queries", flags.queries,
      "queries (append: new tokens) of each sequence; default: 1, of prefill and append a chunk");
}

void add_shape(const Adder& add, Flags& flags) {
  add.value("--q-heads", flags.q_heads, "query heads of a layer, on all ranks together");
  add.value("--kv-heads", flags.kv_heads, "kv heads of a layer, on all ranks together");
  add.value("--dim", flags.dim, "elements of a query or key");
  add.value("--v-dim", flags.v_dim, "elements of a value; 0: as --dim");
  add.value("--page-size", flags.page_size, "tokens in a page");
  add.flag("--latent", flags.latent,
           "values are the first --v-dim elements of the keys, as in MLA");
  add.value("--dtype", flags.dtype, "type of all tensors: float32, float16, bfloat16");
  add.optional("--kv-dtype", flags.kv_dtype,
               "type of pages, one of these or float8_e4m3; default: as --dtype");
  add.value(
      "--kv-scales", flags.kv_scales,
      "scales of float8 pages: per_token_and_head, which append computes, per_head, per_tensor");
}

void add_combine(const Adder& add, Flags& flags) {
  add.value(
      "--scatter", flags.scatter,
      "rows that the combine gives each kv rank: a share of the heads, a share of the tokens, "
      "all, or those of its own sequences (owner)");
  add.value("--strategy", flags.strategy,
            "messages of the combine: auto, reduce_scatter, all_to_all, all_reduce");
  add.list("--ways", flags.ways,
           "ways of combine and gather, a row for each: auto, host, staged, nccl, peer, "
           "hierarchical, or recipe (all LSEs gathered, partials rescaled and reduce-scattered, as "
           "engines do by hand); default: on GPUs all that the ranks have");
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
  add.value(
      "--layers", flags.layers,
      "layers to measure in turn, so that no processor's cache has their pages; 0: as many as "
      "that takes");
  add.value("--kinds", flags.kinds,
            "plan is of this many kinds of layers, each with a mask of its own, at most --layers");
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
  add.value("--repeats", flags.repeats,
            "turns of an operation and its ceiling, of which the table has the median");
  add.value(
      "--row-seconds", flags.row_seconds,
      "about the longest time for a row, which then has fewer turns, at least 3; 0: 1 on GPUs, "
      "2 on CPUs");
  add.value("--rotate-mib", flags.rotate_mib,
            "MiB of the layers in turn, if --layers is 0; 0: several times the last-level cache");
  add.value("--memory-gib", flags.memory_gib,
            "memory of a rank in GiB, larger cases are left out; 0: the free memory");
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
