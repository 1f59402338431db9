#include "kernels/cuda/attend/sharing.hpp"

namespace kvmesh::cuda {
namespace {

constexpr std::int64_t kMiB = 1 << 20;
constexpr std::int64_t kLeastSavedBytes = 64 * kMiB;
constexpr std::int64_t kLeastSavedLatentBytes = 1024 * kMiB;
constexpr std::int64_t kBytesOfSequenceAndHead = kMiB / 2;
constexpr std::int64_t kMostOwnBytes = 8 * kMiB;

}  // namespace

std::int64_t token_bytes(const AttentionShape& shape, Dtype pool, bool latent) {
  const int dims = shape.k_dim + (latent ? 0 : shape.v_dim);
  return std::int64_t{shape.kv_heads} * dims * info_of(pool).bits / 8;
}

SharedPrefixRules sharing_rules(const AttentionShape& shape, Dtype pool, bool latent) {
  const std::int64_t token = token_bytes(shape, pool, latent);
  return {.page_size = shape.page_size,
          .least_saved_tokens = (latent ? kLeastSavedLatentBytes : kLeastSavedBytes) / token,
          .least_saved_per_sequence = shape.kv_heads * kBytesOfSequenceAndHead / token};
}

std::int64_t most_own_tokens(const AttentionShape& shape, Dtype pool, bool latent) {
  // Over float8 pages a launch of shared blocks of 32 rows was 28 % slower with them; with 128 rows
  // that is not measured.
  if (info_of(pool).bits == 8) return 0;
  return kMostOwnBytes / token_bytes(shape, pool, latent);
}

int rows_of_own_token(Dtype pool, bool latent) {
  if (info_of(pool).bits == 8) return 32;
  return latent ? 48 : 96;
}

}  // namespace kvmesh::cuda
