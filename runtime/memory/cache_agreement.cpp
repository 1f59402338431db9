#include "runtime/memory/cache_agreement.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>

#include "core/check.hpp"
#include "core/cuda/address_range.hpp"
#include "core/cuda/memory.hpp"
#include "core/hash.hpp"
#include "core/posix/free_memory.hpp"
#include "core/posix/shared_memory.hpp"
#include "runtime/memory/option_checks.hpp"

namespace kvmesh {
namespace {

// ---- Options that must be equal on every rank ----

enum class MemoryWay { kPages, kBytes, kFraction };

MemoryWay memory_way(const CacheOptions& options) {
  if (options.pages_per_rank != 0) return MemoryWay::kPages;
  return options.bytes != 0 ? MemoryWay::kBytes : MemoryWay::kFraction;
}

std::string_view name(MemoryWay way) {
  if (way == MemoryWay::kPages) return "pages_per_rank";
  return way == MemoryWay::kBytes ? "bytes" : "memory_fraction";
}

template <class Name>
std::string name_of(std::int64_t value) {
  return std::string(name(static_cast<Name>(value)));
}
std::string device_name(std::int64_t kind) { return kind == 0 ? "cpu" : "cuda"; }
std::string number(std::int64_t value) { return std::to_string(value); }

// The name's first letters; 0 where it does not matter.
std::int64_t instruction_set(const Mesh& mesh, const CacheOptions& options) {
  std::int64_t letters = 0;
  if (!options.reproducible || mesh.device().kind != DeviceKind::kCpu) return letters;
  const std::string_view name = cpu_instruction_set();
  std::memcpy(&letters, name.data(), std::min(name.size(), sizeof(letters)));
  return letters;
}
std::string letters_of(std::int64_t letters) {
  char text[sizeof(letters) + 1] = {};
  std::memcpy(text, &letters, sizeof(letters));
  return text;
}

// 0 where it does not matter.
std::int64_t compute_capability(const Mesh& mesh, const CacheOptions& options) {
  if (!options.reproducible || mesh.device().kind == DeviceKind::kCpu) return 0;
  return cuda_memory::compute_capability(mesh.device().index);
}

std::int64_t bits_of(float value) { return std::bit_cast<std::int32_t>(value); }
std::string float_text(std::int64_t bits) {
  return fmt::format("{}", std::bit_cast<float>(static_cast<std::int32_t>(bits)));
}

// A text of any length, as far as ranks compare it.
std::int64_t hash_of(std::string_view text) {
  return static_cast<std::int64_t>(Hash().add_all(text).value());
}
std::string hash_text(std::int64_t hash) { return fmt::format("of hash {:016x}", hash); }

// Returns a hash of the scales per head; 0 if there are none.
std::int64_t hash_of(const KvScales& scales) {
  if (scales.kind != ScaleKind::kPerHead) return 0;
  Hash hash;
  for (const std::vector<float>* half : {&scales.k_heads, &scales.v_heads}) {
    hash.add(half->size());
    for (const float scale : *half) hash.add(bits_of(scale));
  }
  return static_cast<std::int64_t>(hash.value() | 1);
}

std::int64_t hash_of(const std::vector<LayerGroup>& groups) {
  Hash hash;
  for (const LayerGroup& group : groups) {
    hash.add_all(group.layers).add(group.q_heads).add(group.kv_heads);
    hash.add(group.k_dim).add(group.v_dim);
    hash.add(group.dtype ? int(*group.dtype) : -1)
        .add(group.page_kind ? int(*group.page_kind) : -1);
    const KvScales scales = group.scales.value_or(KvScales{.k = 0});
    hash.add(scales.kind).add(bits_of(scales.k)).add(bits_of(scales.v)).add(hash_of(scales));
    hash.add(group.window);
    hash.add(std::bit_cast<std::uint64_t>(group.page_share)).add(group.state_bytes);
  }
  return static_cast<std::int64_t>(hash.value());
}

struct Field {
  std::string_view name;
  std::int64_t (*value)(const Mesh&, const CacheOptions&);
  std::string (*text)(std::int64_t) = number;
};

using O = CacheOptions;
constexpr std::array kFields{
    Field{"layers", [](const Mesh&, const O& o) -> std::int64_t { return o.layers; }},
    Field{"q_heads", [](const Mesh&, const O& o) -> std::int64_t { return o.q_heads; }},
    Field{"kv_heads", [](const Mesh&, const O& o) -> std::int64_t { return o.kv_heads; }},
    Field{"k_dim", [](const Mesh&, const O& o) -> std::int64_t { return o.k_dim; }},
    Field{"v_dim", [](const Mesh&, const O& o) -> std::int64_t { return o.v_dim; }},
    Field{"page_size", [](const Mesh&, const O& o) -> std::int64_t { return o.page_size; }},
    Field{"dtype", [](const Mesh&, const O& o) -> std::int64_t { return int(o.dtype); },
          name_of<Dtype>},
    Field{"page_kind", [](const Mesh&, const O& o) -> std::int64_t { return int(o.page_kind); },
          name_of<PageKind>},
    Field{"scales.kind", [](const Mesh&, const O& o) -> std::int64_t { return int(o.scales.kind); },
          name_of<ScaleKind>},
    Field{"scales.k", [](const Mesh&, const O& o) { return bits_of(o.scales.k); }, float_text},
    Field{"scales.v", [](const Mesh&, const O& o) { return bits_of(o.scales.v); }, float_text},
    Field{"scales.k_heads and scales.v_heads",
          [](const Mesh&, const O& o) { return hash_of(o.scales); }, hash_text},
    Field{"placement", [](const Mesh&, const O& o) -> std::int64_t { return int(o.placement); },
          name_of<Placement>},
    Field{"home_threshold_tokens", [](const Mesh&, const O& o) { return o.home_threshold_tokens; }},
    Field{"reproducible", [](const Mesh&, const O& o) -> std::int64_t { return o.reproducible; }},
    Field{"the CPU's instruction set", instruction_set, letters_of},
    Field{"the GPU's compute capability", compute_capability},
    Field{"prefix.enabled",
          [](const Mesh&, const O& o) -> std::int64_t { return o.prefix.enabled; }},
    Field{"prefix.hash", [](const Mesh&, const O& o) -> std::int64_t { return int(o.prefix.hash); },
          name_of<PrefixHash>},
    Field{"prefix.eviction",
          [](const Mesh&, const O& o) -> std::int64_t { return int(o.prefix.eviction); },
          name_of<Eviction>},
    Field{"prefix.compares_tokens",
          [](const Mesh&, const O& o) -> std::int64_t { return o.prefix.compares_tokens; }},
    Field{"prefix.seed", [](const Mesh&, const O& o) { return hash_of(o.prefix.seed); }, hash_text},
    Field{"tiers.host_bytes", [](const Mesh&, const O& o) { return o.tiers.host_bytes; }},
    Field{"tiers.directory", [](const Mesh&, const O& o) { return hash_of(o.tiers.directory); },
          hash_text},
    Field{"tiers.model", [](const Mesh&, const O& o) { return hash_of(o.tiers.model); }, hash_text},
    Field{"tiers.file_bytes", [](const Mesh&, const O& o) { return o.tiers.file_bytes; }},
    Field{"tiers.stores_per_operation",
          [](const Mesh&, const O& o) -> std::int64_t { return o.tiers.stores_per_operation; }},
    Field{"tiers.durable", [](const Mesh&, const O& o) -> std::int64_t { return o.tiers.durable; }},
    Field{"tiers.direct", [](const Mesh&, const O& o) -> std::int64_t { return o.tiers.direct; }},
    Field{"window", [](const Mesh&, const O& o) { return o.window; }},
    Field{"groups", [](const Mesh&, const O& o) { return hash_of(o.groups); }, hash_text},
    Field{"the way to say the memory",
          [](const Mesh&, const O& o) -> std::int64_t { return int(memory_way(o)); },
          name_of<MemoryWay>},
    Field{"the mesh's head_parallel",
          [](const Mesh& mesh, const O&) -> std::int64_t { return mesh.head_parallel(); }},
    Field{"the mesh's device",
          [](const Mesh& mesh, const O&) -> std::int64_t { return int(mesh.device().kind); },
          device_name},
};

// ---- Data that each rank sends ----

// The machine and the device of a rank's memory. Trivially copyable.
struct MemoryDomain {
  ProcessIdentity process;
  std::array<char, 16> gpu{};

