#include <algorithm>
#include <iterator>

#include "core/check.hpp"
#include "core/checked.hpp"
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
    case Scatter::kOwner:
      return "owner";
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

IndexRange share_of(std::int64_t count, int index, int ranks) {
  require(count >= 0 && ranks > 0 && index >= 0 && index < ranks,
          "share_of: share {} of {} of {} items", index, ranks, count);
  return {share_begin<std::int64_t>(count, index, ranks),
          share_begin<std::int64_t>(count, index + 1, ranks)};
}

Participation::Participation(std::int64_t tokens, int ranks)
    : tokens_(tokens), ranks_(ranks), words_per_token_(0) {
  require(tokens >= 0 && ranks > 0, "Participation: {} tokens, {} ranks", tokens, ranks);
  words_per_token_ = (static_cast<std::size_t>(ranks) + kBits - 1) / kBits;
  bits_.resize(static_cast<std::size_t>(
      checked_product("Participation", {tokens, static_cast<std::int64_t>(words_per_token_)})));
}

void Participation::add(std::int64_t token, Rank rank) {
  require(token >= 0 && token < tokens_ && rank.value >= 0 && rank.value < ranks_,
          "Participation: token {} of {}, rank {} of {}", token, tokens_, rank.value, ranks_);
  const auto bit = static_cast<std::size_t>(rank.value);
  bits_[static_cast<std::size_t>(token) * words_per_token_ + bit / kBits] |= std::uint64_t{1}
                                                                             << bit % kBits;
}

namespace {

/// The one rank that holds keys of the token; -1 if several do, or none.
int only_holder(const Participation& participation, std::int64_t token) {
  int holder = -1;
  for (int r = 0; r < participation.ranks(); ++r) {
    if (!participation.has(token, Rank{r})) continue;
    if (holder >= 0) return -1;
    holder = r;
  }
  return holder;
}

}  // namespace

std::vector<std::int64_t> order_for_equal_shares(const Participation& participation) {
  const std::int64_t tokens = participation.tokens();
  const int ranks = participation.ranks();
  std::vector<std::vector<std::int64_t>> shares(static_cast<std::size_t>(ranks));
  const auto has_room = [&](int rank) {
    return std::ssize(shares[static_cast<std::size_t>(rank)]) <
           share_of(tokens, rank, ranks).size();
  };
  std::vector<std::int64_t> others;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const int holder = only_holder(participation, t);
    const bool fits = holder >= 0 && has_room(holder);
    (fits ? shares[static_cast<std::size_t>(holder)] : others).push_back(t);
  }
  int rank = 0;
  for (const std::int64_t token : others) {
    while (!has_room(rank)) ++rank;
    shares[static_cast<std::size_t>(rank)].push_back(token);
  }
  std::vector<std::int64_t> order;
  for (std::vector<std::int64_t>& share : shares) {
    std::ranges::sort(share);
    order.insert(order.end(), share.begin(), share.end());
  }
  return order;
}

Participation Participation::padded(std::int64_t tokens) const {
  require(tokens >= tokens_, "Participation: {} tokens padded to {}", tokens_, tokens);
  Participation larger = *this;
  larger.tokens_ = tokens;
  larger.bits_.resize(static_cast<std::size_t>(tokens) * words_per_token_);
  if (!owners_.empty()) larger.owners_.resize(static_cast<std::size_t>(tokens), -1);
  return larger;
}

bool Participation::has(std::int64_t token, Rank rank) const {
  const auto bit = static_cast<std::size_t>(rank.value);
  return (bits_[static_cast<std::size_t>(token) * words_per_token_ + bit / kBits] >> bit % kBits &
          1) != 0;
}

void Participation::set_owner(std::int64_t token, Rank rank) {
  require(token >= 0 && token < tokens_ && rank.value >= 0 && rank.value < ranks_,
          "Participation: token {} of {}, owner {} of {}", token, tokens_, rank.value, ranks_);
  if (owners_.empty()) owners_.resize(static_cast<std::size_t>(tokens_), -1);
  owners_[static_cast<std::size_t>(token)] = rank.value;
}

Rank Participation::owner(std::int64_t token) const {
  const std::int32_t set = owners_.empty() ? -1 : owners_[static_cast<std::size_t>(token)];
  if (set >= 0) return {set};
  for (int r = 0; r < ranks_; ++r) {
    if (has(token, Rank{r})) return {r};
  }
  return {0};
}

bool Participation::is_of_owners_alone() const {
  for (std::int64_t t = 0; t < tokens_; ++t) {
    const Rank own = owner(t);
    for (int r = 0; r < ranks_; ++r) {
      if (r != own.value && has(t, Rank{r})) return false;
    }
  }
  return true;
}

}  // namespace kvmesh
