// Merging the ranks' partials of the same rows into the exact output.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "kvmesh/communicator.hpp"
#include "kvmesh/partial.hpp"

namespace kvmesh {

/// Which rows a rank gets. A row is one (token, head).
enum class Scatter : std::uint8_t {
  kHeads,   ///< All tokens of a contiguous share of the heads.
  kTokens,  ///< All heads of a contiguous share of the tokens.
  kAll,     ///< Everything, on every rank.
};

/// How the ranks move the partials. In a Combiner (the CPU's) all give the same bits: sources are
/// merged in rank order. On GPUs only kAllToAll does that: see DeviceCombiner.
///
/// kAuto is what was measured to be fastest. In a Combiner: kAllToAll, which to all (kAll) goes in
/// one step while a rank sends up to 32 KiB, and else to an owner each and from there to all. On
/// GPUs: kReduceScatter for kAll on more than two, if a rank would send over 4 MiB; else kAllToAll.
enum class CombineStrategy : std::uint8_t {
  kAuto,
  kReduceScatter,  ///< Gather every LSE, rescale O by its final weight, reduce-scatter the sums.
  kAllToAll,       ///< Send packed (O, LSE) rows to their owners and merge there.
  kAllReduce,      ///< Reduce the LSEs' maximum, then the weighted sums. On GPUs only: nccl.hpp.
};

std::string_view name(Scatter scatter);
std::string_view name(CombineStrategy strategy);

/// The half-open share of `count` items that rank `index` of `ranks` gets: contiguous, in rank
/// order, sizes differing by at most one. It may be empty.
struct Share {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t size() const { return end - begin; }
};
Share share_of(std::int64_t count, int index, int ranks);

/// Which ranks hold keys of a token's rows, one bit a rank. Every rank passes the same mask, so all
/// know without a message who sends what; a row whose only participant is its owner costs no bytes
/// (see DeviceCombiner for NCCL's).
class Participation {
 public:
  /// Nobody takes part in any of `tokens` tokens yet.
  Participation(std::int64_t tokens, int ranks);
  /// @throws InvalidArgument if there is no such token or rank.
  void add(std::int64_t token, Rank rank);
  /// REQUIRES: the token and the rank exist.
  bool has(std::int64_t token, Rank rank) const;
  std::int64_t tokens() const { return tokens_; }
  int ranks() const { return ranks_; }

 private:
  std::int64_t tokens_;
  int ranks_;
  std::size_t words_per_token_;
  std::vector<std::uint64_t> bits_;
};

struct CombineOptions {
  Scatter scatter = Scatter::kAll;
  CombineStrategy strategy = CombineStrategy::kAuto;
  /// Null: every rank takes part in every row.
  const Participation* participation = nullptr;
};

/// Where the merged rows go. With n tokens and h heads given to this rank by `scatter`:
/// `o`    [n, h, v_dim], float32, float16 or bfloat16.
/// `lse`  [n, h] float32, natural log; an empty view if not wanted.
struct CombineOutput {
  TensorView o{};
  TensorView lse{};
};

class CombineWay;

/// Merges the `mine` of all ranks of `comm` (equal shapes) in fixed rank order and leaves on each
/// rank the rows that `options.scatter` gives it. Rows without a visible key: O = 0, LSE = -inf.
/// The merged LSE makes combines compose (a node first, then the cluster).
///
/// What a rank has in rows of tokens that it takes no part in is never used, nor is O where its
/// LSE is -inf. The output must not overlap `mine`.
/// Buffers grow on first use and are kept, so make one Combiner and use it for every layer; it must
/// not outlive `comm`. One thread at a time.
class Combiner {
 public:
  explicit Combiner(Communicator& comm);
  ~Combiner();
  Combiner(Combiner&&) noexcept;
  Combiner& operator=(Combiner&&) noexcept;

  /// Collective: every rank gives the same shapes and options.
  /// @throws InvalidArgument before anything is sent if this rank's arguments are wrong; Timeout,
  /// PeerLost.
  void operator()(const Partial& mine, const CombineOptions& options, const CombineOutput& output);

 private:
  std::unique_ptr<CombineWay> way_;
};

}  // namespace kvmesh
