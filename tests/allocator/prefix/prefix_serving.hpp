// Random operations on an allocator with a prefix cache, and a model that knows the content of
// every page.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kvmesh/allocator.hpp"
#include "tests/allocator/seed.hpp"

namespace kvmesh::test::prefix {

using Tokens = std::vector<std::int32_t>;

inline constexpr int kPageSize = 4;

/// A request: its tokens, and the allocator's name of it. The keys and values of a token are a
/// function of all tokens up to it, represented by `content`.
struct Request {
  SequenceId id;
  PrefixKey key;
};

inline std::uint64_t content_after(std::span<const std::int32_t> tokens) {
  std::uint64_t hash = 1;
  for (const std::int32_t token : tokens) hash = hash * 31 + static_cast<std::uint64_t>(token) + 7;
  return hash;
}

class Serving {
 public:
  Serving(const AllocatorOptions& options, std::uint64_t seed)
      : random_(seed),
        allocator_(options),
        replica_(options),
        evictions_(allocator_.follow_evictions()) {}

  void step() {
    const std::int64_t draw = uniform(random_, 0, allocator_.options().window > 0 ? 121 : 111);
    if (requests_.empty() || (draw < 30 && requests_.size() < 6)) {
      arrive();
    } else if (draw < 55) {
      decode(any());
    } else if (draw < 75) {
      publish(any());
    } else if (draw < 80) {
      fork(any());
    } else if (draw < 84) {
      truncate(any());
    } else if (draw < 87) {
      write(any());
    } else if (draw > 111) {
      slide(any());
    } else if (draw > 105 || (draw >= 100 && !side_moves_.empty())) {
      side_moves_.empty() ? start_side_moves() : end_side_moves();
    } else if (draw >= 100) {
      move();
    } else {
      leave(static_cast<std::size_t>(uniform(random_, 0, std::ssize(requests_) - 1)));
    }
    check();
  }

  std::int64_t hits = 0, partial_hits = 0, evictions = 0, merged = 0, moved = 0, back = 0;
  std::int64_t moved_beside = 0, moved_cached = 0, pointless = 0;

 private:
  Request& any() {
    return requests_[static_cast<std::size_t>(uniform(random_, 0, std::ssize(requests_) - 1))];
  }

  /// Prompts that start like one another: few tokens, many equal runs.
  Tokens draw_tokens(std::int64_t count) {
    Tokens tokens(static_cast<std::size_t>(count));
    for (std::int32_t& token : tokens)
      token = static_cast<std::int32_t>(uniform(random_, 0, 9) == 0 ? 1 : 0);
    return tokens;
  }

  void arrive() {
    PrefixExtras extras;
    if (uniform(random_, 0, 3) == 0) extras.salt = "other";
    PrefixKey key(allocator_.prefix_rules(), extras);
    key.append(draw_tokens(uniform(random_, 0, 30)));
    const PrefixMatch match = coin() ? find(key) : bring_back(key);
    if (testing::Test::HasFatalFailure()) return;
    ASSERT_LE(match.tokens, std::ssize(key.tokens()));
    hits += match.tokens > 0 ? 1 : 0;
    partial_hits += match.tokens % kPageSize != 0 ? 1 : 0;
    salts_[match.pin] = extras.salt;
    // The run holds the contents that the request would have written: it is not counted too long.
    expect_content(match.pin, key.tokens(), match.tokens);
    if (uniform(random_, 0, 9) == 0) {
      allocator_.release(match);
      replica_.release(match);
      return;
    }
    ASSERT_EQ(allocator_.create_with_prefix(match), match.pin);
    ASSERT_EQ(replica_.create_with_prefix(match), match.pin);
    requests_.push_back({match.pin, key});
    append(requests_.back(), std::ssize(key.tokens()) - match.tokens);
  }

  bool coin() { return uniform(random_, 0, 1) == 0; }

  PrefixMatch find(const PrefixKey& key) {
    const PrefixMatch match = allocator_.match_prefix(key);
    EXPECT_EQ(replica_.match_prefix(key).pin, match.pin);
    return match;
  }

