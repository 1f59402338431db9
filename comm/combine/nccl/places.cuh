// The places of rows: share_of and the plan's layout, on the device.
#pragma once

#include "comm/combine/nccl/combine_params.hpp"
#include "core/pod/shares.hpp"

namespace kvmesh::cuda {

struct DeviceShare {
  int begin, size;
};

/// As kvmesh::share_of, on host and device.
constexpr DeviceShare share_of(int count, int rank, int ranks) {
  const int begin = share_begin(count, rank, ranks);
  return {begin, share_begin(count, rank + 1, ranks) - begin};
}

/// The tokens and heads of one owner.
struct DeviceBlock {
  DeviceShare tokens, heads;
  __device__ int rows() const { return tokens.size * heads.size; }
};

__device__ inline DeviceBlock block_of(const CombineParams& p, int owner) {
  DeviceBlock block{{0, p.tokens}, {0, p.heads}};
  if (p.divides_tokens) block.tokens = share_of(p.tokens, owner, p.ranks);
  if (p.divides_heads) block.heads = share_of(p.heads, owner, p.ranks);
  return block;
}

/// The owner of a row. Under Scatter::kAll the message to every other rank is the same; -1 means
/// it.
__device__ inline int owner_of_row(const CombineParams& p, int token, int head) {
  if (p.owners != nullptr) return p.owners[token];
  if (p.divides_tokens) return share_owner(p.tokens, token, p.ranks);
  if (p.divides_heads) return share_owner(p.heads, head, p.ranks);
  return -1;
}

/// Whether this rank owns the token's rows of its block.
__device__ inline bool owns_token(const CombineParams& p, int token) {
  return p.owners == nullptr || p.owners[token] == p.rank;
}

__device__ inline RowMessage message_to(const CombineParams& p, int rank) {
  return p.ranks <= kMessagesInParams ? p.few_sent[rank] : p.sent[rank];
}
__device__ inline RowMessage message_from(const CombineParams& p, int rank) {
  return p.ranks <= kMessagesInParams ? p.few_received[rank] : p.received[rank];
}

/// The place of a row in the message of `from` to the row's owner, or -1 if `from` takes no part.
__device__ inline int place_in_message(const CombineParams& p, const DeviceBlock& block, int from,
                                       int token, int head) {
  const int token_place = p.token_places == nullptr ? token - block.tokens.begin
                                                    : p.token_places[from * p.tokens + token];
  if (token_place < 0) return -1;
  return token_place * block.heads.size + head - block.heads.begin;
}

__device__ inline bool takes_part(const CombineParams& p, int rank, int token) {
  return p.token_places == nullptr || p.token_places[rank * p.tokens + token] >= 0;
}

}  // namespace kvmesh::cuda
