// Checks that all ranks plan the same steps.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>

#include "comm/combine/plan_digest.hpp"
#include "kvmesh/kv_cache.hpp"

namespace kvmesh {

/// Hashes of the inputs of a plan, one per field.
struct PlanHashes {
  std::array<std::uint64_t, 15> fields{};
};

/// Whether hashes include the contents of buffers and the lists of block masks. The time to hash
/// these is proportional to their size.
enum class Contents : bool { kLeftOut, kHashed };
#ifdef NDEBUG
inline constexpr Contents kHashedContents = Contents::kLeftOut;
#else
inline constexpr Contents kHashedContents = Contents::kHashed;
#endif

/// Hashes the fields that a replan keeps. Mods are hashed by their traced graphs and the shapes of
/// their buffers, block masks by their shapes; in debug builds also by what both contain.
PlanHashes hashes_of(const PlanOptions& options, Contents contents = kHashedContents);
/// Adds the fields that a replan changes. `digest` is that of the allocators before the append.
PlanHashes with_batch(PlanHashes hashes, std::span<const BatchEntry> batch,
                      std::span<const std::int64_t> q_positions, std::uint64_t digest);

/// The hashes of all plans of a cache, folded together: ranks that planned another step once differ
/// from then on.
class PlanHistory {
 public:
  /// Plans between two comparisons over all ranks. An exchange takes about as long as planning a
  /// step, so one in 64 is not measurable; debug builds compare every plan.
#ifdef NDEBUG
  static constexpr std::uint64_t kInterval = 64;
#else
  static constexpr std::uint64_t kInterval = 1;
#endif

  /// Compares the ranks' histories with `next` added, if it is the last plan of an interval.
  /// Calls `check_replicas` if the allocators differ, to name the operation.
  /// @throws DigestMismatch, on every rank, naming a rank and a field that differ; the history is
  /// as before.
  /// Collective over `world` at every kInterval-th plan.
  void compare(Communicator& world, const PlanHashes& next,
               const std::function<void()>& check_replicas) const;
  void add(const PlanHashes& next);
  /// Returns the digest that the combines of the last plan send along with their rows.
  PlanDigest digest() const;

 private:
  PlanHashes folded_;
  std::uint64_t plans_ = 0;
};

}  // namespace kvmesh