  /// A match with pages of the tier, which keeps all that was evicted.
  PrefixMatch bring_back(const PrefixKey& key) {
    const std::span<const PageHash> hashes = key.hashes();
    const std::int64_t window = allocator_.options().window;
    const auto has = [&](const PageHash& hash) {
      return allocator_.published_page(hash).valid() || tier_.contains(hash.bytes);
    };
    std::int64_t pages = std::ssize(hashes), first = 0;
    const auto first_seen = [&](std::int64_t of) {
      return window == 0 ? 0 : std::max<std::int64_t>(of * kPageSize - window + 1, 0) / kPageSize;
    };
    for (; pages > 0; --pages) {
      first = first_seen(pages);
      if (std::all_of(hashes.begin() + first, hashes.begin() + pages, has)) break;
    }
    std::vector<PageRank> homes;
    std::vector<std::int64_t> missing;
    for (first = first_seen(pages); first < pages; ++first) {
      if (allocator_.published_page(hashes[static_cast<std::size_t>(first)]).valid()) continue;
      missing.push_back(first);
      homes.emplace_back(
          static_cast<std::int32_t>(uniform(random_, -1, allocator_.options().ranks - 1)));
    }
    PrefixMatch match;
    try {
      match = allocator_.bring_back(key, pages, homes);
    } catch (const OutOfPages&) {
      EXPECT_THROW(replica_.bring_back(key, pages, homes), OutOfPages);
      return find(key);
    }
    EXPECT_EQ(replica_.bring_back(key, pages, homes).pin, match.pin);
    allocator_.verify_integrity();
    read_evictions();
    for (const std::int64_t page : missing)
      content_[allocator_.pages(match.pin)[static_cast<std::size_t>(page)]] =
          tier_.at(hashes[static_cast<std::size_t>(page)].bytes);
    const bool fails = uniform(random_, 0, 5) == 0;
    for (PageAllocator* it : {&allocator_, &replica_})
      fails ? it->release(match) : it->publish(match.pin, key);
    if (fails) return find(key);
    back += std::ssize(missing);
    return match;
  }

  /// Puts what was evicted into the tier. Call it before anything is written.
  void read_evictions() {
    for (;;) {
      const std::span<const PageId> pages = allocator_.read_evictions(evictions_);
      if (pages.empty()) return;
      for (const PageId page : pages)
        if (coin() || tier_.size() < 200) tier_[allocator_.page_hash(page).bytes] = content_[page];
    }
  }

  void expect_content(SequenceId id, std::span<const std::int32_t> tokens, std::int64_t length) {
    for (std::int64_t at = allocator_.released_pages(id) * kPageSize; at < length; ++at) {
      const auto place = static_cast<std::size_t>(at);
      const PageId page = allocator_.pages(id)[place / kPageSize];
      ASSERT_EQ(content_[page].at(place % kPageSize).second, content_after(tokens.first(place + 1)))
          << "position " << at;
      ASSERT_EQ(content_[page].at(place % kPageSize).first, salts_.at(id)) << "another tenant's";
    }
  }

  /// Appends the key's next tokens at the end of the sequence.
  void append(Request& request, std::int64_t count) {
    const std::int64_t length = allocator_.length(request.id);
    const AppendRequest more{request.id, count};
    const std::int64_t cached = allocator_.cached_pages();
    const auto copies = allocator_.try_append({&more, 1});
    ASSERT_EQ(copies.has_value(), replica_.try_append({&more, 1}).has_value());
    evictions += std::max<std::int64_t>(cached - allocator_.cached_pages(), 0);
    if (!copies) {
      request.key.truncate(length);
      return;
    }
    read_evictions();
    for (const PageCopy& copy : *copies)
      std::copy_n(content_[copy.source].begin(), copy.tokens, content_[copy.destination].begin());
    for (std::int64_t at = length; at < length + count; ++at) {
      const auto place = static_cast<std::size_t>(at);
      content_[allocator_.pages(request.id)[place / kPageSize]].at(place % kPageSize) = {
          salts_.at(request.id), content_after(request.key.tokens().first(place + 1))};
    }
  }

  void decode(Request& request) {
    const std::int64_t count = uniform(random_, 1, 6);
    request.key.append(draw_tokens(count));
    append(request, count);
  }

  void publish(Request& request) {
    std::vector<Retention> retentions;
    if (uniform(random_, 0, 3) == 0)
      retentions.push_back({0, 8, static_cast<int>(uniform(random_, 0, 2)) * 50,
                            uniform(random_, 0, 1) * uniform(random_, 0, 300)});
    const std::uint64_t version = allocator_.version(request.id);
    allocator_.publish(request.id, request.key, retentions);
    replica_.publish(request.id, request.key, retentions);
    merged += allocator_.version(request.id) != version ? 1 : 0;
  }

  void fork(Request& request) {
    if (requests_.size() >= 6) return;
    const SequenceId child = allocator_.fork(request.id);
    ASSERT_EQ(replica_.fork(request.id), child);
    salts_[child] = salts_.at(request.id);
    requests_.push_back({child, PrefixKey(request.key)});
  }

  void truncate(Request& request) {
    const std::int64_t length = uniform(random_, 0, allocator_.length(request.id));
    try {
      allocator_.truncate(request.id, length);
    } catch (const InvalidArgument&) {
      ASSERT_GT(allocator_.released_pages(request.id), 0);
      return;
    }
    replica_.truncate(request.id, length);
    request.key.truncate(length);
  }

  void slide(Request& request) {
    const std::int64_t query = uniform(random_, 0, allocator_.length(request.id));
    allocator_.slide_window(request.id, query);
    replica_.slide_window(request.id, query);
  }

