// The sizes of a random case.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "kvmesh/kv_cache.hpp"
#include "launch/verify/engine_pages.hpp"
#include "launch/verify/random.hpp"

namespace kvmesh::verify {

/// When pages move between ranks: see RandomMoves.
enum class Moves : std::uint8_t {
  kNone,
  kBetween,  ///< between steps, each time until they have moved
  /// Beside steps, as on a server. When they have moved depends on the time that the copies take,
  /// and with it the bits of rows, unless the cache is reproducible.
  kBeside,
};

struct CaseConfig {
  CacheOptions cache;
  std::int64_t steps = 0;
  std::int64_t max_sequences = 0;
  std::int64_t max_append = 0;   ///< tokens of one sequence in one step
  std::int64_t max_queries = 0;  ///< of one sequence in one step
  /// Steps by page tables are over pages of this form; unset: over the cache's own.
  std::optional<EngineForm> engine{};
  Moves moves = Moves::kNone;
};

/// Makes the caches reproducible: on GPUs with 16-bit pages, dims that are multiples of 8, and
/// values of up to 512.
void make_reproducible(CaseConfig& config, Device device);

/// Makes all pages float8, with this kind of scales.
void give_scales(CaseConfig& config, ScaleKind kind, Random& random);

/// Mostly short sequences on few small pages; one case in twelve has thousands of keys per rank, so
/// that they are split among threads, and one in twelve, where no heads are spread over ranks,
/// MLA's rows of 576 elements.
CaseConfig random_config(Random& random, const Mesh& mesh);

/// Whether all layers have as many query heads.
bool has_equal_q_heads(const CacheOptions& cache);
/// The number of query heads of the layers that have the most.
int most_q_heads(const CacheOptions& cache);
/// The number of query heads of a KV head, of the layers that have the most of them.
int most_heads_of_a_kv_head(const CacheOptions& cache);

/// "4 ranks (kv 2 x head 2), 2 layers, 8/4 heads, ..."
std::string describe(const CaseConfig& config, const Mesh& mesh);

}  // namespace kvmesh::verify
