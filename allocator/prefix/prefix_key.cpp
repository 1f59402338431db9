#include <algorithm>
#include <limits>
#include <utility>

#include "allocator/prefix/page_hasher.hpp"
#include "core/check.hpp"

namespace kvmesh {

class PrefixKey::State {
 public:
  State(const PrefixRules& rules, PrefixExtras extras)
      : rules_(rules), extras_(std::move(extras)), hasher_(rules.hash) {
    require(rules.hash <= PrefixHash::kXxh3, "prefix: hash {} is not valid",
            static_cast<int>(rules.hash));
    require(rules.page_size >= 1, "prefix: page_size is {}", rules.page_size);
    root_ = hasher_.root(rules.seed);
    for (const PrefixExtras::Item& item : extras_.items) {
      require(item.first >= 0 && item.tokens >= 0 && item.first <= kMostTokens - item.tokens,
              "prefix: an item of {} tokens from {}", item.tokens, item.first);
    }
  }
  State(const State& other)
      : rules_(other.rules_),
        extras_(other.extras_),
        root_(other.root_),
        tokens_(other.tokens_),
        hashes_(other.hashes_),
        hasher_(other.rules_.hash) {}

  void append(std::span<const std::int32_t> tokens) {
    const auto negative = std::ranges::find_if(tokens, [](std::int32_t t) { return t < 0; });
    require(negative == tokens.end(), "prefix: token {}", negative == tokens.end() ? 0 : *negative);
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    const auto page_size = static_cast<std::size_t>(rules_.page_size);
    if (!extras_.adapter && extras_.items.empty() &&
        extras_.prompt_embeds.size() <= hashes_.size() &&
        (extras_.salt.empty() || !hashes_.empty()))
      return append_run(tokens_.size() / page_size);
    while ((hashes_.size() + 1) * page_size <= tokens_.size()) {
      const std::size_t first = hashes_.size() * page_size;
      hashes_.push_back(hasher_.page(
          hashes_.empty() ? root_ : hashes_.back(), std::span(tokens_).subspan(first, page_size),
          extra_keys(extras_, static_cast<std::int64_t>(first), rules_.page_size)));
    }
  }

  void truncate(std::int64_t length) {
    require(length >= 0 && length <= std::ssize(tokens_), "prefix: truncate to {} of {} tokens",
            length, tokens_.size());
    tokens_.resize(static_cast<std::size_t>(length));
    hashes_.resize(static_cast<std::size_t>(length / rules_.page_size));
  }

  bool has_items(std::int64_t page) const {
    if (page < 0 || page >= kMostTokens / rules_.page_size) return false;
    if (page < std::ssize(extras_.prompt_embeds)) return true;
    const std::int64_t first = page * rules_.page_size, last = first + rules_.page_size;
    return std::ranges::any_of(extras_.items, [=](const PrefixExtras::Item& item) {
      return item.first < last && item.first + item.tokens > first;
    });
  }
  const PrefixRules& rules() const { return rules_; }
  const PageHash& root() const { return root_; }
  std::span<const std::int32_t> tokens() const { return tokens_; }
  std::span<const PageHash> hashes() const { return hashes_; }

 private:
  /// Hashes the pages up to `pages`, which have no extra keys.
  void append_run(std::size_t pages) {
    const std::size_t first = hashes_.size();
    const auto page_size = static_cast<std::size_t>(rules_.page_size);
    const PageHash parent = hashes_.empty() ? root_ : hashes_.back();
    std::vector<PageHash> run(pages - first);
    hasher_.run(parent, std::span(tokens_).subspan(first * page_size, run.size() * page_size), run);
    hashes_.insert(hashes_.end(), run.begin(), run.end());
  }

  static constexpr std::int64_t kMostTokens = std::numeric_limits<std::int64_t>::max();

  PrefixRules rules_;
  PrefixExtras extras_;
  PageHash root_;
  std::vector<std::int32_t> tokens_;
  std::vector<PageHash> hashes_;
  PageHasher hasher_;
};

PrefixKey::PrefixKey(const PrefixRules& rules, PrefixExtras extras)
    : state_(std::make_unique<State>(rules, std::move(extras))) {}
PrefixKey::~PrefixKey() = default;
PrefixKey::PrefixKey(const PrefixKey& other) : state_(std::make_unique<State>(*other.state_)) {}
PrefixKey& PrefixKey::operator=(const PrefixKey& other) {
  if (this != &other) state_ = std::make_unique<State>(*other.state_);
  return *this;
}
PrefixKey::PrefixKey(PrefixKey&&) noexcept = default;
PrefixKey& PrefixKey::operator=(PrefixKey&&) noexcept = default;

void PrefixKey::append(std::span<const std::int32_t> tokens) { state_->append(tokens); }
void PrefixKey::truncate(std::int64_t length) { state_->truncate(length); }
std::span<const std::int32_t> PrefixKey::tokens() const { return state_->tokens(); }
std::span<const PageHash> PrefixKey::hashes() const { return state_->hashes(); }
bool PrefixKey::has_items(std::int64_t page) const { return state_->has_items(page); }
const PageHash& PrefixKey::root() const { return state_->root(); }
const PrefixRules& PrefixKey::rules() const { return state_->rules(); }

}  // namespace kvmesh
