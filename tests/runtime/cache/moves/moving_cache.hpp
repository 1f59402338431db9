// A cache with pages to move, on ranks that are threads, and what its sequences hold.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "tests/runtime/cache/cache_fixture.hpp"
#include "tests/runtime/cache/faulty_backend.hpp"
#include "tests/support/ranks.hpp"

namespace kvmesh::test {

using MakeBackend = std::function<std::unique_ptr<Backend>(std::unique_ptr<Backend>)>;

/// A cache of two groups on some ranks with two sequences, a fork and cached pages.
class MovingCache {
 public:
  /// `make` wraps the groups' backends.
  MovingCache(Communicator& comm, const MakeBackend& make, CacheOptions with = options(),
              int head_parallel = 1)
      : mesh_(comm, {.head_parallel = head_parallel, .threads = 1, .device = DeviceChoice::kCpu}),
        cache_(mesh_, with) {
    for (CacheGroup& group : inside(cache_).groups) group.backend = make(std::move(group.backend));
    sequences_ = {cache_.create(), cache_.create()};
    write(sequences_[0], 22, 1);
    write(sequences_[1], 6, 2);
    sequences_.push_back(cache_.fork(sequences_[0]));
    PrefixKey key = cache_.make_prefix_key();
    key.append(std::vector<std::int32_t>(8, 5));
    const SequenceId left = cache_.create();
    write(left, 8, 3);
    cache_.publish(left, key);
    cache_.erase(left);
  }

  static CacheOptions options() {
    CacheOptions options = small_cache_options();
    options.pages_per_rank = 12;
    options.home_threshold_tokens = 8;
    options.prefix.enabled = true;
    options.groups = {{.layers = {1}}};
    return options;
  }

  KvCache& cache() { return cache_; }
  Mesh& mesh() { return mesh_; }
  const std::vector<SequenceId>& sequences() const { return sequences_; }

  /// Tokens whose keys and values are `value` and their position.
  void write(SequenceId sequence, std::int64_t tokens, float value) {
    const CacheOptions& o = cache_.options();
    const int heads = o.kv_heads / mesh_.head_parallel();
    const std::int64_t first = cache_.length(sequence);
    StepPlan plan = cache_.plan({{sequence, tokens, 0}});
    std::vector<float> numbers;
    for (std::int64_t t = first; t < first + tokens; ++t)
      numbers.insert(numbers.end(), static_cast<std::size_t>(heads * o.k_dim),
                     value + static_cast<float>(t) * 0.125f);
    for (int layer = 0; layer < o.layers; ++layer)
      plan.append(layer, tensor(numbers.data(), {tokens, heads, o.k_dim}),
                  tensor(numbers.data(), {tokens, heads, o.v_dim}));
  }

  std::vector<std::vector<PageId>> all_tables() const {
    std::vector<std::vector<PageId>> tables;
    for (int g = 0; g < cache_.groups(); ++g)
      for (const SequenceId id : sequences_) {
        const auto pages = cache_.allocator(g).pages(id);
        tables.emplace_back(pages.begin(), pages.end());
      }
    return tables;
  }

  /// The first key of each token of each sequence in each layer, as the sum over the ranks, of
  /// which one for each part of the heads has it.
  std::vector<double> contents() {
    std::vector<double> all;
    for (int layer = 0; layer < cache_.options().layers; ++layer) {
      const TensorView k = cache_.planes(layer)[0];
      const PageAllocator& allocator = cache_.allocator(cache_.group_of(layer));
      for (const SequenceId id : sequences_)
        for (std::int64_t at = 0; at < allocator.length(id); ++at) {
          const PageId page = allocator.pages(id)[static_cast<std::size_t>(at / 4)];
          const std::int64_t place = page.index() * k.stride(0) + at % 4 * k.stride(2);
          const bool is_mine = page.rank() == mesh_.page_rank();
          all.push_back(is_mine ? double{static_cast<const float*>(k.data)[place]} : 0);
        }
    }
    all_reduce_sum(mesh_.world(), all);
    return all;
  }

  void check() {
    cache_.check_replicas();
    for (int g = 0; g < cache_.groups(); ++g) cache_.allocator(g).verify_integrity();
  }

 private:
  Mesh mesh_;
  KvCache cache_;
  std::vector<SequenceId> sequences_;
};

}  // namespace kvmesh::test
