// Measures the export of a sequence to memory, and its import, on one rank of one thread, beside a
// plain copy of as many bytes, turn by turn in one run.
//
//   stream_bench [tokens]          each token has 64 KiB: 16 layers, 8 heads of dim 128, bfloat16
//
// Gigabytes of keys and values per second, median of the turns, and the median of the turns' ratios
// to the copy. The sink's memory is there before it is written, as a plain copy's is.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "kvmesh/kv_cache.hpp"

namespace {

using namespace kvmesh;

constexpr int kTurns = 7, kLayers = 16, kHeads = 8, kDim = 128;

double median(std::vector<double> values) {
  std::ranges::nth_element(values, values.begin() + std::ssize(values) / 2);
  return values[values.size() / 2];
}

double seconds(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
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

}  // namespace

int main(int argc, char** argv) {
  const std::int64_t tokens = argc > 1 ? std::atoll(argv[1]) : 4096;
  Mesh mesh(make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCpu});
  KvCache cache(mesh, {.layers = kLayers,
                       .q_heads = kHeads,
                       .kv_heads = kHeads,
                       .k_dim = kDim,
                       .page_size = 16,
                       .pages_per_rank = 2 * (tokens / 16 + 2)});
  const SequenceId sequence = cache.create();
  {
    StepPlan plan = cache.plan({{sequence, tokens, 0}});
    const std::vector<std::uint16_t> rows(static_cast<std::size_t>(tokens * kHeads * kDim), 0x3F80);
    const ConstTensorView view(rows.data(), Dtype::kBFloat16, {tokens, kHeads, kDim});
    for (int layer = 0; layer < kLayers; ++layer) plan.append(layer, view, view);
  }
  const auto bytes = static_cast<std::size_t>(tokens) * kLayers * kHeads * kDim * 2 * 2;
  const std::vector<std::byte> from(bytes, std::byte{1});
  std::vector<std::byte> to(bytes), stream(bytes + (bytes >> 6));
  std::vector<double> copies, exports, imports, of_export, of_import;
  for (int turn = 0; turn < kTurns; ++turn) {
    copies.push_back(seconds([&] { std::memcpy(to.data(), from.data(), bytes); }));
    ReadySink sink(stream);
    exports.push_back(seconds([&] { cache.export_sequence(sequence, &sink); }));
    MemorySource source(std::span<const std::byte>(stream).first(sink.size()));
    ImportedSequence made;
    imports.push_back(seconds([&] { made = cache.import_sequence(&source); }));
    cache.erase(made.sequence);
    of_export.push_back(copies.back() / exports.back());
    of_import.push_back(copies.back() / imports.back());
  }
  const double gigabytes = static_cast<double>(bytes) / 1e9;
  std::printf(
      "%ld tokens, %.2f GB: copy %.2f GB/s, export %.2f GB/s (%.2f of it), import %.2f GB/s "
      "(%.2f of it)\n",
      static_cast<long>(tokens), gigabytes, gigabytes / median(copies), gigabytes / median(exports),
      median(of_export), gigabytes / median(imports), median(of_import));
}
