// The rule for when sharing a prefix pays on a GPU.
#pragma once

#include <cstdint>

#include "kernels/shared_prefixes.hpp"
#include "kvmesh/attention.hpp"

namespace kvmesh::cuda {

/// Bytes of keys and values of a token, of all of this rank's heads.
std::int64_t token_bytes(const AttentionShape& shape, Dtype pool, bool latent);

/// Returns the rules for pages of a dtype, but for `most_queries`.
///
/// Sharing costs partials of every row, their merge, and tasks for each sequence's other pages. On
/// an H200 that was 8 us and 0.5 us for each sequence of 8 kv heads, while the reads that it saves
/// would have come from the L2 cache in part, at 8 TB/s: 64 MB, and 0.5 MB for each sequence and kv
/// head. Decode of latent pages is near the tensor cores' rate, so there it saves less.
SharedPrefixRules sharing_rules(const AttentionShape& shape, Dtype pool, bool latent);

/// Returns how many tokens beside prefixes are read in the launch of shared rows: there at a lower
/// rate, but a thread block of another launch takes some microseconds to start.
std::int64_t most_own_tokens(const AttentionShape& shape, Dtype pool, bool latent);

/// Returns for how many rows a multiprocessor computes a shared token while it reads one token of
/// a single sequence. On an H200 a multiprocessor reads 60 GB/s if a few of them read, and computes
/// 5.8 TFLOP/s of prefill, over float8 pages 3.5: it reads the 512 bytes of a token of 16-bit pages
/// of 128 dims in the time of 96 rows of 256 multiply-adds. Latent keys are read once for both.
int rows_of_own_token(Dtype pool, bool latent);

}  // namespace kvmesh::cuda
