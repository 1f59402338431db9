// The flags of `kvmesh bench`.
#include <CLI/CLI.hpp>

#include "launch/bench/options.hpp"

namespace kvmesh::bench {

void add_options(CLI::App& command, Flags& flags) {
  const auto list = [&](const char* flag, auto& into, const char* text) {
    command.add_option(flag, into, text)->delimiter(',');
  };
  const auto value = [&](const char* flag, auto& into, const char* text) {
    command.add_option(flag, into, text)->capture_default_str();
  };
  list(
      "--op", flags.ops,
      "decode, prefill, append, combine, step, plan; default: all of these; pages of the batch, in "
      "all layers: move (within the device), store (to the host tier), load (back)");
  list("--batch", flags.batches, "sequences in the batch");
  list("--context", flags.contexts, "tokens of each sequence, or their mean");
  list("--lengths", flags.lengths,
       "of the n sequences: even (default), all of --context; ragged, 1/n, 3/n ... (2n - 1)/n of "
       "it, shuffled, where one shorter than --queries is queried whole; or the tokens of each "
       "sequence, as 65536,7*4096, which is one batch without --batch and --context; 8192/64*512 "
       "are two");
  list("--queries", flags.queries,
       "queries (append: new tokens) of each sequence; default: 1, of prefill and append a chunk");
  value("--q-heads", flags.q_heads, "of the whole model");
  value("--kv-heads", flags.kv_heads, "of the whole model");
  value("--dim", flags.dim, "of queries and keys");
  value("--v-dim", flags.v_dim, "of values; 0: as --dim");
  value("--page-size", flags.page_size, "tokens a page");
  command.add_flag("--latent", flags.latent,
                   "values are the first --v-dim elements of the keys, as in MLA");
  value("--dtype", flags.dtype, "dtype of all tensors: float32, float16, bfloat16");
  command.add_option(
      "--kv-dtype", flags.kv_dtype,
      "dtype of the cache, if not --dtype; float8_e4m3 has scales per token and head");
  value("--scatter", flags.scatter, "what the combine gives each rank: heads, tokens, all, owner");
  value("--strategy", flags.strategy, "auto, reduce_scatter, all_to_all, all_reduce");
  list(
      "--ways", flags.ways,
      "of the combine, a row for each: auto, host, staged, nccl, peer; recipe: the LSEs of all "
      "gathered, partials rescaled and reduce-scattered; default: on GPUs all that the ranks have");
  value("--travels-as", flags.travels_as,
        "type of the partials that the peer way sends: float32, float16, bfloat16; default: as "
        "--dtype");
  value("--output", flags.output,
        "output of decode and prefill: partial, O and LSE in float32; final, the merged O in "
        "--dtype, too (one kv rank)");
  command.add_flag("--reproducible", flags.reproducible,
                   "measure a cache whose bits depend on no rank, placement or batch");
  value("--layers", flags.layers, "layers to rotate over; 0: enough to exceed the caches");
  value("--kinds", flags.kinds,
        "kinds of layers, each with a mask of its own, for plan: at most as many as --layers");
  value(
      "--shared-prefix", flags.shared_prefix,
      "tokens that the sequences of a batch begin with together, in whole pages; decode, step and "
      "plan have rows that read them once for all (shared) and once for each (alone)");
  command.add_flag("--external", flags.external,
                   "decode and prefill have a row more (tables): an ExternalPlan over page tables "
                   "of the same pages, as of an engine's own");
  command.add_flag("--sinks", flags.sinks,
                   "decode, prefill and step have a row more (sinks): each head has a sink");
  value("--token-list", flags.token_list,
        "decode has a row more (list): each query sees this many positions, spread over its "
        "sequence, by an ExternalPlan with token lists; 0: none");
  value("--tree", flags.tree,
        "decode and step have a row more (tree): the newest --queries tokens of each sequence are "
        "a draft tree in which each has this many children; 0: none");
  command.add_flag("--score-mod", flags.score_mod,
                   "decode, prefill and step have a row more (mod): by a score mod of ten "
                   "operations, a soft cap and slopes of the heads past the first positions");
  value("--repeats", flags.repeats, "turns of operation and ceiling");
  value("--row-seconds", flags.row_seconds,
        "about the longest time for a row, with fewer turns (at least 3); 0: by the device");
  value("--rotate-mib", flags.rotate_mib,
        "data to rotate over; 0: several times the last-level cache");
  value("--memory-gib", flags.memory_gib,
        "memory per rank, larger cases are left out; 0: the free memory");
}

}  // namespace kvmesh::bench