  bool shares_memory_with(const MemoryDomain& other) const {
    return process.same_host(other.process) && gpu == other.gpu;
  }
};

MemoryDomain memory_domain_of(Device device) {
  MemoryDomain domain{.process = this_process()};
  if (device.kind == DeviceKind::kCuda) domain.gpu = cuda_memory::identity(device.index);
  return domain;
}

// The bytes that a rank may use, and the number of pages that fit. Trivially copyable.
struct Room {
  std::int64_t bytes = 0;
  std::int64_t pages = 0;
};

// Trivially copyable.
struct Proposal {
  bool refused = false;
  std::array<char, 256> reason{};
  std::array<std::int64_t, kFields.size()> fields{};
  MemoryDomain domain;
  std::int64_t max_pages = 0;
  bool has_pieces = false;  // of memory
  Room room;                // unset for a fraction: it depends on the ranks that share the device
  std::uint32_t id_ticket = 0;
};

// ---- Spaces of ids ----

// All processes of a mesh raise this number together, like Lamport clocks: each draws a ticket, the
// highest ticket is the cache's number, and every process continues from it. So ranks that have
// made different numbers of caches agree, and no process gets a number twice. The number is global
// to the process, since ids of any two of its caches may be mixed up. It is not part of a cache's
// state.
std::atomic<std::uint32_t> last_ticket{0};

constexpr std::uint32_t kSpaces =
    0x7FFF;  // the other half is computed from options: AllocatorOptions

std::uint16_t space_of(std::uint32_t ticket) {
  std::uint32_t last = last_ticket;
  while (last < ticket && !last_ticket.compare_exchange_weak(last, ticket)) {
  }
  return static_cast<std::uint16_t>(1 + (ticket - 1) % kSpaces);
}

Proposal propose(const Mesh& mesh, const CacheOptions& options) {
  Proposal mine;
  mine.domain = memory_domain_of(mesh.device());
  mine.id_ticket = ++last_ticket;
  mine.max_pages = options.max_pages_per_rank;
  mine.has_pieces = options.max_pages_per_rank > 0 && mesh.device().kind == DeviceKind::kCuda &&
                    cuda_memory::has_pieces(mesh.device().index);
  for (std::size_t i = 0; i < kFields.size(); ++i) mine.fields[i] = kFields[i].value(mesh, options);
  try {
    check_tiers(options);
    require(options.state_bytes == 0, "cache: state_bytes {} belong to a layer group",
            options.state_bytes);
    for (const CacheOptions& group : options_of_groups(options)) {
      check_options(mesh, group);
      if (group.state_bytes == 0) check_shape(local_shape(mesh, group));
    }
    static_cast<void>(pool_layout(mesh, options));  // for overflow
    mine.room = {options.bytes, options.pages_per_rank};
    if (memory_way(options) == MemoryWay::kBytes) {
      mine.room.pages = pages_within(options.bytes, mesh, options);
    }
  } catch (const InvalidArgument& error) {
    mine.refused = true;
    const std::string_view why = error.what();
    std::copy_n(why.begin(), std::min(why.size(), mine.reason.size() - 1), mine.reason.begin());
  }
  return mine;
}

// ---- The numbers of pages ----

void compare(const std::vector<Proposal>& all, Rank me) {
  const Proposal& mine = all[static_cast<std::size_t>(me.value)];
  require(!mine.refused, "{}", mine.reason.data());
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    require(!all[rank].refused, "cache: the options of rank {} are refused: {}", rank,
            all[rank].reason.data());
  }
  for (std::size_t rank = 1; rank < all.size(); ++rank) {
    for (std::size_t i = 0; i < kFields.size(); ++i) {
      const std::int64_t first = all[0].fields[i], other = all[rank].fields[i];
      require(first == other, "cache: {} is {} on rank 0 and {} on rank {}: it must be the same",
              kFields[i].name, kFields[i].text(first), kFields[i].text(other), rank);
    }
  }
}

// No rank allocates before all ranks have read the free memory: a collective follows.
std::vector<Room> rooms_by_fraction(Mesh& mesh, const CacheOptions& options,
                                    const std::vector<Proposal>& all) {
  const MemoryDomain& mine = all[static_cast<std::size_t>(mesh.rank().value)].domain;
  const auto sharers = std::ranges::count_if(
      all, [&](const Proposal& other) { return other.domain.shares_memory_with(mine); });
  const auto free = static_cast<double>(free_memory(mesh.device()));
  const auto bytes =
      static_cast<std::int64_t>(free * options.memory_fraction / static_cast<double>(sharers));
  const Room room{bytes, pages_within(bytes, mesh, options)};
  return all_gather_value(mesh.world(), room, "agree on the size of pools");
}

void check_rooms(Mesh& mesh, CacheOptions options, const std::vector<Room>& rooms) {
  const auto least = std::ranges::min_element(rooms, {}, &Room::pages);
  if (least->pages > 0) return;
  options.pages_per_rank = 1;
  const std::int64_t page = pool_layout(mesh, options).size_bytes();
  const auto piece = static_cast<std::int64_t>(SharedMemory::granule(mesh.device()));
  const Rank rank{static_cast<std::int32_t>(least - rooms.begin())};
  require(options.bytes == 0,
          "cache: a page takes {} bytes of the device, in pieces of {}; rank {} may use {}", page,
          piece, rank.value, least->bytes);
  throw OutOfMemory(rank, page, fmt::format("its share of what is free is {} bytes", least->bytes));
}

// Ranks that differ only in their heads have one page table, so the least room of them counts.
std::vector<PoolSizes> sizes_of_pools(const Mesh& mesh, const std::vector<Room>& rooms,
                                      const std::vector<Proposal>& all) {
  std::vector<PoolSizes> pools(static_cast<std::size_t>(mesh.kv_parallel()));
  const bool on_gpus = mesh.device().kind == DeviceKind::kCuda;  // every rank's
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    const auto kv_rank = static_cast<std::int32_t>(rank) / mesh.head_parallel();
    const PageRank of = mesh.membership().page_rank(Rank{kv_rank});
    PoolSizes& pool = pools[static_cast<std::size_t>(of.value)];
    const bool is_first = rank % static_cast<std::size_t>(mesh.head_parallel()) == 0;
    pool.now = is_first ? rooms[rank].pages : std::min(pool.now, rooms[rank].pages);
    pool.most = is_first ? all[rank].max_pages : std::min(pool.most, all[rank].max_pages);
    if (on_gpus && !all[rank].has_pieces) pool.growth = Growth::kRefused;
  }
  for (PoolSizes& pool : pools) {
    pool.last = pool.now;
    pool.most = std::max(pool.most, pool.now);
    if (pool.most == pool.now) {
      pool.growth = Growth::kNone;
    } else if (pool.growth == Growth::kRefused) {
      pool.most = pool.now;
    } else {
      pool.growth = on_gpus ? Growth::kPieces : Growth::kSystem;
    }
  }
  return pools;
}

}  // namespace

