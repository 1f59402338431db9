// CheckedCache: the calls that it makes alike on all three.
#include <algorithm>

#include "launch/verify/checked_step.hpp"

namespace kvmesh::verify {
namespace {

// The same number of pages in all, so that both caches run out at the same call.
CacheOptions on_one_rank(CacheOptions options, const Mesh& mesh) {
  options.pages_per_rank *= mesh.kv_parallel();
  return options;
}

// A reproducible cache's bits are those of its device.
MeshOptions single_rank(const CacheOptions& options, const Mesh& mesh) {
  const bool on_gpu = options.reproducible && mesh.device().kind == DeviceKind::kCuda;
  return {.threads = 1,
          .device = on_gpu ? DeviceChoice::kCuda : DeviceChoice::kCpu,
          .gpu = mesh.device().index,
          .makes_nccl = false};  // NCCL's start takes a second
}

void poison_page(const TensorView& plane, std::int64_t page) {
  const auto size = static_cast<std::size_t>(plane.stride(0)) * size_bytes(plane.dtype);
  // All bits set is a NaN in every type.
  const std::vector<std::byte> poison(size, std::byte{0xFF});
  copy_bytes(static_cast<std::byte*>(plane.data) + static_cast<std::size_t>(page) * size,
             poison.data(), size);
}

}  // namespace

void poison_free_pages(KvCache& cache) {
  for (int layer = 0; layer < cache.options().layers; ++layer) {
    const PageAllocator& allocator = cache.allocator(cache.group_of(layer));
    const std::int64_t pages = cache.planes(layer)[0].shape[0];
    const std::vector<PageId> published = allocator.published_pages();
    for (std::int32_t page = 0; page < pages; ++page) {
      const PageId id{cache.mesh().page_rank(), page};
      if (allocator.reference_count(id) > 0 || allocator.is_moving(id)) continue;
      if (std::ranges::binary_search(published, id)) continue;  // cached
      for (const TensorView& plane : cache.planes(layer)) poison_page(plane, page);
    }
  }
}

CheckedCache::CheckedCache(Mesh& mesh, const CacheOptions& options, std::uint64_t seed)
    : mesh_(&mesh),
      single_mesh_(make_single_communicator(), single_rank(options, mesh)),
      cache_(mesh, options),
      single_(single_mesh_, on_one_rank(options, mesh)),
      random_(seed) {
  for (int layer = 0; layer < options.layers; ++layer) {
    of_layers_.push_back(cache_.group_options(cache_.group_of(layer)));
  }
  poison_free_pages(cache_);
  poison_free_pages(single_);
}

void CheckedCache::expect(bool ok, const char* message) {
  if (!ok) findings_.fail(message);
}

void CheckedCache::add_twin(SequenceId sequence, SequenceId twin) {
  expect(sequence.slot() == twin.slot() && sequence.generation() == twin.generation(),
         "one rank gave another id than several");
  twins_[sequence] = twin;
}

SequenceId CheckedCache::create() {
  const SequenceId sequence = cache_.create();
  add_twin(sequence, single_.create());
  for (const CacheOptions& layer : of_layers_) {
    content_[sequence].push_back(
        {.kv_heads = layer.kv_heads, .k_dim = layer.k_dim, .v_dim = layer.v_dim, .k = {}, .v = {}});
  }
  return sequence;
}

SequenceId CheckedCache::fork(SequenceId sequence) {
  const SequenceId forked = cache_.fork(sequence);
  add_twin(forked, single_.fork(twins_.at(sequence)));
  content_[forked] = content_.at(sequence);
  states_.fork(sequence, forked);
  return forked;
}

bool CheckedCache::try_reserve(SequenceId sequence, std::int64_t tokens) {
  const auto try_it = [&] { return cache_.try_reserve(sequence, tokens).has_value(); };
  const bool fits = try_it() || (complete_moves() && try_it());
  expect(single_.try_reserve(twins_.at(sequence), tokens).has_value() == fits,
         "reserve: one rank with the same number of pages decided otherwise than several");
  return fits;
}

void CheckedCache::truncate(SequenceId sequence, std::int64_t length) {
  states_.truncate(sequence, length);
  cache_.truncate(sequence, length);
  single_.truncate(twins_.at(sequence), length);
  keep_first(content_.at(sequence), length);
  poison_free_pages(cache_);
  poison_free_pages(single_);
}

void CheckedCache::keep_first(Layers& layers, std::int64_t length) {
  for (DenseSequence& layer : layers) {
    layer.k.resize(static_cast<std::size_t>(length * layer.kv_heads * layer.k_dim));
    layer.v.resize(static_cast<std::size_t>(length * layer.kv_heads * layer.v_dim));
  }
}

std::int64_t CheckedCache::rebalance(std::int64_t limit) {
  const std::int64_t moved = cache_.rebalance(limit);
  poison_free_pages(cache_);
  return moved;
}

MoveProgress CheckedCache::rebalance_now(const RebalanceOptions& options) {
  const MoveProgress progress = cache_.rebalance_now(options, Stream());
  is_moving_ = progress.moving > 0;
  poison_free_pages(cache_);
  return progress;
}

bool CheckedCache::complete_moves() {
  const bool was_moving = is_moving_;
  while (is_moving_) rebalance_now({});
  return was_moving;
}

std::int64_t CheckedCache::resize(PageRank rank, std::int64_t pages) {
  const std::int64_t moved = cache_.resize(rank, pages);
  poison_free_pages(cache_);
  return moved;
}

bool CheckedCache::try_compact(const std::vector<KeptTokens>& batch) {
  const auto fits = [](KvCache& cache, const std::vector<KeptTokens>& tokens) {
    try {
      cache.compact(tokens);
      return true;
    } catch (const OutOfPages&) {
      return false;
    }
  };
  std::vector<KeptTokens> twins = batch;
  for (KeptTokens& twin : twins) twin.sequence = twins_.at(twin.sequence);
  const bool done = fits(cache_, batch) || (complete_moves() && fits(cache_, batch));
  expect(fits(single_, twins) == done,
         "compact: one rank with the same number of pages decided otherwise than several");
  if (done) keep_content(batch);
  return done;
}

void CheckedCache::compact(const std::vector<KeptTokens>& batch) {
  expect(try_compact(batch), "compact: out of pages");
}

void CheckedCache::keep_content(const std::vector<KeptTokens>& batch) {
  const auto keep = [](const KeptTokens& tokens, std::vector<float>& rows, std::int64_t length) {
    const auto row =
        static_cast<std::ptrdiff_t>(std::ssize(rows) / std::max<std::int64_t>(length, 1));
    auto to = rows.begin() + tokens.begin * row;
    for (std::int64_t position : tokens.kept) {
      to = std::copy_n(rows.begin() + position * row, row, to);
    }
    rows.erase(to, rows.end());
  };
  for (const KeptTokens& tokens : batch) {
    for (int layer = 0; layer < cache_.options().layers; ++layer) {
      if (of(layer).state_bytes > 0) continue;  // has no tokens
      DenseSequence& dense = content_.at(tokens.sequence)[static_cast<std::size_t>(layer)];
      const std::int64_t length = dense.length();
      keep(tokens, dense.k, length);
      keep(tokens, dense.v, length);
    }
  }
  poison_free_pages(cache_);
  poison_free_pages(single_);
}

void CheckedCache::erase(SequenceId sequence) {
  states_.erase(sequence);
  cache_.erase(sequence);
  single_.erase(twins_.at(sequence));
  twins_.erase(sequence);
  content_.erase(sequence);
  poison_free_pages(cache_);
  poison_free_pages(single_);
}

void CheckedCache::publish(SequenceId sequence, const std::vector<std::int32_t>& names) {
  PrefixKey key = cache_.make_prefix_key();
  key.append(names);
  cache_.publish(sequence, key);
  single_.publish(twins_.at(sequence), key);
  Published& published =
      published_.emplace_back(names, content_.at(sequence), states_.of(sequence));
  keep_first(published.content, std::ssize(names));
  poison_free_pages(cache_);  // where another sequence has published the same page
  poison_free_pages(single_);
}

SequenceId CheckedCache::create_with_prefix(const std::vector<std::int32_t>& names) {
  PrefixKey key = cache_.make_prefix_key();
  key.append(names);
  const SequenceId sequence = cache_.create_with_prefix(key, Stream());
  add_twin(sequence, single_.create_with_prefix(key));
  const std::int64_t length = cache_.length(sequence);
  expect(single_.length(twins_.at(sequence)) == length, "one rank found another prefix");
  const Published* published = find_published(names, length);
  if (published == nullptr) throw Error("verify: found a prefix that was not published");
  Layers& content = content_[sequence] = published->content;
  keep_first(content, length);
  if (length > 0) states_.begin_with(sequence, published->states);
  return sequence;
}

const CheckedCache::Published* CheckedCache::find_published(const std::vector<std::int32_t>& names,
                                                            std::int64_t length) const {
  const auto begins_so = [&](const Published& it) {
    const bool is_long_enough =
        it.states.empty() ? std::ssize(it.names) >= length : std::ssize(it.names) == length;
    return is_long_enough && std::equal(names.begin(), names.begin() + length, it.names.begin());
  };
  const auto found = std::ranges::find_if(published_, begins_so);
  return found == published_.end() ? nullptr : &*found;
}

void CheckedCache::check_replicas() {
  cache_.check_replicas();
  for (int g = 0; g < cache_.groups(); ++g) cache_.allocator(g).verify_integrity();
}

}  // namespace kvmesh::verify
