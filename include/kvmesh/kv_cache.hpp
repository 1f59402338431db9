// The distributed KV cache: the interface that an engine calls.
//
//   batch -> plan -> append -> attend -> combine -> output
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvmesh/allocator.hpp"
#include "kvmesh/api.h"
#include "kvmesh/attention.hpp"
#include "kvmesh/cache_options.hpp"
#include "kvmesh/combine.hpp"
#include "kvmesh/mesh.hpp"
#include "kvmesh/sequence_stream.hpp"
#include "kvmesh/step_plan.hpp"
#include "kvmesh/stream.hpp"

namespace KVMESH_API kvmesh {

struct CacheGroup;

/// The newest tokens that a sequence keeps, once a step has verified them as drafts: everything
/// before `begin`, and the tokens at `kept`.
struct KeptTokens {
  SequenceId sequence;
  std::int64_t begin = 0;
  std::vector<std::int64_t> kept{};  ///< positions from `begin` on, ascending
};

/// See KvCache::rebalance_now.
struct MoveProgress {
  std::int64_t moved = 0;   ///< pages that have moved since the last call
  std::int64_t moving = 0;  ///< pages that are being moved, or were until others needed the room
};

/// This rank's part of the cache: its pools, and a copy of the allocator. Every rank calls the same
/// operations in the same order; operations that exchange messages are marked "collective". Strong
/// guarantee, as in PageAllocator, unless a method says otherwise. One thread per rank. A cache
/// that has been moved from throws InvalidArgument.
class KvCache {
 public:
  /// Makes a cache. Each kv rank has as many pages as fit in the memory that its options give it;
  /// with head_parallel, in the smallest amount that one of its processes gets. Ranks of one
  /// machine map one another's pools.
  /// @throws InvalidArgument if the heads do not divide over head_parallel or a size is wrong;
  /// OutOfMemory, on every rank, if one rank's device has no room; Unsupported, on every rank, if
  /// `reproducible` is set for GPUs and pages that it does not support.
  /// Collective.
  KvCache(Mesh& mesh, const CacheOptions& options);
  ~KvCache();
  KvCache(KvCache&&) noexcept;
  KvCache& operator=(KvCache&&) noexcept;

  /// The options in effect: `v_dim` is set, `pages_per_rank` is the number of pages that this kv
  /// rank's pools began with, `bytes` and `memory_fraction` are 0.
  const CacheOptions& options() const;
  Mesh& mesh();
  /// The number of layer groups, and the group of a layer (CacheOptions::groups).
  int groups() const;
  int group_of(int layer) const;
  /// The options of a cache that has the layers of one group alone.
  CacheOptions group_options(int group) const;
  /// This rank's copy of a group's allocator: lengths, page tables, free pages, digest. Lengths are
  /// equal in all groups.
  const PageAllocator& allocator(int group = 0) const;
  /// A hash of the history of all groups' allocators; with one group, that of its allocator.
  std::uint64_t digest() const;
  /// The sequence's tokens. @throws UnknownSequence.
  std::int64_t length(SequenceId sequence) const { return allocator().length(sequence); }

  /// PageAllocator's operations, with the same errors; an id of another cache is an
  /// UnknownSequence. They change metadata only and do not wait for the device, with one exception:
  /// a `reserve` that evicts pages which tiers store waits for all work of a GPU, unless it is
  /// given `after`, the stream of the steps (see match_prefix).
  SequenceId create();
  void reserve(SequenceId sequence, std::int64_t tokens, std::optional<Stream> after = {});
  Result<Done> try_reserve(SequenceId sequence, std::int64_t tokens,
                           std::optional<Stream> after = {});
  SequenceId fork(SequenceId sequence);
  void truncate(SequenceId sequence, std::int64_t length);
  void erase(SequenceId sequence);

