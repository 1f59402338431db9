// Random operations of a cache with tiers, which every rank draws alike, and the tokens that must
// be in its pages after each.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "kvmesh/sequence_stream.hpp"
#include "tests/runtime/cache/cache_fixture.hpp"

namespace kvmesh::test {

namespace fs = std::filesystem;

constexpr int kPage = 4;

inline std::int64_t draw(std::mt19937_64& random, std::int64_t least, std::int64_t most) {
  return least + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(most - least + 1));
}

/// A request: its tokens, and for each a number that stands for all tokens up to it.
struct Request {
  SequenceId id;
  PrefixKey key;
  std::vector<std::uint64_t> contents;
};

inline float number(std::uint64_t content, int layer, int head, int plane) {
  return static_cast<float>((content >> 8) % 4093 + static_cast<std::uint64_t>(layer)) +
         static_cast<float>(head) * 0.25f + static_cast<float>(plane) * 0.5f;
}

/// Every rank draws the same operations.
class Serving {
 public:
  Serving(Mesh& mesh, const CacheOptions& options, std::uint64_t seed)
      : random_(seed), cache_(mesh, options) {}

  void run(std::int64_t steps) {
    for (std::int64_t step = 0; step < steps; ++step) {
      SCOPED_TRACE(testing::Message() << "step " << step);
      operate();
      check();
      if (testing::Test::HasFailure()) throw Error("an operation has failed");
      digests_ = digests_ * 31 + cache_.digest();
      if (step % 16 != 15 && step + 1 != steps) continue;
      const auto all = all_gather_value(cache_.mesh().world(), digests_, "digests");
      for (const std::uint64_t other : all) ASSERT_EQ(other, digests_);
    }
  }

  KvCache& cache() { return cache_; }
  std::int64_t hits = 0, loads = 0, moved = 0, moved_beside = 0, compacted = 0, imported = 0;

 private:
  Request& any() {
    return requests_[static_cast<std::size_t>(draw(random_, 0, std::ssize(requests_) - 1))];
  }

  void operate() {
    const std::int64_t kind = draw(random_, 0, 999);
    if (requests_.empty() || (kind < 280 && requests_.size() < 5)) {
      arrive();
    } else if (kind < 490) {
      decode(any());
    } else if (kind < 510) {
      compact(any());
    } else if (kind < 520) {
      go_through_a_stream(static_cast<std::size_t>(draw(random_, 0, std::ssize(requests_) - 1)));
    } else if (kind < 690) {
      Request& request = any();
      cache_.publish(request.id, request.key);
    } else if (kind < 730) {
      fork(any());
    } else if (kind < 770) {
      truncate(any());
    } else if (kind < 790) {
      make_writable(any());
    } else if (kind < 805) {
      moved += cache_.rebalance(draw(random_, 0, 6));
    } else if (kind < 845) {
      resize();
    } else if (kind < 905) {
      rebalance_now();
    } else if (kind < 908) {
      cache_.flush_tiers();
    } else {
      leave(static_cast<std::size_t>(draw(random_, 0, std::ssize(requests_) - 1)));
    }
  }

  void add_tokens(Request& request, std::int64_t count) {
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
    for (std::int32_t& token : tokens) {
      token = draw(random_, 0, 7) == 0 ? 1 : 0;
      const std::uint64_t before = request.contents.empty() ? 1 : request.contents.back();
      request.contents.push_back((before + static_cast<std::uint64_t>(token) + 7) *
                                 0x9E3779B97F4A7C15u);
    }
    request.key.append(tokens);
  }

  void arrive() {
    Request request{{}, cache_.make_prefix_key(), {}};
    add_tokens(request, draw(random_, 1, 26));
    const bool waits = draw(random_, 0, 1) == 0;
    const PrefixMatch match =
        waits ? cache_.match_prefix(request.key) : cache_.match_prefix_now(request.key);
    hits += match.tokens > 0;
    loads += match.loading > 0;
    digests_ = digests_ * 31 + static_cast<std::uint64_t>(match.loading);
    if (draw(random_, 0, 9) == 0) return cache_.release(match);
    request.id = cache_.create_with_prefix(match);
    requests_.push_back(std::move(request));
    check();  // what the match says is there
    append(requests_.back());
  }