  /// Makes positions writable and writes their present contents: the pages are private then.
  void write(Request& request) {
    const std::int64_t length = allocator_.length(request.id);
    const std::int64_t begin = uniform(random_, 0, length);
    const std::int64_t end = uniform(random_, begin, length);
    const auto copies = allocator_.try_make_writable(request.id, begin, end);
    ASSERT_EQ(copies.has_value(), replica_.try_make_writable(request.id, begin, end).has_value());
    if (!copies) return;
    read_evictions();
    for (const PageCopy& copy : *copies)
      std::copy_n(content_[copy.source].begin(), copy.tokens, content_[copy.destination].begin());
    const std::int64_t released = allocator_.released_pages(request.id) * kPageSize;
    for (std::int64_t at = std::max(begin, released); at < end; ++at)
      ASSERT_EQ(allocator_.reference_count(
                    allocator_.pages(request.id)[static_cast<std::size_t>(at / kPageSize)]),
                1);
  }

  /// Rebalances, drains a rank, or gives its pool another size.
  void move() {
    const AllocatorOptions& options = allocator_.options();
    const PageRank rank{static_cast<std::int32_t>(uniform(random_, 0, options.ranks - 1))};
    const std::int64_t size = options.pages_per_rank * uniform(random_, 0, 3) / 2;
    const bool resizes = size <= options.pages_per_rank;
    const auto start = [&](PageAllocator& it) {
      return resizes ? it.try_start_resize(rank, size)
                     : Result<std::vector<PageCopy>>(it.start_rebalance(size));
    };
    const auto copies = start(allocator_);
    ASSERT_EQ(copies.has_value(), start(replica_).has_value());
    if (!copies) return;
    read_evictions();
    allocator_.verify_integrity();
    for (const PageCopy& copy : *copies) {
      ASSERT_NE(copy.source.rank(), resizes && size == 0 ? copy.destination.rank() : PageRank{-1});
      content_[copy.destination] = content_[copy.source];
    }
    const bool cancels = uniform(random_, 0, 3) == 0;
    for (PageAllocator* it : {&allocator_, &replica_})
      cancels ? it->cancel_moves() : static_cast<void>(it->finish_moves());
    // A reader of a page that moved sees nothing of it any more.
    for (const PageCopy& copy : *copies)
      content_[cancels ? copy.destination : copy.source].fill({"free", 0});
    read_evictions();  // of the end
    moved += cancels ? 0 : std::ssize(*copies);
  }

  /// The copies are made at once, so that what is written to their sources later would be lost.
  void start_side_moves() {
    const int ranks = allocator_.options().ranks;
    const RebalanceOptions options{
        .limit = uniform(random_, 0, 12),
        .leaving = PageRank{static_cast<std::int32_t>(uniform(random_, -2, ranks - 1))}};
    side_moves_ = allocator_.start_rebalance_now(options);
    ASSERT_EQ(replica_.start_rebalance_now(options), side_moves_);
    read_evictions();
    for (const PageCopy& copy : side_moves_) content_[copy.destination] = content_[copy.source];
  }

  void end_side_moves() {
    const auto draw = uniform(random_, 0, 4);
    if (draw == 0) {
      for (PageAllocator* it : {&allocator_, &replica_}) it->give_up_moves();
      for (const PageCopy& copy : side_moves_) content_[copy.destination].fill({"free", 0});
      decode(any());  // may take these pages, but not the sources
      allocator_.verify_integrity();
      for (PageAllocator* it : {&allocator_, &replica_}) it->cancel_moves();
    } else if (draw == 1) {
      for (PageAllocator* it : {&allocator_, &replica_}) it->cancel_moves();
      for (const PageCopy& copy : side_moves_) content_[copy.destination].fill({"free", 0});
    } else {
      const auto is_cached = [&](const PageCopy& copy) {
        return allocator_.reference_count(copy.source) == 0 &&
               allocator_.is_current(copy.source, allocator_.generation(copy.source));
      };
      moved_cached += std::ranges::count_if(side_moves_, is_cached);
      const std::int64_t count = allocator_.finish_moves();
      ASSERT_EQ(replica_.finish_moves(), count);
      for (const PageCopy& copy : side_moves_) content_[copy.source].fill({"free", 0});
      moved_beside += count;
      pointless += std::ssize(side_moves_) - count;
    }
    side_moves_.clear();
  }

  void leave(std::size_t at) {
    allocator_.erase(requests_[at].id);
    replica_.erase(requests_[at].id);
    salts_.erase(requests_[at].id);
    requests_.erase(requests_.begin() + static_cast<std::ptrdiff_t>(at));
  }

  void check() {
    ASSERT_NO_THROW(allocator_.verify_integrity());
    ASSERT_EQ(allocator_.digest(), replica_.digest());
    for (const Request& request : requests_) {
      ASSERT_EQ(allocator_.length(request.id), std::ssize(request.key.tokens()));
      expect_content(request.id, request.key.tokens(), allocator_.length(request.id));
    }
  }

  std::mt19937_64 random_;
  PageAllocator allocator_;
  PageAllocator replica_;
  std::vector<Request> requests_;
  std::map<SequenceId, std::string> salts_;
  using Content = std::array<std::pair<std::string, std::uint64_t>, kPageSize>;
  std::map<PageId, Content> content_;
  std::map<std::array<std::uint8_t, 32>, Content> tier_;
  std::vector<PageCopy> side_moves_;  // in progress
  EvictionCursor evictions_;
};

}  // namespace kvmesh::test::prefix