  /// Makes positions [begin, end) of the sequence writable in place, as
  /// PageAllocator::make_writable does, and copies the pages that it replaces. Without a stream it
  /// waits for all work of the device, and until the copies are made. With the stream of the steps
  /// the copies are part of the stream's work, but two ranks block if a page of the one, which is
  /// full, is copied to the other. REQUIRES: later uses of these positions are on `stream`, or wait
  /// for it.
  /// @throws as PageAllocator::make_writable. If a copy fails (Timeout, PeerLost, a device's
  /// Error), the sequence has its new pages, whose contents are unspecified. Collective if a page
  /// is copied to another rank.
  void make_writable(SequenceId sequence, std::int64_t begin, std::int64_t end,
                     std::optional<Stream> stream = {});
  Result<Done> try_make_writable(SequenceId sequence, std::int64_t begin, std::int64_t end,
                                 std::optional<Stream> stream = {});

  /// Moves the kept tokens of each sequence together, in all layers with keys: token kept[i] to
  /// position `begin + i`, whichever ranks hold the two. Then truncates each sequence behind them.
  /// Pages that forks share or that are published are copied before they are written, as
  /// make_writable does. States stay as they are (see sequence_state).
  ///
  /// On a GPU it runs on `stream`, after the work that is there; it blocks only where tokens or
  /// pages move between ranks. REQUIRES: later steps use `stream`, too.
  /// @throws UnknownSequence, InvalidArgument (also if a sequence appears twice) and OutOfPages,
  /// each with nothing moved or truncated; after any other error the contents of the positions from
  /// the beginning of `begin`'s page on are unspecified. A device's Error, on one rank, leaves the
  /// new lengths in place on every rank. Collective over the kv axis if a token or a page moves
  /// between ranks.
  void compact(std::span<const KeptTokens> batch, Stream stream = {});

  /// Moves at most `limit` pages, of all layer groups together, from ranks that hold more than
  /// their share to ranks that hold less, as PageAllocator::start_rebalance says: between two
  /// steps, so that decoding goes on. Every sequence keeps its tokens; the plans of sequences whose
  /// pages moved are stale. Blocks until the copies are made; on a GPU it first waits for all work
  /// of the device. Returns how many pages have moved.
  /// @throws InvalidArgument. After an error of a copy (Timeout, PeerLost, a device's Error) no
  /// page has moved. Collective over the world.
  std::int64_t rebalance(std::int64_t limit);
  /// As rebalance, but waits for no copy and for no work of the device: the pages move while steps
  /// go on, so a scheduler can call it between any two steps. A call starts moves of at most
  /// `limit` pages, of all layer groups together, unless some are under way; a later call, when the
  /// copies are made on all ranks, changes the page tables, and may start the next:
  ///
  ///   while (serving) {
  ///     cache.rebalance_now({.limit = 64}, stream);
  ///     cache.replan(step, batch, stream);
  ///     ...
  ///   }
  ///
  /// Every sequence keeps its tokens, and in a reproducible cache its bits. Only pages that are
  /// full of tokens move. Pages that steps write to, states, and pages of matches stay (see
  /// PageAllocator::start_rebalance_now). If a rank is `leaving`, its cached pages move, too, and
  /// new pages are on other ranks while these have free ones, so a later drain finds the rank
  /// nearly empty.
  ///
  /// Pages that are being moved are not written in place: to write to positions before the end of a
  /// sequence, call make_writable after this. Plans of sequences whose pages a call begins to move,
  /// or has moved, are stale. A page that is freed or evicted while it is copied can be used again
  /// when the moves have ended, and is free from then on. An operation that needs the pages that
  /// moves copy to gives the moves up, and a later call starts them again. (The operation gets
  /// these pages although allocator().free_pages() does not count them.) rebalance, resize, drain
  /// and add_rank first complete the moves that are under way.
  ///
  /// On a GPU the copies run on a stream of their own, after the work on `after`, which must come
  /// after all work that uses the cache's pages: that is the stream of `replan`. Without it a call
  /// that starts moves waits for all work of the device. The first moves, and larger ones than any
  /// before, allocate buffers, for which a driver may wait. REQUIRES: plans that append tokens have
  /// run in all layers, or, on a GPU, are on `after`.
  ///
  /// Returns the same on all ranks. @throws InvalidArgument; the error of this rank's copy, Error
  /// if another rank's failed: the moves are given up then, and no page has moved. Collective over
  /// the world; it waits for the other ranks' calls if pages move.
  MoveProgress rebalance_now(const RebalanceOptions& options = {},
                             std::optional<Stream> after = {});
  /// Gives the pools of a page rank `pages` pages, counted as CacheOptions::pages_per_rank, up to
  /// CacheOptions::max_pages_per_rank or the number that it began with. Pages past them that
  /// sequences hold move to where there is room, cached ones are evicted; then their memory is
  /// returned to the system (on a GPU if max_pages_per_rank is more than the pools began with; else
  /// it is kept). On a GPU views of the rank's pools in other processes (peer_pool) end. Returns,
  /// blocks and throws as rebalance.
  /// @throws, with nothing changed, OutOfPages if the pools have no room for the pages that move,
  /// which try_resize returns; OutOfMemory, on every rank, if the rank's memory is too small;
  /// Unsupported if the pools of this rank's GPU cannot grow. Collective over the world.
  std::int64_t resize(PageRank rank, std::int64_t pages);
  Result<std::int64_t> try_resize(PageRank rank, std::int64_t pages);
  /// resize to 0 pages: the rank holds no page any more, and gets none until add_rank takes it back
  /// into use, with the pages that it had. It still computes and communicates.
  /// @throws InvalidArgument of add_rank if the rank is not drained.
  std::int64_t drain(PageRank rank);
  Result<std::int64_t> try_drain(PageRank rank);
  void add_rank(PageRank rank);

