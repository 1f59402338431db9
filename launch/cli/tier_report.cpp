#include "launch/cli/tier_report.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace kvmesh::launch {
namespace {

std::string describe_tier(const char* name, const TierCounts& counts) {
  return fmt::format("{} tier: {} pages stored, {} loaded, {} dropped, {} removed\n", name,
                     counts.stores, counts.loads, counts.drops, counts.removed);
}

nlohmann::ordered_json json_of(const TierCounts& counts) {
  return {{"pages", counts.pages},
          {"stores", counts.stores},
          {"loads", counts.loads},
          {"drops", counts.drops},
          {"removed", counts.removed}};
}

}  // namespace

std::string describe_tiers(const TierOptions& options, const TierStatistics& tiers) {
  std::string text;
  if (options.host_bytes > 0) text += describe_tier("host", tiers.host);
  if (options.directory.empty()) return text;
  text += describe_tier("file", tiers.file);
  const FileFaults& faults = tiers.faults;
  const std::int64_t bad = faults.corrupt + faults.truncated + faults.foreign;
  const std::int64_t failed = faults.full + faults.denied + faults.io;
  if (bad + failed == 0) return text;
  return text +
         fmt::format("file tier: {} bad files, {} calls of the system failed\n", bad, failed);
}

nlohmann::ordered_json json_of(const TierStatistics& tiers) {
  const FileFaults& faults = tiers.faults;
  return {{"pages_back", tiers.pages_back},
          {"host", json_of(tiers.host)},
          {"file", json_of(tiers.file)},
          {"faults",
           {{"corrupt", faults.corrupt},
            {"truncated", faults.truncated},
            {"foreign", faults.foreign},
            {"full", faults.full},
            {"denied", faults.denied},
            {"io", faults.io}}}};
}

}  // namespace kvmesh::launch
