// Requests against a cache with tiers, beside a cache that holds nothing back.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "kvmesh/device_memory.hpp"
#include "tests/runtime/cache/cache_fixture.hpp"

namespace kvmesh::test {

namespace fs = std::filesystem;

constexpr int kHeads = 2, kKDim = 8, kVDim = 6, kQHeads = 4, kPage = 4;

inline std::vector<std::int32_t> counted(std::int32_t first, std::size_t count) {
  std::vector<std::int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

/// Keys and values that depend on tokens and positions; of the heads [head, head + heads).
inline std::vector<float> rows_of(std::span<const std::int32_t> tokens, std::int64_t first, int dim,
                                  int head, int heads) {
  std::vector<float> rows;
  for (std::size_t i = 0; i < tokens.size(); ++i)
    for (int j = head * dim; j < (head + heads) * dim; ++j)
      rows.push_back(
          static_cast<float>((tokens[i] * 7 + (first + static_cast<int>(i)) * 3 + j) % 11) - 5);
  return rows;
}

/// Numbers in the memory of a device.
class OnDevice {
 public:
  OnDevice(Device device, const std::vector<float>& numbers)
      : device_(device),
        size_(numbers.size()),
        memory_(device, std::max<std::size_t>(1, numbers.size()) * sizeof(float)) {
    copy_bytes(memory_.data(), numbers.data(), size_ * sizeof(float));
  }
  TensorView view(std::initializer_list<std::int64_t> shape) const {
    return {memory_.data(), Dtype::kFloat32, shape, device_};
  }
  std::vector<float> numbers() const {
    std::vector<float> numbers(size_);
    copy_bytes(numbers.data(), memory_.data(), size_ * sizeof(float));
    return numbers;
  }

 private:
  Device device_;
  std::size_t size_;
  DeviceMemory memory_;
};

/// Appends the key's tokens past the sequence's length, and returns this rank's heads of the output
/// of the last token in the last layer. With a stream it replans `step` there, and runs there.
inline std::vector<float> prefill(KvCache& cache, SequenceId sequence, const PrefixKey& key,
                                  StepPlan* step = nullptr, kvmesh::Stream stream = {}) {
  const std::int64_t length = cache.length(sequence);
  const auto rest = key.tokens().subspan(static_cast<std::size_t>(length));
  const std::int64_t count = std::ssize(rest);
  const int parts = cache.mesh().head_parallel(), part = cache.mesh().head_rank();
  const int kv = kHeads / parts, heads = kQHeads / parts;
  const Device device = cache.mesh().device();
  const OnDevice k(device, rows_of(rest, length, kKDim, part * kv, kv));
  const bool is_latent = cache.options().page_kind == PageKind::kLatent;
  const OnDevice v(device, rows_of(rest, length, kVDim, part * kv, kv));
  const OnDevice q(device, std::vector<float>(static_cast<std::size_t>(heads * kKDim), 0.25f));
  const OnDevice o(device, std::vector<float>(static_cast<std::size_t>(heads * kVDim), -1));
  std::optional<StepPlan> fresh;
  if (step == nullptr) {
    fresh = cache.plan({{sequence, count, 1}}, {.scatter = Scatter::kAll});
  } else {
    cache.replan(*step, {{sequence, count, 1}}, stream);
  }
  StepPlan& plan = fresh ? *fresh : *step;
  for (int layer = 0; layer < cache.options().layers; ++layer) {
    plan.run(layer,
             {q.view({1, heads, kKDim}), k.view({count, kv, kKDim}),
              is_latent ? TensorView() : v.view({count, kv, kVDim})},
             {o.view({1, heads, kVDim}), {}}, stream);
  }
  cache.mesh().wait(stream, "prefill");
  return o.numbers();
}

/// The key's run, without a call that waits for files.
inline PrefixMatch match_in_the_end(KvCache& cache, const PrefixKey& key,
                                    std::optional<kvmesh::Stream> after) {
  for (;;) {
    const PrefixMatch match = cache.match_prefix_now(key, after);
    if (match.loading == 0) return match;
    cache.release(match);
    std::this_thread::yield();
  }
}

enum class AskWay { kWaits, kNow };

/// A request: returns how many of its tokens were found. `step` and `stream` as in prefill.
inline std::int64_t ask(KvCache& cache, KvCache& plain, std::span<const std::int32_t> tokens,
                        StepPlan* step = nullptr, kvmesh::Stream stream = {},
                        AskWay way = AskWay::kWaits) {
  PrefixKey key = cache.make_prefix_key();
  key.append(tokens);
  const auto after = step ? std::optional(stream) : std::nullopt;
  const SequenceId sequence = way == AskWay::kWaits
                                  ? cache.create_with_prefix(key, after)
                                  : cache.create_with_prefix(match_in_the_end(cache, key, after));
  const std::int64_t found = cache.length(sequence);
  key.append(counted(1000, 3));  // at least one new token
  const std::vector<float> got = prefill(cache, sequence, key, step, stream);
  const SequenceId alone = plain.create();
  const std::vector<float> expected = prefill(plain, alone, key);
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-5);
  cache.publish(sequence, key);
  cache.erase(sequence);
  plain.erase(alone);
  cache.check_replicas();
  cache.allocator().verify_integrity();
  return found;
}

inline std::int64_t page_bytes(int head_parallel) {
  return std::int64_t{2} * (kHeads / head_parallel) * kPage * (kKDim + kVDim) * 4;
}

inline CacheOptions tier_options(int pages) {
  CacheOptions options = small_cache_options();
  options.pages_per_rank = pages;
  options.home_threshold_tokens = 8;
  options.prefix.enabled = true;
  return options;
}

class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / ("kvmesh_tiers." + std::to_string(::getpid()))) {
    fs::remove_all(path_);
  }
  ~Folder() { fs::remove_all(path_); }
  std::string path() const { return path_.string(); }
  std::vector<fs::path> files() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::recursive_directory_iterator(path_))
      if (entry.path().extension() == ".page") files.push_back(entry.path());
    std::ranges::sort(files);
    return files;
  }

 private:
  fs::path path_;
};

}  // namespace kvmesh::test