  /// Writes keys and values in one layer at any positions below the capacity, in any order:
  /// element i of `k` [n, kv_heads, k_dim] and `v` [n, kv_heads, v_dim] at `positions[i]`, where
  /// this rank holds the page; for latent pages `v` is empty. Does not change the length.
  /// On a GPU it runs after the work on `stream`, and blocks until it is done.
  /// REQUIRES: no position appears twice; on a GPU, no other stream reads the pages.
  /// @throws, before anything is written, UnknownSequence; InvalidArgument for wrong tensors, for a
  /// position past the capacity, and for one on a page that a fork shares or that is
  /// published (see make_writable).
  void write(int layer, SequenceId sequence, std::span<const std::int64_t> positions,
             const ConstTensorView& k, const ConstTensorView& v, Stream stream = {});

  /// Returns a sequence's state in a layer of a state group (LayerGroup::state_bytes), in memory of
  /// the mesh's device: [state_bytes / 4] in float32, whatever its bytes mean. The view is empty on
  /// the kv ranks that do not hold the state, and for a sequence without tokens, which has none.
  /// Kernels that take a number per sequence find all states in planes(layer)[0], [pages, 1, 1,
  /// state_bytes / 4], and the number, a page's index, in allocator(group).pages(sequence).
  ///
  /// The first plan that appends to a sequence gives it a state, of unspecified contents. Forks
  /// share it until one of them appends: then that plan copies it. So after a plan the states of
  /// the sequences that it appends to may be written, on a GPU by work on the stream of later
  /// steps; so may those that make_writable was called for. The view is valid until the sequence is
  /// appended to, moved, truncated to 0 or erased. truncate to another length and compact leave a
  /// state as it is: to take back drafts, keep a fork, or compute the state again. Exports,
  /// imports, and moves but those of rebalance_now take states along.
  /// @throws UnknownSequence; InvalidArgument if the layer has keys and values.
  TensorView sequence_state(int layer, SequenceId sequence);

