// The prefix cache on one core: lookups, hashing beside the library's own rate, and the hit rate on
// recorded requests.
//
//   lookup   pages per second found by matches of whole chains, in random order, with `pages`
//            pages resident; the match takes and gives back every page.
//   index    the same for the index alone.
//   hash     bytes per second of chained pages of 16 tokens, and `of_library`: the share of the
//            rate of the same hash over the same messages, whose bytes are ready (both chained).
//   replay   hit rate in pages of a Mooncake trace (KVMESH_TRACES is its folder), each hash id one
//            page; requests come one after another.
#include <benchmark/benchmark.h>
#include <openssl/evp.h>
#include <xxhash.h>

#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <numeric>
#include <random>
#include <string>

#include "allocator/prefix/page_hasher.hpp"
#include "allocator/prefix/prefix_index.hpp"
#include "kvmesh/allocator.hpp"

namespace {

using namespace kvmesh;

constexpr int kPageSize = 16;
constexpr std::size_t kChain = 64;  // pages of a request: 1024 tokens

std::vector<std::int32_t> random_tokens(std::mt19937& random, std::size_t count) {
  std::vector<std::int32_t> tokens(count);
  for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(random() % 128'000);
  return tokens;
}

std::vector<PrefixKey> random_keys(std::int64_t pages) {
  std::mt19937 random(7);
  std::vector<PrefixKey> keys;
  for (std::int64_t i = 0; i < pages / static_cast<std::int64_t>(kChain); ++i) {
    keys.emplace_back(PrefixRules{.hash = PrefixHash::kXxh3, .page_size = kPageSize});
    keys.back().append(random_tokens(random, kChain * kPageSize));
  }
  std::shuffle(keys.begin(), keys.end(), random);
  return keys;
}

void lookup(benchmark::State& state) {
  PageAllocator allocator({.pages_per_rank = state.range(0),
                           .page_size = kPageSize,
                           .prefix = {.enabled = true, .hash = PrefixHash::kXxh3}});
  std::vector<PrefixKey> keys = random_keys(state.range(0));
  for (const PrefixKey& key : keys) {
    const SequenceId id = allocator.create();
    allocator.append(id, std::ssize(key.tokens()));
    allocator.publish(id, key);
    allocator.erase(id);
  }
  std::shuffle(keys.begin(), keys.end(), std::mt19937(8));
  std::size_t next = 0;
  std::int64_t found = 0;
  for (auto _ : state) {
    const PrefixMatch match = allocator.match_prefix(keys[next++ % keys.size()]);
    found += match.tokens / kPageSize;
    allocator.release(match);
  }
  state.counters["pages"] =
      benchmark::Counter(static_cast<double>(found), benchmark::Counter::kIsRate);
}

void index_alone(benchmark::State& state) {
  const std::vector<PrefixKey> keys = random_keys(state.range(0));
  PrefixIndex index(static_cast<PageSlot>(state.range(0)), kPageSize);
  std::vector<PageSlot> slots(static_cast<std::size_t>(state.range(0)));
  std::iota(slots.begin(), slots.end(), 0u);
  std::shuffle(slots.begin(), slots.end(), std::mt19937(9));
  std::size_t used = 0;
  for (const PrefixKey& key : keys) {
    PageSlot parent = kNoSlot;
    for (const PageHash& hash : key.hashes()) {
      index.insert(slots[used], hash, parent, key.tokens().first(kPageSize), false);
      parent = slots[used++];
    }
  }
  std::vector<PageSlot> found(kChain);
  std::size_t next = 0, pages = 0;
  for (auto _ : state) {
    pages += index.find_run(keys[next++ * 7919 % keys.size()].hashes(), found);
    benchmark::DoNotOptimize(found.data());
  }
  state.counters["pages"] =
      benchmark::Counter(static_cast<double>(pages), benchmark::Counter::kIsRate);
}

/// Seconds of this thread on its processor: other work on the machine is not counted.
double seconds_of(const auto& work) {
  const auto now = [] {
    timespec time{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  };
  const double start = now();
  work();
  return now() - start;
}

/// The library over messages of `bytes` bytes, each of which starts with the hash before it.
double library_seconds(PrefixHash kind, std::size_t bytes, std::size_t count) {
  std::vector<std::uint8_t> message(bytes, 1);
  EVP_MD* algorithm = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  const double seconds = seconds_of([&] {
    for (std::size_t i = 0; i < count; ++i) {
      if (kind == PrefixHash::kXxh3) {
        const XXH128_hash_t hash = XXH3_128bits(message.data(), message.size());
        std::memcpy(message.data(), &hash, sizeof hash);
      } else {
        EVP_DigestInit_ex2(context, algorithm, nullptr);
        EVP_DigestUpdate(context, message.data(), message.size());
        EVP_DigestFinal_ex(context, message.data(), nullptr);
      }
    }
  });
  benchmark::DoNotOptimize(message.data());
  EVP_MD_CTX_free(context);
  EVP_MD_free(algorithm);
  return seconds;
}

void hash(benchmark::State& state) {
  const auto kind = static_cast<PrefixHash>(state.range(0));
  std::mt19937 random(7);
  constexpr std::size_t kPages = 20'000;
  const std::vector<std::int32_t> tokens = random_tokens(random, kPages * kPageSize);
  std::size_t bytes = 16 + 4 * kPageSize;
  if (kind == PrefixHash::kSha256Cbor) {
    bytes = 37;
    for (const std::int32_t token : tokens)
      bytes += token < 24 ? 1 : token < 256 ? 2 : token < 65'536 ? 3 : 5;
    bytes = 37 + (bytes - 37) / kPages;
  }
  PageHasher hasher(kind);
  std::vector<PageHash> hashes(kPages);
  double ours = 0, library = 0;
  for (auto _ : state) {
    const PageHash parent = hasher.root("");
    ours += seconds_of([&] { hasher.run(parent, tokens, hashes); });
    benchmark::DoNotOptimize(hashes.data());
    library += library_seconds(kind, bytes, kPages);
  }
  state.counters["bytes"] =
      static_cast<double>(bytes * kPages) * static_cast<double>(state.iterations()) / ours;
  state.counters["of_library"] = library / ours;
}

std::vector<std::vector<std::int32_t>> read_trace(const std::string& file) {
  std::vector<std::vector<std::int32_t>> requests;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    const char* at = std::strchr(std::strstr(line.c_str(), "hash_ids"), '[') + 1;
    std::vector<std::int32_t>& ids = requests.emplace_back();
    while (*at != ']') {
      char* end = nullptr;
      ids.push_back(static_cast<std::int32_t>(std::strtol(at, &end, 10)));
      at = *end == ',' ? end + 1 : end;
    }
  }
  return requests;
}

void replay(benchmark::State& state) {
  const char* folder = std::getenv("KVMESH_TRACES");
  const char* name = state.range(2) == 0 ? "conversation" : "synthetic";
  const auto requests = folder
                            ? read_trace(std::string(folder) + "/mooncake/" + name + "_trace.jsonl")
                            : std::vector<std::vector<std::int32_t>>();
  if (requests.empty()) return state.SkipWithError("KVMESH_TRACES names no folder with traces");
  std::int64_t hits = 0, pages = 0;
  for (auto _ : state) {
    PageAllocator allocator({.pages_per_rank = state.range(1),
                             .page_size = 1,
                             .prefix = {.enabled = true,
                                        .hash = PrefixHash::kXxh3,
                                        .eviction = static_cast<Eviction>(state.range(0))}});
    for (const std::vector<std::int32_t>& ids : requests) {
      PrefixKey key(allocator.prefix_rules());
      key.append(ids);
      const SequenceId id = allocator.create_with_prefix(key);
      const std::int64_t length = allocator.length(id);
      hits += length;
      pages += std::ssize(ids);
      const AppendRequest rest{id, std::min(std::ssize(ids) - length, allocator.free_pages())};
      (void)allocator.try_append({&rest, 1});
      allocator.publish(id, key);
      allocator.erase(id);
    }
  }
  state.counters["hit_percent"] = 100.0 * static_cast<double>(hits) / static_cast<double>(pages);
}

BENCHMARK(lookup)->ArgName("pages")->Arg(1 << 20);
BENCHMARK(index_alone)->ArgName("pages")->Arg(1 << 20);
BENCHMARK(hash)->ArgName("kind")->Arg(0)->Arg(1);
BENCHMARK(replay)
    ->ArgNames({"policy", "pages", "trace"})
    ->ArgsProduct({{0, 1, 2, 3, 4}, {1000, 5859, 10'000, 30'000}, {0, 1}})
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1);

}  // namespace
