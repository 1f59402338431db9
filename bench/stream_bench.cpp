// Measures the export of a sequence and its import, on one rank, beside plain copies, writes and
// reads of as many bytes by one thread, turn by turn in one run: to and from memory that was
// written before, memory that is new, a file and a socket.
//
//   stream_bench [tokens] [folder] [cpu|cuda] [threads]
//
// The mesh has as many threads as by default, or `threads`. Each token has 64 KiB: 16 layers, 8
// heads of dim 128, bfloat16. On a GPU the plain ways also copy the bytes from or to the device, as
// one block.
//
// Gigabytes of keys and values per second, median of the turns, and the median of the turns' ratios
// to the plain way with their p10 and p90. Files are synced; another thread, at the socket's other
// end, takes or gives the bytes a MiB at a time. A plain write or read is one of all bytes.
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "core/cuda/memory.hpp"
#include "kvmesh/kv_cache.hpp"

namespace {

using namespace kvmesh;

constexpr int kTurns = 11, kLayers = 16, kHeads = 8, kDim = 128;
constexpr std::size_t kPiece = 1 << 20;

double seconds(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void print(const char* name, std::size_t bytes, std::vector<double> mine,
           std::vector<double> plain) {
  std::vector<double> shares;
  for (std::size_t i = 0; i < mine.size(); ++i) shares.push_back(plain[i] / mine[i]);
  for (auto* const values : {&mine, &plain, &shares}) std::ranges::sort(*values);
  const auto rate = [&](const std::vector<double>& sorted) {
    return static_cast<double>(bytes) / sorted[kTurns / 2] / 1e9;
  };
  std::printf("%-22s %6.2f GB/s   plain %6.2f GB/s   share %.2f (p10-p90 %.2f-%.2f)\n", name,
              rate(mine), rate(plain), shares[kTurns / 2], shares[kTurns / 10],
              shares[kTurns - 1 - kTurns / 10]);
}

void measure(const char* name, std::size_t bytes, const std::function<void()>& mine,
             const std::function<void()>& plain) {
  std::vector<double> of_mine, of_plain;
  for (int turn = -1; turn < kTurns; ++turn) {
    const double top = seconds(plain), own = seconds(mine);
    if (turn < 0) continue;
    of_plain.push_back(top);
    of_mine.push_back(own);
  }
  print(name, bytes, std::move(of_mine), std::move(of_plain));
}

class ReadySink final : public ByteSink {
 public:
  explicit ReadySink(std::vector<std::byte>& memory) : memory_(memory) {}
  void write(std::span<const std::byte> bytes) override {
    std::memcpy(room(bytes.size()).data(), bytes.data(), bytes.size());
  }
  std::span<std::byte> room(std::size_t size_bytes) override {
    if (size_ + size_bytes > memory_.size()) memory_.resize(2 * (size_ + size_bytes));
    return std::span(memory_).subspan(std::exchange(size_, size_ + size_bytes), size_bytes);
  }
  std::size_t size() const { return size_; }

 private:
  std::vector<std::byte>& memory_;
  std::size_t size_ = 0;
};

/// A socket whose other end a thread reads until its end, or fills with `stream`.
class Peer {
 public:
  Peer() {
    open([this] { read_all(); });
  }
  explicit Peer(std::span<const std::byte> stream) {
    open([this, stream] { DescriptorSink(ends_[1]).write(stream); });
  }
  ~Peer() {
    ::shutdown(ends_[0], SHUT_WR);
    thread_.join();
    for (const int end : ends_) ::close(end);
  }
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;
  int socket() const { return ends_[0]; }

 private:
  void open(std::function<void()> work) {
    if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends_) != 0) std::abort();
    thread_ = std::thread(std::move(work));
  }
  void read_all() {
    std::vector<std::byte> piece(kPiece);
    while (::read(ends_[1], piece.data(), piece.size()) > 0) {
    }
  }
  int ends_[2] = {-1, -1};
  std::thread thread_;
};

CacheOptions cache_of(std::int64_t tokens) {
  return {.layers = kLayers,
          .q_heads = kHeads,
          .kv_heads = kHeads,
          .k_dim = kDim,
          .page_size = 16,
          .pages_per_rank = 2 * (tokens / 16 + 2)};
}

/// Writes the stream of a sequence of `tokens` tokens, which a CPU exports, to `sink`.
void make_stream(std::int64_t tokens, ByteSink& sink) {
  Mesh mesh(make_single_communicator(), {.device = DeviceChoice::kCpu});
  KvCache cache(mesh, cache_of(tokens));
  const SequenceId sequence = cache.create();
  StepPlan plan = cache.plan({{sequence, tokens, 0}});
  const std::vector<std::uint16_t> rows(static_cast<std::size_t>(tokens * kHeads * kDim), 0x3F80);
  const ConstTensorView view(rows.data(), Dtype::kBFloat16, {tokens, kHeads, kDim});
  for (int layer = 0; layer < kLayers; ++layer) plan.append(layer, view, view);
  cache.export_sequence(sequence, &sink);
}

