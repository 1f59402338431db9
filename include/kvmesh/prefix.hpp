// Names of cached prefixes: chained hashes of full pages, as vLLM computes them.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvmesh/api.h"
#include "kvmesh/types.hpp"

namespace KVMESH_API kvmesh {

/// How the hash of a page is computed from the hash of the page before it, the page's tokens and
/// its extra keys.
enum class PrefixHash : std::uint8_t {
  /// SHA-256 of canonical CBOR, byte-compatible with vLLM's `sha256_cbor`.
  kSha256Cbor,
  /// XXH3-128 of the raw bytes: faster, for one trust domain, since collisions can be constructed.
  kXxh3,
};

/// The policy that picks the unreferenced page to evict first. All policies decide by the order of
/// operations alone, so all ranks agree. A page is evicted only after all cached pages that
/// continue it.
enum class Eviction : std::uint8_t {
  /// Pages that were hit count as used later than they were, by a number of pages that the cache
  /// learns from the times between the uses of its pages and of those that it evicted. Takes 128
  /// bytes more on each rank for each page of all ranks. The default.
  kHits,
  kTwoQueues,  ///< 2Q: new pages are in a queue of their own until they come again.
  kLru,        ///< The page that was used least recently.
  kS3Fifo,     ///< S3-FIFO: a small queue for new pages, a main queue with a few second chances.
  kSegmented,  ///< Segmented LRU: pages that were hit are protected, up to 4/5 of the pool.
};

inline constexpr PrefixHash kAllPrefixHashes[] = {PrefixHash::kSha256Cbor, PrefixHash::kXxh3};
inline constexpr Eviction kAllEvictions[] = {Eviction::kHits, Eviction::kTwoQueues, Eviction::kLru,
                                             Eviction::kS3Fifo, Eviction::kSegmented};
/// "sha256_cbor" or "xxh3".
std::string_view name(PrefixHash hash);
/// "hits", "2q", "lru", "s3fifo" or "segmented".
std::string_view name(Eviction eviction);

struct PrefixOptions {
  /// Off: nothing is kept after its last sequence, and no memory is used.
  bool enabled = false;
  PrefixHash hash = PrefixHash::kSha256Cbor;
  /// The text whose hash is the parent of first pages. Empty: vLLM's, when PYTHONHASHSEED is unset.
  std::string seed{};
  Eviction eviction = Eviction::kHits;
  /// Compares the tokens of every page that a lookup finds; a page with other tokens is no match.
  bool compares_tokens = false;
};

/// The hash of a page and, through its parent, of all tokens before it. XXH3-128 fills the first 16
/// bytes.
struct PageHash {
  alignas(8) std::array<std::uint8_t, 32> bytes{};
  friend bool operator==(const PageHash&, const PageHash&) = default;
};

/// The integer that stands for a SHA-256 page hash in KV events: its low 64 bits, big-endian.
std::uint64_t event_id(const PageHash& hash);

/// Properties that distinguish pages with equal tokens.
struct PrefixExtras {
  struct Adapter {
    std::string name;
    std::string path;
  };
  /// An input of another modality: its placeholder tokens are [first, first + tokens).
  struct Item {
    std::string id;
    std::int64_t first = 0;
    std::int64_t tokens = 0;
  };
  std::optional<Adapter> adapter{};  ///< on every page
  std::vector<Item> items{};         ///< on the pages that they overlap; in ascending order
  std::string salt{};                ///< on the first page: isolates tenants
  /// The SHA-256 of each page's embeddings, if the prompt is given as embeddings, from the first
  /// page on. The pages past the list have none.
  std::vector<std::array<std::uint8_t, 32>> prompt_embeds{};
};

/// How long published pages are worth keeping: pages of a lower priority are evicted first. Tokens
/// [first, first + tokens) get the priority; the other tokens of the sequence have kPriority. A
/// page gets at least the priority of the pages after it that are published with it, since these
/// leave before it (of a cache with a window they do not).
struct Retention {
  static constexpr int kPriority = 35;
  std::int64_t first = 0;
  std::int64_t tokens = 0;
  int priority = kPriority;  ///< 0 to 100
  /// After this many operations of the allocator (JournalEntry::number counts them) the pages have
  /// kPriority. 0: never. In a cache each layer group has an allocator; windows make more
  /// operations.
  std::int64_t operations = 0;
};

/// A cached run of a request, pinned: no page of it is evicted. End it by create_with_prefix or
/// release.
struct PrefixMatch {
  SequenceId pin;
  std::int64_t tokens = 0;  ///< the run's length; it may end inside of a page
  /// The tokens behind it that are on their way: see KvCache::match_prefix_now. They are not
  /// pinned, and may still prove to be a miss. It is 0 in other matches.
  std::int64_t loading = 0;
};

/// How a page is hashed. Equal rules give equal names.
struct PrefixRules {
  PrefixHash hash = PrefixHash::kSha256Cbor;
  int page_size = 16;
  std::string seed{};
  friend bool operator==(const PrefixRules&, const PrefixRules&) = default;
};

/// The tokens of one request and the hashes of their full pages. Each page is hashed once, when its
/// last token is appended. Copy it for a fork. Movable and copyable; owns its memory.
class PrefixKey {
 public:
  /// @throws InvalidArgument if the rules are invalid.
  explicit PrefixKey(const PrefixRules& rules, PrefixExtras extras = {});
  ~PrefixKey();
  PrefixKey(const PrefixKey&);
  PrefixKey& operator=(const PrefixKey&);
  PrefixKey(PrefixKey&&) noexcept;
  PrefixKey& operator=(PrefixKey&&) noexcept;

  /// Adds tokens at the end. @throws InvalidArgument if one is negative; then adds nothing.
  void append(std::span<const std::int32_t> tokens);
  /// Drops the tokens past `length`. @throws InvalidArgument if there are fewer.
  void truncate(std::int64_t length);

  std::span<const std::int32_t> tokens() const;
  std::span<const PageHash> hashes() const;  ///< one per full page
  /// Returns whether an item of another modality, or embeddings, lie on the page: its tokens do not
  /// say all then.
  bool has_items(std::int64_t page) const;
  /// The parent of the first page.
  const PageHash& root() const;
  const PrefixRules& rules() const;

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace kvmesh
