#include "runtime/memory/agreed_pools.hpp"

#include <algorithm>
#include <array>
#include <new>

namespace kvmesh {
namespace {

// The result of a rank's allocation, sent to all ranks. Trivially copyable.
struct Outcome {
  bool failed = false;
  std::array<char, 256> reason{};

  void fail(std::string_view why) {
    failed = true;
    std::copy_n(why.begin(), std::min(why.size(), reason.size() - 1), reason.begin());
  }
};

bool has_neighbour_process(Mesh& mesh) {
  const ProcessIdentity mine = this_process();
  const std::vector<ProcessIdentity> all =
      all_gather_value(mesh.kv_comm(), mine, "find neighbours");
  return std::ranges::any_of(all, [&](const ProcessIdentity& other) {
    return other.same_host(mine) && !other.same_process(mine);
  });
}

}  // namespace

PoolStorage agreed_pools(Mesh& mesh, const PoolLayout& layout,
                         std::span<const std::int64_t> pages) {
  const Sharing sharing = has_neighbour_process(mesh) ? Sharing::kNode : Sharing::kProcess;
  std::optional<PoolStorage> pools;
  Outcome mine;
  try {
    if (pages.empty()) {
      pools.emplace(layout, mesh.device(), sharing);
    } else {
      pools.emplace(layout, mesh.device(), sharing, pages);
    }
  } catch (const std::bad_alloc&) {
    mine.fail("the system has less memory");
  } catch (const Error& error) {
    mine.fail(error.what());
  }
  const std::vector<Outcome> all = all_gather_value(mesh.world(), mine, "allocate pools");
  const auto failed = std::ranges::find_if(all, &Outcome::failed);
  if (failed == all.end()) return std::move(*pools);
  throw OutOfMemory(Rank{static_cast<std::int32_t>(failed - all.begin())}, layout.size_bytes(),
                    failed->reason.data());
}

}  // namespace kvmesh