class Bench {
 public:
  Bench(std::int64_t tokens, std::string folder, DeviceChoice device, int threads)
      : bytes_(static_cast<std::size_t>(tokens) * kLayers * kHeads * kDim * 2 * 2),
        file_(std::move(folder) + "/stream_bench." + std::to_string(::getpid())),
        mesh_(make_single_communicator(), {.threads = threads, .device = device}),
        cache_(mesh_, cache_of(tokens)),
        from_(bytes_, std::byte{1}),
        to_(bytes_),
        stream_(bytes_ + (bytes_ >> 6)) {
    ReadySink sink(stream_);
    make_stream(tokens, sink);
    MemorySource source(stream_);
    sequence_ = cache_.import_sequence(&source).sequence;
    if (device == DeviceChoice::kCuda) on_device_ = cuda_memory::allocate(0, bytes_);
    std::printf("%d threads\n", mesh_.threads().threads());
  }

  void memory() {
    std::size_t size = 0;
    measure(
        "export to memory", bytes_,
        [&] {
          ReadySink sink(stream_);
          export_to(sink);
          size = sink.size();
        },
        [&] { copy_from_cache(to_.data()); });
    stream_.resize(size);
    measure(
        "import from memory", bytes_, [&] { import_from(MemorySource(stream_)); },
        [&] { copy_to_cache(from_.data()); });
    measure(
        "export to new memory", bytes_,
        [&] {
          MemorySink sink;
          export_to(sink);
        },
        [&] {
          const auto fresh = std::make_unique_for_overwrite<std::byte[]>(bytes_);
          copy_from_cache(fresh.get());
          last_ = fresh[bytes_ - 1];  // so that the copy is not left out
        });
  }

  void file() {
    const std::string plain_file = file_ + ".plain";
    measure(
        "export to a file", bytes_,
        [&] {
          FileSink sink(file_);
          export_to(sink);
        },
        [&] {
          FileSink sink(plain_file);
          sink.write(copied());
          sink.finish();
        });
    measure(
        "import from a file", bytes_, [&] { import_from(FileSource(file_)); },
        [&] {
          FileSource(plain_file).read(to_);
          take();
        });
    for (const std::string& made : {file_, plain_file}) std::filesystem::remove(made);
  }

  void socket() {
    measure(
        "export to a socket", bytes_,
        [&] {
          const Peer peer;
          DescriptorSink sink(peer.socket());
          export_to(sink);
        },
        [&] {
          const Peer peer;
          DescriptorSink(peer.socket()).write(copied());
        });
    measure(
        "import from a socket", bytes_,
        [&] {
          const Peer peer(stream_);
          import_from(DescriptorSource(peer.socket()));
        },
        [&] {
          const Peer peer(from_);
          DescriptorSource(peer.socket()).read(to_);
          take();
        });
  }

 private:
  void export_to(ByteSink& sink) { cache_.export_sequence(sequence_, &sink); }
  void import_from(ByteSource&& source) { cache_.erase(cache_.import_sequence(&source).sequence); }

  // The plain ways, whose cache is one block, on a GPU its own.
  void copy_from_cache(std::byte* to) {
    if (on_device_) return cuda_memory::copy_bytes(to, on_device_.get(), bytes_);
    std::memcpy(to, from_.data(), bytes_);
  }
  void copy_to_cache(const std::byte* from) {
    if (on_device_) return cuda_memory::copy_bytes(on_device_.get(), from, bytes_);
    std::memcpy(to_.data(), from, bytes_);
  }
  /// Returns bytes of the cache that a write can read.
  std::span<const std::byte> copied() {
    if (!on_device_) return from_;
    copy_from_cache(to_.data());
    return to_;
  }
  /// Brings `to_` into the cache.
  void take() {
    if (on_device_) copy_to_cache(to_.data());
  }

  std::size_t bytes_;
  std::string file_;
  Mesh mesh_;
  KvCache cache_;
  SequenceId sequence_;
  std::vector<std::byte> from_, to_, stream_;
  cuda_memory::OwnedMemory on_device_;  // null on a CPU
  volatile std::byte last_{};
};

}  // namespace

int main(int argc, char** argv) {
  Bench bench(
      argc > 1 ? std::atoll(argv[1]) : 4096,
      argc > 2 ? argv[2] : std::filesystem::temp_directory_path().string(),
      argc > 3 && std::string_view(argv[3]) == "cuda" ? DeviceChoice::kCuda : DeviceChoice::kCpu,
      argc > 4 ? std::atoi(argv[4]) : 0);
  bench.memory();
  bench.file();
  bench.socket();
}
