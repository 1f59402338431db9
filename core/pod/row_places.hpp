// The places of rows in the messages of a combine, for the host, nvcc and NVRTC: it needs <cstdint>
// alone.
//
// A rank has a message for each owner of rows; under Scatter::kAll all get the same one. In it are
// the rows of which the rank has keys, token after token: the token's place, times the owner's
// heads, plus the head's place among them. If owners get heads of all tokens, they are head after
// head: so the messages one after another are a tensor, for all owners.
#pragma once

#include <cstdint>

#include "core/pod/shares.hpp"

namespace kvmesh {

/// Rows between this rank and one peer: a place in a buffer, in floats, and how many rows lie
/// there.
struct RowMessage {
  std::int64_t offset = 0;
  std::int64_t rows = 0;
  friend bool operator==(const RowMessage&, const RowMessage&) = default;
};

/// With up to this many ranks the messages travel with the launch, which saves their reading.
inline constexpr int kMessagesInPlaces = 16;

/// A launch's view of the messages of a combine. Trivially copyable: kernels take it by value.
struct RowPlaces {
  struct Items {
    int begin, size;
  };
  /// The tokens and heads of one owner.
  struct Block {
    Items tokens, heads;
    constexpr int rows() const { return tokens.size * heads.size; }
  };
  struct Place {
    RowMessage message;
    int row;  ///< in the message; -1: it does not have the row
  };

  int rank, ranks;
  int tokens, heads;
  bool divides_tokens, divides_heads;  ///< among the ranks: the Scatter; at most one of them
  const std::int32_t* token_places;    ///< [ranks][tokens], or null: see DeviceCombinePlan
  const std::int32_t* owners;          ///< [tokens], of Scatter::kOwner; else null
  const RowMessage* sent;              ///< [ranks], of more than kMessagesInPlaces
  const RowMessage* received;          ///< [ranks]
  RowMessage few_sent[kMessagesInPlaces];
  RowMessage few_received[kMessagesInPlaces];

  constexpr Block block(int owner) const {
    Block block{{0, tokens}, {0, heads}};
    if (divides_tokens) block.tokens = share(tokens, owner);
    if (divides_heads) block.heads = share(heads, owner);
    return block;
  }

  /// The owner of a row. -1: Scatter::kAll, all ranks.
  constexpr int owner(int token, int head) const {
    if (owners != nullptr) return owners[token];
    if (divides_tokens) return share_owner(tokens, token, ranks);
    if (divides_heads) return share_owner(heads, head, ranks);
    return -1;
  }

  /// Whether this rank owns the token's rows of its block.
  constexpr bool owns(int token) const { return owners == nullptr || owners[token] == rank; }

  constexpr bool takes_part(int from, int token) const {
    return token_places == nullptr || token_places[from * tokens + token] >= 0;
  }

  constexpr RowMessage message_to(int to) const {
    return ranks <= kMessagesInPlaces ? few_sent[to] : sent[to];
  }
  constexpr RowMessage message_from(int from) const {
    return ranks <= kMessagesInPlaces ? few_received[from] : received[from];
  }

  /// The place of a row in the message of `from` to the owner of `block`, which has the row; -1 if
  /// `from` takes no part.
  constexpr int row_in_message(const Block& block, int from, int token, int head) const {
    const int token_place =
        token_places == nullptr ? token - block.tokens.begin : token_places[from * tokens + token];
    if (token_place < 0) return -1;
    const int head_place = head - block.heads.begin;
    if (divides_heads && token_places == nullptr) return head_place * tokens + token_place;
    return token_place * block.heads.size + head_place;
  }

  /// The place of a row of this rank in the message to the row's owner.
  constexpr Place place_to_send(int token, int head) const {
    const int of_row = owner(token, head);
    const int to = of_row < 0 ? 0 : of_row;
    return {message_to(to), row_in_message(block(to), rank, token, head)};
  }

 private:
  constexpr Items share(int count, int of_rank) const {
    const int begin = share_begin(count, of_rank, ranks);
    return {begin, share_begin(count, of_rank + 1, ranks) - begin};
  }
};

}  // namespace kvmesh