  /// The prefix cache: PageAllocator's operations, with the same errors; they change metadata only.
  /// Every page of a match lies where it was written, so the batch that goes on from it may read
  /// pages of any rank. A run that ends inside of a page shares that page, which is copied when the
  /// sequence is appended to; it is sought among the 32 newest pages that go on from the run.
  ///
  ///   PrefixKey key = cache.make_prefix_key();      // per request; hashes each page once
  ///   key.append(prompt);
  ///   SequenceId s = cache.create_with_prefix(key);  // has the first length(s) tokens
  ///   ...                                            // plan and run the rest of the prompt
  ///   cache.publish(s, key);                         // later requests find its full pages,
  ///   cache.erase(s);                                // also after this
  ///
  /// With tiers, match_prefix also brings pages back that were evicted (see tiers.hpp). A rank's
  /// pages come back where its host tier has them; pages of files where placement puts them, and
  /// pages of host tiers that find no room on their rank, if files have them, too. Later
  /// plans wait for the copies. With a file tier, match_prefix and create_with_prefix of a key are
  /// collective over the world, and read the files before they return.
  PrefixKey make_prefix_key(PrefixExtras extras = {}) const;
  /// On a GPU the copies run beside the steps, after the work on `after`, which must come after all
  /// work that uses the cache's pages: that is the stream of `replan`. Without it the call waits
  /// for all work of the device if pages come back.
  PrefixMatch match_prefix(const PrefixKey& key, std::optional<Stream> after = {});
  /// As match_prefix, but waits for no file, so that a scheduler serves others meanwhile: it starts
  /// to read the key's pages from files, and returns the run that device and host tiers have now.
  /// While `loading` of the match is not 0, a later call for the key may find more; the pages that
  /// have come on all ranks by then are found:
  ///
  ///   PrefixMatch match = cache.match_prefix_now(key);
  ///   if (match.loading > 0) {  // worth a wait?
  ///     cache.release(match);   // ask again in a later step
  ///   }
  ///
  /// The pages that are being loaded are held, as if by a sequence. They come back even if no later
  /// call is for this key, and are published by any later call, for any key, that looks for pages
  /// in files. Loads are given up if an operation needs their pages (which it gets although
  /// allocator().free_pages() does not count them), if rebalance or resize would move these pages,
  /// or if match_prefix has waited for them for half of the deadline. A later call starts them
  /// again. A file that could not be read on some rank is a miss on all, and counted there; these
  /// calls do not read it again until the page has been stored anew, or match_prefix has read it.
  /// Pages of host tiers that there is no room for count as loading only while they come from
  /// files. A page that is being loaded for one key is not read again for another; the pages behind
  /// it are read once it has come.
  ///
  /// Returns `tokens` and `loading` alike on all ranks. `after` and @throws as match_prefix. With a
  /// file tier collective over the world; it waits for the other ranks' calls.
  PrefixMatch match_prefix_now(const PrefixKey& key, std::optional<Stream> after = {});
  SequenceId create_with_prefix(const PrefixMatch& match);
  SequenceId create_with_prefix(const PrefixKey& key, std::optional<Stream> after = {});
  void release(const PrefixMatch& match);
  /// In a state group it keeps the sequence's state, if its tokens fill whole pages: the next plan
  /// that appends to it, or to a sequence of a match, copies the state. A match is as long as the
  /// last of its positions that has a state, so a prompt's steps must end where its state is to be
  /// found. REQUIRES: the runs of all layers that write the tokens, and the work that writes the
  /// states, have returned, or, on a GPU, are on the stream that later steps use; the states are
  /// of all the sequence's tokens, also after truncate.
  void publish(SequenceId sequence, const PrefixKey& key,
               std::span<const Retention> retentions = {});

  /// Stores this rank's published pages, and those of its host tier, in the file tier, and blocks
  /// until the files are there. Without a file tier it does nothing. On a GPU it waits for all work
  /// of the device.
  void flush_tiers();
  TierStatistics tier_statistics() const;

