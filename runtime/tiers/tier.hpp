// The interface of a tier.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <future>

#include "kvmesh/prefix.hpp"
#include "kvmesh/tiers.hpp"

namespace kvmesh {

enum class TierAnswer : std::uint8_t {
  kHit,
  kMiss,
  kRetry,  ///< a store of the page is under way: ask again after Tier::wait_for_stores
};

/// A job's future result: whether it succeeded.
using TierJob = std::shared_future<bool>;
inline TierJob job_done(bool succeeded = true) {
  std::promise<bool> done;
  done.set_value(succeeded);
  return done.get_future().share();
}
inline bool completed(const TierJob& job) {
  return job.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

/// The source of a store: a page in some rank's pools, or bytes of this rank. Of a page of another
/// rank only the rank counts.
struct PageSource {
  PageId page{};
  const std::byte* bytes = nullptr;  ///< null: `page`
  TierJob written = job_done();      ///< writes `bytes`, before all later copies
};

/// Keeps pages by their hashes. Jobs run on threads of their own. Jobs that read or write the pools
/// run in the order of submission, so a page may be handed out again as soon as its store is
/// submitted, if all writes to the pools wait for the copies (CacheTiers::wait). One thread
/// submits.
class Tier {
 public:
  virtual ~Tier() = default;
  virtual TierAnswer lookup(const PageHash& hash) = 0;
  /// Stores a page, on the rank that has it. If the tier has it already, it only counts as used
  /// again. If too many stores are under way, drops this one, and its job has failed.
  virtual TierJob submit_store(const PageHash& hash, const PageSource& from) = 0;
  /// Loads a page that lookup found into the page `to`; does nothing on ranks other than its own.
  /// Never dropped.
  virtual TierJob submit_load(const PageHash& hash, PageId to) = 0;
  /// Blocks until no store is under way. Returns false if some still are after `most`.
  [[nodiscard]] virtual bool wait_for_stores(std::chrono::milliseconds most) = 0;
  virtual TierCounts counts() const = 0;
};

}  // namespace kvmesh
