// Measures the file tier of a cache on the CPU, with and without O_DIRECT, turn by turn in one run
// beside one plain file of as many bytes.
//
//   file_tier_bench FOLDER [pages] [layers]      each page and layer has 64 KiB
//
// *store*: KvCache::flush_tiers, until every page is in its file. *to disk*: the same, and the
// system's writing of all that is left (syncfs). *first load*: match_prefix in a new cache, after
// the system has dropped its copies of the files. *next load*: the same again, in another cache.
// Gigabytes of keys and values per second; medians of the turns, and the least and the most.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "kvmesh/kv_cache.hpp"

namespace {

using namespace kvmesh;
namespace fs = std::filesystem;

constexpr int kTurns = 7, kHeads = 8, kDim = 128, kPage = 16;

struct Way {
  const char* name;
  bool direct, durable;
};
constexpr Way kWays[] = {{"through the cache", false, false},
                         {"O_DIRECT", true, false},
                         {"durable", false, true},
                         {"durable, O_DIRECT", true, true}};

double seconds(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Ends the program if something that the measurement rests on did not happen.
void expect(bool is_so, const char* what) {
  if (is_so) return;
  std::fprintf(stderr, "file_tier_bench: %s\n", what);
  std::exit(1);
}

void write_all_back(const fs::path& folder) {
  const int opened = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY);
  expect(opened >= 0 && ::syncfs(opened) == 0, "syncfs failed");
  ::close(opened);
}

/// The system drops its copies of the files, which are on the disk.
void drop_copies(const fs::path& folder) {
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    const int file = ::open(entry.path().c_str(), O_RDONLY);
    expect(file >= 0 && ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED) == 0, "no fadvise");
    ::close(file);
  }
}

/// The folders stay: a tier in use has made them.
void remove_files(const fs::path& folder) {
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) fs::remove(entry.path());
}

struct Times {
  std::vector<double> store{}, to_disk{}, first_load{}, next_load{};
};

class Bench {
 public:
  Bench(fs::path folder, std::int64_t pages, int layers)
      : folder_(std::move(folder)), pages_(pages), layers_(layers) {
    fs::create_directories(folder_);
  }
  ~Bench() { fs::remove_all(folder_); }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  std::int64_t bytes() const { return pages_ * layers_ * (std::int64_t{64} << 10); }

  void turn(const Way& way, Times& times) {
    const fs::path files = folder_ / "tier";
    store(way, files, times);
    drop_copies(files);
    load(way, files, times.first_load);
    load(way, files, times.next_load);
    remove_files(files);
    write_all_back(folder_);
  }

  /// One file, written and read a MiB at a time.
  void plain_turn(Times& times) {
    constexpr std::size_t kPiece = 1 << 20;
    const fs::path path = folder_ / "plain";
    AlignedBuffer piece(kPiece);
    const auto for_each_piece = [&](int flags, const std::function<ssize_t(int)>& call) {
      const int file = ::open(path.c_str(), flags, 0644);
      expect(file >= 0, "cannot open a plain file");
      for (std::int64_t left = bytes(); left > 0; left -= kPiece)
        expect(call(file) == static_cast<ssize_t>(kPiece), "a plain call was short");
      ::close(file);
    };
    const auto write = [&](int file) { return ::write(file, piece.data(), kPiece); };
    const auto read = [&](int file) { return ::read(file, piece.data(), kPiece); };
    times.store.push_back(seconds([&] { for_each_piece(O_WRONLY | O_CREAT, write); }));
    times.to_disk.push_back(times.store.back() + seconds([&] { write_all_back(folder_); }));
    drop_copies(folder_);
    for (auto* const load : {&times.first_load, &times.next_load})
      load->push_back(seconds([&] { for_each_piece(O_RDONLY, read); }));
    fs::remove(path);
    write_all_back(folder_);
  }

 private:
  CacheOptions options(const Way& way, const fs::path& files) const {
    return {.layers = layers_,
            .q_heads = kHeads,
            .kv_heads = kHeads,
            .k_dim = kDim,
            .page_size = kPage,
            .pages_per_rank = pages_ + 1,
            .prefix = {.enabled = true, .hash = PrefixHash::kXxh3},
            .tiers = {.directory = files.string(),
                      .file_bytes = 2 * bytes(),
                      .durable = way.durable,
                      .direct = way.direct}};
  }

  PrefixKey key_of(const KvCache& cache) const {
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(pages_ * kPage + 1));
    for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i);
    PrefixKey key(cache.allocator().prefix_rules());
    key.append(tokens);
    return key;
  }

  void store(const Way& way, const fs::path& files, Times& times) {
    KvCache cache(mesh_, options(way, files));
    const std::int64_t tokens = pages_ * kPage;
    const SequenceId sequence = cache.create();
    StepPlan plan = cache.plan({{sequence, tokens, 0}});
    const std::vector<std::uint16_t> rows(static_cast<std::size_t>(tokens * kHeads * kDim), 0x3F80);
    const ConstTensorView view(rows.data(), Dtype::kBFloat16, {tokens, kHeads, kDim});
    for (int layer = 0; layer < layers_; ++layer) plan.append(layer, view, view);
    cache.publish(sequence, key_of(cache));
    times.store.push_back(seconds([&] { cache.flush_tiers(); }));
    times.to_disk.push_back(times.store.back() + seconds([&] { write_all_back(folder_); }));
    expect(cache.tier_statistics().file.stores == pages_, "not all pages were stored");
  }

  void load(const Way& way, const fs::path& files, std::vector<double>& times) {
    KvCache cache(mesh_, options(way, files));
    const PrefixKey key = key_of(cache);
    PrefixMatch match;
    times.push_back(seconds([&] { match = cache.match_prefix(key); }));
    expect(match.tokens == pages_ * kPage, "not all pages were loaded");
    cache.release(match);
  }

  fs::path folder_;
  std::int64_t pages_;
  int layers_;
  Mesh mesh_{make_single_communicator(),
             {.threads = 1, .device = DeviceChoice::kCpu, .deadline = std::chrono::minutes(10)}};
};

void print(const char* name, std::int64_t bytes, Times times) {
  std::printf("%-18s", name);
  for (auto* const all : {&times.store, &times.to_disk, &times.first_load, &times.next_load}) {
    std::ranges::sort(*all);
    const auto rate = [&](double time) { return static_cast<double>(bytes) / time / 1e9; };
    std::printf("  %5.2f (%5.2f-%5.2f)", rate((*all)[kTurns / 2]), rate(all->back()),
                rate(all->front()));
  }
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: file_tier_bench FOLDER [pages] [layers]\n");
    return 2;
  }
  Bench bench(fs::path(argv[1]) / ("file_tier_bench." + std::to_string(::getpid())),
              argc > 2 ? std::atoll(argv[2]) : 512, argc > 3 ? std::atoi(argv[3]) : 16);
  constexpr std::size_t kCount = std::size(kWays);
  Times times[kCount], plain;
  Times first;  // makes the folders
  bench.turn(kWays[0], first);
  for (int turn = 0; turn < kTurns; ++turn) {
    for (std::size_t i = 0; i < kCount; ++i) {
      const std::size_t way = (i + static_cast<std::size_t>(turn)) % kCount;
      bench.turn(kWays[way], times[way]);
    }
    bench.plain_turn(plain);
  }
  std::printf(
      "%.2f GB in GB/s     store              to disk            first load         next load\n",
      static_cast<double>(bench.bytes()) / 1e9);
  for (std::size_t way = 0; way < kCount; ++way) print(kWays[way].name, bench.bytes(), times[way]);
  print("one plain file", bench.bytes(), plain);
}