  /// Appends the key's tokens past the sequence's length; without room they are forgotten.
  void append(Request& request) {
    const std::int64_t length = cache_.length(request.id);
    const std::int64_t count = std::ssize(request.contents) - length;
    if (count == 0) return;
    auto made = cache_.try_plan({{request.id, count, 0}});
    if (!made) {
      request.contents.resize(static_cast<std::size_t>(length));
      return request.key.truncate(length);
    }
    const CacheOptions& o = cache_.options();
    for (int layer = 0; layer < o.layers; ++layer) {
      std::vector<float> k, v;
      for (std::int64_t at = length; at < length + count; ++at)
        for (int head = 0; head < o.kv_heads; ++head) {
          const std::uint64_t content = request.contents[static_cast<std::size_t>(at)];
          k.insert(k.end(), static_cast<std::size_t>(o.k_dim), number(content, layer, head, 0));
          v.insert(v.end(), static_cast<std::size_t>(o.v_dim), number(content, layer, head, 1));
        }
      made->append(layer, tensor(k.data(), {count, o.kv_heads, o.k_dim}),
                   tensor(v.data(), {count, o.kv_heads, o.v_dim}));
    }
  }

  void decode(Request& request) {
    add_tokens(request, draw(random_, 1, 5));
    append(request);
  }

  void fork(Request& request) {
    if (requests_.size() >= 5) return;
    Request child = request;
    child.id = cache_.fork(request.id);
    requests_.push_back(std::move(child));
  }

  void truncate(Request& request) {
    const std::int64_t length = draw(random_, 0, cache_.length(request.id));
    try {
      cache_.truncate(request.id, length);
    } catch (const InvalidArgument&) {  // pages behind a window are given up
      return;
    }
    request.contents.resize(static_cast<std::size_t>(length));
    request.key.truncate(length);
  }

  /// Keeps some of the newest tokens, as a step of drafts does. The bytes of a token that moves are
  /// not those of its new place, so the key names it by a token that no other request has.
  void compact(Request& request) {
    const std::int64_t length = cache_.length(request.id);
    KeptTokens tokens{request.id, draw(random_, std::max<std::int64_t>(0, length - 9), length)};
    for (std::int64_t at = tokens.begin; at < length; ++at)
      if (draw(random_, 0, 1) == 0) tokens.kept.push_back(at);
    try {
      cache_.compact({&tokens, 1});
    } catch (const InvalidArgument&) {  // as in truncate
      return;
    } catch (const OutOfPages&) {
      return;
    }
    ++compacted;
    std::int64_t end = tokens.begin;
    for (const std::int64_t at : tokens.kept) {
      if (at != end) {
        request.contents[static_cast<std::size_t>(end)] =
            request.contents[static_cast<std::size_t>(at)];
        request.key.truncate(end);
        request.key.append({&++newest_token_, 1});
      }
      ++end;
    }
    request.contents.resize(static_cast<std::size_t>(end));
    request.key.truncate(end);
  }

  /// Exports a request and goes on with what is imported, beside the first or in its place.
  void go_through_a_stream(std::size_t at) {
    const bool is_first = cache_.mesh().rank().value == 0;
    MemorySink sink;
    Request request = requests_[at];
    cache_.export_sequence(request.id, is_first ? &sink : nullptr, &request.key);
    if (requests_.size() == 5 || draw(random_, 0, 1) == 0) leave(at);
    MemorySource source(sink.bytes());
    try {
      request.id = cache_.import_sequence(is_first ? &source : nullptr).sequence;
    } catch (const OutOfPages&) {
      return;
    }
    ++imported;
    requests_.push_back(std::move(request));
  }

  void make_writable(Request& request) {
    const std::int64_t begin = draw(random_, 0, cache_.length(request.id));
    static_cast<void>(cache_.try_make_writable(request.id, begin,
                                               draw(random_, begin, cache_.length(request.id))));
  }

