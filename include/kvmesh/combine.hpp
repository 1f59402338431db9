// Merges the ranks' partials of the same rows into the exact output.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kvmesh/api.h"
#include "kvmesh/communicator.hpp"
#include "kvmesh/partial.hpp"

namespace KVMESH_API kvmesh {

/// The rows that a rank gets. A row is one (token, head).
enum class Scatter : std::uint8_t {
  kHeads,   ///< All tokens of a contiguous share of the heads.
  kTokens,  ///< All heads of a contiguous share of the tokens.
  kAll,     ///< Everything, on every rank.
  /// All heads of the tokens that the rank owns: see Participation::owner. The output has all
  /// tokens; what it has in rows of other ranks' tokens is unspecified. Where the owner of each
  /// token is the only rank with keys of it, nothing is sent. Needs a participation mask; strategy
  /// kAllToAll (or kAuto).
  kOwner,
};

/// How the ranks move the partials. In a Combiner (for CPUs) all strategies give the same bits,
/// because they merge the sources in rank order. On GPUs only kAllToAll does: see DeviceCombiner.
///
/// kAuto chooses the strategy that was fastest in measurements:
/// - In a Combiner: kAllToAll. For Scatter::kAll it takes one step while a rank sends up to 32 KiB.
///   Above that, rows go to one owner each, and the owners send the merged rows to all.
/// - On GPUs: kReduceScatter for Scatter::kAll on more than two ranks if a rank would send over 4
///   MiB; else kAllToAll. In a cache, this machine's table of ways comes first (docs/design.md).
enum class CombineStrategy : std::uint8_t {
  kAuto,
  kReduceScatter,  ///< Gather every LSE, rescale O by its final weight, reduce-scatter the sums.
  kAllToAll,       ///< Send packed (O, LSE) rows to their owners and merge there.
  kAllReduce,      ///< Reduce the LSEs' maximum, then the weighted sums. GPUs only: nccl.hpp.
};

/// The transport of the rows. Every way takes the same options and gives the same result to
/// rounding.
enum class WayKind : std::uint8_t {
  kHost,    ///< The ranks' communicator, between host memories.
  kStaged,  ///< GPUs: copies to the host, the host's way, copies back.
  kNccl,    ///< GPUs: NCCL.
  kPeer,    ///< GPUs of one host: stores into one another's memory, over NVLink.
  /// First within each host and then between them: a row leaves a host once, not once per rank. On
  /// CPUs as kHost; on GPUs as kPeer or kNccl, then as kNccl. For ranks on several hosts, with
  /// several on each.
  kHierarchical,
};
inline constexpr int kWayKinds = 5;

std::string_view name(WayKind kind);
std::string_view name(Scatter scatter);
std::string_view name(CombineStrategy strategy);

/// Indices [begin, end), which may be none.
struct IndexRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t size() const { return end - begin; }
};
/// Returns the share of `count` items that rank `index` of `ranks` gets. Shares are contiguous and
/// in rank order, and their sizes differ by at most one. One may be empty.
IndexRange share_of(std::int64_t count, int index, int ranks);

