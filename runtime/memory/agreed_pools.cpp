#include "runtime/memory/agreed_pools.hpp"

#include <algorithm>
#include <array>
#include <new>

#include "core/check.hpp"
#include "core/cuda/memory.hpp"
#include "core/posix/free_memory.hpp"

namespace kvmesh {
namespace {

// Where a rank's memory is. Trivially copyable.
struct Place {
  ProcessIdentity process;
  std::array<char, 16> gpu{};

  bool shares_memory_with(const Place& other) const {
    return process.same_host(other.process) && gpu == other.gpu;
  }
};

Place place_of(Device device) {
  Place place{.process = this_process()};
  if (device.kind == DeviceKind::kCuda) place.gpu = cuda_memory::identity(device.index);
  return place;
}

// The ranks ask before the first of them allocates: agreed_pages meets afterwards.
std::int64_t share_of_free_memory(Mesh& mesh, double fraction) {
  const Place mine = place_of(mesh.device());
  const std::vector<Place> all = all_gather_value(mesh.world(), mine, "find neighbours");
  const auto sharers = std::ranges::count_if(
      all, [&](const Place& other) { return other.shares_memory_with(mine); });
  const auto free = static_cast<double>(free_memory(mesh.device()));
  return static_cast<std::int64_t>(free * fraction / static_cast<double>(sharers));
}

// What a rank may use, and the pages that are in it. Trivially copyable.
struct Room {
  std::int64_t bytes = 0;
  std::int64_t pages = 0;
};

Room room_of(Mesh& mesh, const CacheOptions& options, const LocalShape& shape) {
  if (options.pages_per_rank > 0) return {.pages = options.pages_per_rank};
  const std::int64_t bytes = options.memory_fraction > 0
                                 ? share_of_free_memory(mesh, options.memory_fraction)
                                 : options.bytes;
  return {bytes, pages_within(bytes, shape, options.layers, mesh.device())};
}

// What a rank says of its own allocation. Trivially copyable.
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
  const std::vector<ProcessIdentity> all = all_gather_value(mesh.kv(), mine, "find neighbours");
  return std::ranges::any_of(all, [&](const ProcessIdentity& other) {
    return other.same_host(mine) && !other.same_process(mine);
  });
}

}  // namespace

std::int64_t agreed_pages(Mesh& mesh, const CacheOptions& options, const LocalShape& shape) {
  const std::vector<Room> all =
      all_gather_value(mesh.world(), room_of(mesh, options, shape), "agree on the size of pools");
  const auto least = std::ranges::min_element(all, {}, &Room::pages);
  if (least->pages > 0) return least->pages;
  LocalShape one = shape;
  one.pages = 1;
  const std::int64_t page = PoolLayout(one, options.layers, mesh.device()).size_bytes();
  const Rank rank{static_cast<std::int32_t>(least - all.begin())};
  require(options.bytes == 0, "cache: a page takes {} bytes of the device, rank {} may use {}",
          page, rank.value, least->bytes);
  throw OutOfMemory(rank, page, fmt::format("its share of what is free is {} bytes", least->bytes));
}

PoolStorage agreed_pools(Mesh& mesh, const LocalShape& shape, int layers) {
  const Sharing sharing = has_neighbour_process(mesh) ? Sharing::kNode : Sharing::kProcess;
  std::optional<PoolStorage> pools;
  Outcome mine;
  try {
    pools.emplace(shape, layers, mesh.device(), sharing);
  } catch (const std::bad_alloc&) {
    mine.fail("the system has not so much");
  } catch (const Error& error) {
    mine.fail(error.what());
  }
  const std::vector<Outcome> all = all_gather_value(mesh.world(), mine, "allocate pools");
  const auto failed = std::ranges::find_if(all, &Outcome::failed);
  if (failed == all.end()) return std::move(*pools);
  throw OutOfMemory(Rank{static_cast<std::int32_t>(failed - all.begin())},
                    PoolLayout(shape, layers, mesh.device()).size_bytes(), failed->reason.data());
}

}  // namespace kvmesh