  /// Writes the sequence as a stream (see sequence_stream.hpp) to `sink` on world rank 0; other
  /// ranks pass null. With a key of the sequence's tokens the stream has them and their hashes. On
  /// a GPU it waits for all work of the device.
  /// @throws UnknownSequence; InvalidArgument if the key has fewer tokens; StreamError on every
  /// rank if the sink fails. Collective over the world.
  void export_sequence(SequenceId sequence, ByteSink* sink, const PrefixKey* key = nullptr);
  /// Makes a sequence of the stream that `source` has on world rank 0; other ranks pass null. Page
  /// size, placement and ranks may differ from the exporter's; layers, heads and planes may not.
  /// Returns it, with the header. To let later requests find it, make a key of the header's tokens
  /// and publish it.
  /// @throws StreamError on every rank; OutOfPages. No sequence and no page is left then.
  /// Collective over the world.
  ImportedSequence import_sequence(ByteSource* source);

  /// BlockMask::create, computed on the mesh's device.
  BlockMask make_block_mask(const MaskMod& mask, const BlockMaskShape& shape);

  /// Plans one step: appends the batch's tokens, makes the copies of copy on write and uploads the
  /// plan.
  /// REQUIRES: no sequence appears twice.
  /// Blocks until the plan is on the device; with several kv ranks, and if it copies on write or
  /// evicts pages that tiers store, it first waits for all earlier work on the device. Collective
  /// if a page is copied to another rank, at every 64th plan or replan of the cache, and always in
  /// debug builds.
  ///
  /// If it throws:
  ///
  ///   OutOfPages, UnknownSequence, InvalidArgument; DigestMismatch if the ranks have not planned
  ///   the same steps
  ///       nothing has changed.
  ///   Timeout, PeerLost, NcclError, Error or DigestMismatch after the append
  ///       (a failed copy between ranks, a failed device, no memory for the plan;
  ///       DigestMismatch in debug builds only): the sequences have their new lengths on every
  ///       rank, also on ranks where the call succeeded. To go back, truncate them to their old
  ///       lengths on every rank. A sequence that shared its last, partly filled page with a fork
  ///       may lack the copy of that page: truncate it to whole pages or erase it. Going back needs
  ///       working communicators. On a GPU a copy that was late ends before pages are used again.
  ///   Timeout or NcclError of the first wait; Error while kernels are compiled or, on a GPU,
  ///   the limits' memory is allocated
  ///       a rank where the step could not be made is unchanged. But ranks where this succeeded
  ///       have appended, and the allocators differ: discard the cache.
  StepPlan plan(std::span<const BatchEntry> batch, const PlanOptions& options = {});
  StepPlan plan(std::initializer_list<BatchEntry> batch, const PlanOptions& options = {}) {
    return plan(std::span(batch.begin(), batch.size()), options);
  }
  /// Returns how many of a group's pages `plan` or `replan` of this batch would take, copies of
  /// copy on write included: there are enough if allocator(group).free_pages() is at least that.
  /// Changes nothing. @throws UnknownSequence; InvalidArgument for a negative append_tokens, for a
  /// sequence that appears twice, and if the group does not exist.
  std::int64_t pages_needed(std::span<const BatchEntry> batch, int group = 0) const;
  std::int64_t pages_needed(std::initializer_list<BatchEntry> batch, int group = 0) const {
    return pages_needed(std::span(batch.begin(), batch.size()), group);
  }
  /// Returns an order of the batch in which the sequences whose rows Scatter::kOwner gives to one
  /// kv rank follow one another, by rising rank: entry order[i] comes i-th. Sequences of one rank
  /// keep their order. Sequences without pages of the group come last: a plan chooses their ranks.
  /// Behind a window the lowest rank with pages is the owner: there a page that the plan takes may
  /// change it. The order is equal on all ranks. The call changes nothing; make it before `plan` or
  /// `replan`. O(n log n), and with a window as many steps more as sequences have pages.
  /// @throws UnknownSequence; InvalidArgument if the group does not exist.
  std::vector<std::int64_t> order_by_owner(std::span<const BatchEntry> batch, int group = 0) const;
  /// As plan, but returns OutOfPages instead of throwing it.
  Result<StepPlan> try_plan(std::span<const BatchEntry> batch, const PlanOptions& options = {});
  Result<StepPlan> try_plan(std::initializer_list<BatchEntry> batch,
                            const PlanOptions& options = {}) {
    return try_plan(std::span(batch.begin(), batch.size()), options);
  }