  void rebalance_now() {
    const int ranks = cache_.mesh().kv_parallel();
    const MoveProgress now = cache_.rebalance_now(
        {.limit = draw(random_, 0, 6),
         .leaving = PageRank{static_cast<std::int32_t>(draw(random_, -3, ranks - 1))}});
    moved_beside += now.moved;
    digests_ = digests_ * 31 + static_cast<std::uint64_t>(now.moved * 8 + now.moving);
  }

  void resize() {
    const PageRank rank{
        static_cast<std::int32_t>(draw(random_, 0, cache_.mesh().kv_parallel() - 1))};
    if (cache_.allocator().pool_pages(rank) == 0) return cache_.add_rank(rank);
    const std::int64_t most = cache_.options().max_pages_per_rank;
    const auto done = draw(random_, 0, 2) == 0 ? cache_.try_drain(rank)
                                               : cache_.try_resize(rank, draw(random_, 1, most));
    if (done) moved += *done;
  }

  void leave(std::size_t at) {
    cache_.erase(requests_[at].id);
    requests_.erase(requests_.begin() + static_cast<std::ptrdiff_t>(at));
  }

  void check() {
    for (int group = 0; group < cache_.groups(); ++group)
      cache_.allocator(group).verify_integrity();
    for (int layer = 0; layer < cache_.options().layers; ++layer) {
      const PagePlanes planes = cache_.planes(layer);
      const PageAllocator& allocator = cache_.allocator(cache_.group_of(layer));
      for (const Request& request : requests_) check_layer(request, layer, allocator, planes);
    }
  }

  void check_layer(const Request& request, int layer, const PageAllocator& allocator,
                   const PagePlanes& planes) {
    const std::span<const PageId> table = allocator.pages(request.id);
    const std::int64_t length = allocator.length(request.id);
    const PageRank me = cache_.mesh().page_rank();
    ASSERT_LE(length, std::ssize(request.contents));
    for (std::int64_t at = allocator.released_pages(request.id) * kPage; at < length; ++at) {
      const PageId page = table[static_cast<std::size_t>(at / kPage)];
      if (page.rank() != me) continue;
      const std::uint64_t content = request.contents[static_cast<std::size_t>(at)];
      for (int plane = 0; plane < 2; ++plane) {
        const TensorView& of = planes[static_cast<std::size_t>(plane)];
        for (int head = 0; head < of.shape[1]; ++head) {
          const std::int64_t first =
              page.index() * of.stride(0) + head * of.stride(1) + at % kPage * of.stride(2);
          const float* row = static_cast<const float*>(of.data) + first;
          const float want = number(content, layer, head, plane);
          ASSERT_TRUE(row[0] == want && row[of.shape[3] - 1] == want)
              << "position " << at << ", layer " << layer << ": " << row[0] << " for " << want;
        }
      }
    }
  }

  std::mt19937_64 random_;
  KvCache cache_;
  std::vector<Request> requests_;
  std::uint64_t digests_ = 0;
  std::int32_t newest_token_ = 1;
};

inline CacheOptions mixed_options(int ranks, bool has_groups) {
  CacheOptions options = small_cache_options();
  options.pages_per_rank = 20 / ranks;
  options.max_pages_per_rank = 24 / ranks;
  options.home_threshold_tokens = 8;
  options.prefix = {.enabled = true, .hash = PrefixHash::kXxh3};
  if (has_groups) options.groups = {{.layers = {1}, .window = 7}};
  options.tiers.host_bytes = 10 * 2 * 2 * kPage * (8 + 6) * 4 / ranks;
  return options;
}

class MixedFolder {
 public:
  MixedFolder()
      : path_(fs::temp_directory_path() / ("kvmesh_mixed." + std::to_string(::getpid()))) {
    fs::remove_all(path_);
  }
  ~MixedFolder() { fs::remove_all(path_); }
  std::string path() const { return path_.string(); }

 private:
  fs::path path_;
};

}  // namespace kvmesh::test