CacheAgreement agree_on_cache(Mesh& mesh, const CacheOptions& given) {
  CacheAgreement agreed{.options = given};
  CacheOptions& options = agreed.options;
  if (options.v_dim == 0) options.v_dim = options.k_dim;
  const std::vector<Proposal> all =
      all_gather_value(mesh.world(), propose(mesh, options), "agree on a cache");
  compare(all, mesh.rank());
  if (options.reproducible && mesh.device().kind != DeviceKind::kCpu) {  // of every rank's
    check_reproducible_on_gpu(options);
  }
  std::vector<Room> rooms;
  if (memory_way(options) == MemoryWay::kFraction) {
    rooms = rooms_by_fraction(mesh, options, all);
  } else {
    for (const Proposal& proposal : all) rooms.push_back(proposal.room);
  }
  check_rooms(mesh, options, rooms);
  agreed.pools = sizes_of_pools(mesh, rooms, all);
  const PoolSizes& mine = agreed.pools[static_cast<std::size_t>(mesh.page_rank().value)];
  options.pages_per_rank = mine.now;
  options.max_pages_per_rank = mine.most;
  options.bytes = 0;
  options.memory_fraction = 0;
  agreed.id_space = space_of(std::ranges::max_element(all, {}, &Proposal::id_ticket)->id_ticket);
  return agreed;
}

}  // namespace kvmesh