  /// Plans another batch in place: with `step`'s options and in its memory. On a GPU the work runs
  /// on `stream`, after the work that is there, copies of copy on write included. The call blocks
  /// only for kernels that are needed for the first time, for an earlier replan that the device has
  /// not read yet, and where a page of a full rank is copied to another one: these two ranks wait
  /// for the work on `stream` and for each other. The stream also waits for copies of tiers
  /// (see match_prefix). `q_positions` as in PlanOptions.
  /// @throws as `plan`; InvalidArgument also if the batch exceeds the step's limits or `step`
  /// belongs to another cache. After an error that has changed something `step` throws
  /// InvalidArgument until it is planned again. try_replan returns OutOfPages instead of
  /// throwing it.
  void replan(StepPlan& step, std::span<const BatchEntry> batch, Stream stream = {},
              std::span<const std::int64_t> q_positions = {});
  Result<Done> try_replan(StepPlan& step, std::span<const BatchEntry> batch, Stream stream = {},
                          std::span<const std::int64_t> q_positions = {});
  void replan(StepPlan& step, std::initializer_list<BatchEntry> batch, Stream stream = {},
              std::span<const std::int64_t> q_positions = {}) {
    replan(step, std::span(batch.begin(), batch.size()), stream, q_positions);
  }
  Result<Done> try_replan(StepPlan& step, std::initializer_list<BatchEntry> batch,
                          Stream stream = {}, std::span<const std::int64_t> q_positions = {}) {
    return try_replan(step, std::span(batch.begin(), batch.size()), stream, q_positions);
  }

  /// Compares the ranks' allocators. Debug builds call it in every plan.
  /// @throws DigestMismatch, naming the first operation in which the allocators differ.
  /// Collective.
  void check_replicas();

  /// Names the GPU programs that this rank's plans, writes and block masks have loaded so far, in
  /// any order: their keys, as in the folder of compiled kernels and in KVMESH_DUMP. Empty on the
  /// CPU.
  std::vector<std::string> kernel_programs() const;
  /// Device memory that this rank's pools may fill with their present pages.
  std::int64_t pool_bytes() const;
  /// Returns what a page of one layer of a group holds on this rank.
  const PageFormat& page_format(int group = 0) const;
  /// This rank's planes of one layer, to copy, save or send.
  /// @throws InvalidArgument if the layer does not exist.
  PagePlanes planes(int layer);
  /// This rank's pages of one layer, for the engine's own kernels.
  /// @throws InvalidArgument if the layer does not exist or holds states.
  KvPool pool(int layer);
  /// Returns the pages of one layer on kv rank `kv_rank` (this rank's own included), for kernels of
  /// this rank's device to read. Empty if this rank cannot map them: the owner is on another
  /// machine, or on a GPU that this GPU cannot access.
  ///
  /// The owner writes to these pages: a message or a collective must ensure that it is done with
  /// the pages that are read. The pages stay readable if the owner's process dies. They become
  /// invalid when the owner frees its cache (destroys it or moves into it): no peer may be reading
  /// then.
  /// @throws InvalidArgument if the rank or the layer does not exist, or the layer holds states.
  std::optional<ConstKvPool> peer_pool(Rank kv_rank, int layer) const;

 private:
  friend class StepPlan;
  class State;
  State& state() const;
  CacheGroup& group(int group) const;
  std::unique_ptr<State> state_;
};

}  // namespace kvmesh
