#include "core/check.hpp"
#include "core/pod/shares.hpp"
#include "kvmesh/combine.hpp"

namespace kvmesh {
namespace {

constexpr std::size_t kBits = 64;

}  // namespace

std::string_view name(Scatter scatter) {
  switch (scatter) {
    case Scatter::kHeads:
      return "heads";
    case Scatter::kTokens:
      return "tokens";
    case Scatter::kAll:
      return "all";
  }
  return "unknown";
}

std::string_view name(CombineStrategy strategy) {
  switch (strategy) {
    case CombineStrategy::kAuto:
      return "auto";
    case CombineStrategy::kReduceScatter:
      return "reduce_scatter";
    case CombineStrategy::kAllToAll:
      return "all_to_all";
    case CombineStrategy::kAllReduce:
      return "all_reduce";
  }
  return "unknown";
}

Share share_of(std::int64_t count, int index, int ranks) {
  require(count >= 0 && ranks > 0 && index >= 0 && index < ranks,
          "share_of: share {} of {} of {} items", index, ranks, count);
  return {share_begin<std::int64_t>(count, index, ranks),
          share_begin<std::int64_t>(count, index + 1, ranks)};
}

Participation::Participation(std::int64_t tokens, int ranks)
    : tokens_(tokens), ranks_(ranks), words_per_token_(0) {
  require(tokens >= 0 && ranks > 0, "Participation: {} tokens, {} ranks", tokens, ranks);
  words_per_token_ = (static_cast<std::size_t>(ranks) + kBits - 1) / kBits;
  bits_.resize(static_cast<std::size_t>(tokens) * words_per_token_);
}

void Participation::add(std::int64_t token, Rank rank) {
  require(token >= 0 && token < tokens_ && rank.value >= 0 && rank.value < ranks_,
          "Participation: token {} of {}, rank {} of {}", token, tokens_, rank.value, ranks_);
  const auto bit = static_cast<std::size_t>(rank.value);
  bits_[static_cast<std::size_t>(token) * words_per_token_ + bit / kBits] |= std::uint64_t{1}
                                                                             << bit % kBits;
}

bool Participation::has(std::int64_t token, Rank rank) const {
  const auto bit = static_cast<std::size_t>(rank.value);
  return (bits_[static_cast<std::size_t>(token) * words_per_token_ + bit / kBits] >> bit % kBits &
          1) != 0;
}

}  // namespace kvmesh