/// A mask of the ranks that hold keys of a token's rows, one bit per rank. Every rank passes the
/// same mask, so all ranks know which rank sends which rows without a message. A row whose only
/// participant is its owner sends no bytes (DeviceCombiner documents the exceptions with NCCL).
class Participation {
 public:
  /// Makes a mask in which no rank takes part in any of `tokens` tokens.
  Participation(std::int64_t tokens, int ranks);
  /// Makes `rank` take part in the rows of `token`.
  /// @throws InvalidArgument if the token or the rank does not exist.
  void add(std::int64_t token, Rank rank);
  /// Returns whether `rank` takes part in the rows of `token`. REQUIRES: both exist.
  bool has(std::int64_t token, Rank rank) const;
  /// Makes `rank` the owner of `token`, to which Scatter::kOwner gives its rows.
  /// @throws InvalidArgument if the token or the rank does not exist.
  void set_owner(std::int64_t token, Rank rank);
  /// Returns the owner of `token`: as set, else the lowest rank that takes part, else rank 0.
  /// StepPlan sets the rank that holds the first page of the token's sequence: of a sequence on one
  /// rank that rank, of one that is spread over ranks the one where it began. If that page was
  /// released behind a window, the rank with the lowest page rank that holds pages is set.
  /// REQUIRES: the token exists.
  Rank owner(std::int64_t token) const;
  /// Returns whether no rank but its owner takes part in any token.
  bool is_of_owners_alone() const;
  /// The bits, rank r's of a token in word r / 64 of the token's words.
  std::span<const std::uint64_t> words() const { return bits_; }
  /// The same for `tokens` tokens; no rank takes part in the added ones, which rank 0 owns.
  /// @throws InvalidArgument if there are more already.
  Participation padded(std::int64_t tokens) const;
  std::int64_t tokens() const { return tokens_; }
  int ranks() const { return ranks_; }

 private:
  std::int64_t tokens_;
  int ranks_;
  std::size_t words_per_token_;
  std::vector<std::uint64_t> bits_;
  std::vector<std::int32_t> owners_;  // [tokens], -1: not set; empty: none is
};

/// Returns an order of the tokens in which Scatter::kTokens gives tokens to the ranks that hold
/// their keys: position i of the batch gets token `order[i]`. Tokens with keys on one rank alone
/// come to that rank's share, where they cost no bytes, as many as the share has room for; tokens
/// with keys on several ranks, and those that do not fit, fill what is left. Tokens of one share
/// keep their order. O(tokens * ranks).
std::vector<std::int64_t> order_for_equal_shares(const Participation& participation);

struct CombineOptions {
  Scatter scatter = Scatter::kAll;
  CombineStrategy strategy = CombineStrategy::kAuto;
  /// Null: every rank takes part in every row.
  const Participation* participation = nullptr;
  /// Empty: the fastest way that the group has (docs/design.md), or the one that the environment
  /// variable KVMESH_COMBINE_WAY names. A Combiner and a DeviceCombiner have one way each.
  std::optional<WayKind> way{};
  /// The type that O may travel in. kPeer rounds the partials of all ranks to it before it merges
  /// them, those of float16 beyond 65504 to infinity. The other ways send float32.
  Dtype travels_as = Dtype::kFloat32;
};

/// The tensors that the merged rows are written to. `scatter` gives this rank n tokens and h heads;
/// with kOwner these are all tokens and heads, of which the rank writes those that it owns.
struct CombineOutput {
  TensorView o{};    ///< [n, h, v_dim] float32, float16 or bfloat16
  TensorView lse{};  ///< [n, h] float32, natural log; an empty view if not wanted
};

class CombineWay;

/// Merges the partials of all ranks of a communicator. Rows without a visible key get O = 0, LSE =
/// -inf. The merged LSE allows combines in sequence (first within a node, then over the cluster).
///
/// Buffers grow on first use and are kept, so make one Combiner and use it for every layer. One
/// thread at a time.
class Combiner {
 public:
  /// REQUIRES: `comm` outlives the Combiner.
  explicit Combiner(Communicator& comm);
  ~Combiner();
  Combiner(Combiner&&) noexcept;
  Combiner& operator=(Combiner&&) noexcept;

  /// Merges the `mine` of all ranks in fixed rank order, and writes the rows that `options.scatter`
  /// gives this rank to `output`. Ignores the rows of tokens in which a rank takes no part, and O
  /// where its LSE is -inf.
  /// REQUIRES: every rank passes the same shapes and options; `output` does not overlap `mine`.
  /// @throws InvalidArgument before anything is sent if this rank's arguments are wrong;
  /// DigestMismatch if another rank that sends to this one passed other shapes or options, naming
  /// it and what differs; Timeout, PeerLost.
  /// Collective.
  void operator()(const Partial& mine, const CombineOptions& options, const CombineOutput& output);

 private:
  std::unique_ptr<CombineWay> way_;
};

}  // namespace kvmesh
