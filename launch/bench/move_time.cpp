#include "launch/bench/move_time.hpp"

#include <numeric>
#include <vector>

#include "launch/bench/host_turns.hpp"
namespace kvmesh::bench {
namespace {

/// A cache whose pages move, again and again.
class Moves {
 public:
  virtual ~Moves() = default;
  /// Returns the seconds of one time.
  virtual double once() = 0;
};

/// `pages` pages in a pool of twice as many, which is halved: those in its second half move.
class WithinDevice final : public Moves {
 public:
  WithinDevice(Mesh& mesh, const WorkloadShape& shape, std::int64_t pages)
      : pages_(pages), cache_(mesh, cache_options(shape, 2 * pages)) {
    const SequenceId first = fill();
    held_ = fill();
    cache_.erase(first);
  }
  double once() override {
    std::int64_t moved = 0;
    const double seconds = seconds_of([&] { moved = cache_.resize(PageRank{0}, pages_); });
    cache_.resize(PageRank{0}, 2 * pages_);
    const SequenceId next = fill();
    cache_.erase(held_);
    held_ = next;
    return seconds * static_cast<double>(pages_) / static_cast<double>(moved);
  }

 private:
  SequenceId fill() {
    const SequenceId sequence = cache_.create();
    cache_.reserve(sequence, pages_ * cache_.options().page_size);
    return sequence;
  }

  std::int64_t pages_;
  KvCache cache_;
  SequenceId held_;
};

/// The operations that evict the pages: an engine's requests do not evict a whole pool at once,
/// either.
constexpr int kParts = 8;

/// `pages` pages of a prefix, which another sequence evicts to the host tier, and which come back.
class ToHostAndBack final : public Moves {
 public:
  ToHostAndBack(Mesh& mesh, const WorkloadShape& shape, std::int64_t pages, Op op)
      : tokens_(pages * shape.model.page_size), op_(op), cache_(mesh, with_tier(shape, pages)) {}

  // Takes other tokens each time, because the host tier still has those of the last.
  double once() override {
    PrefixKey key = cache_.make_prefix_key();
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(tokens_));
    std::iota(tokens.begin(), tokens.end(), ++first_);
    key.append(tokens);
    const SequenceId prefix = cache_.create();
    static_cast<void>(cache_.plan({{prefix, tokens_, 0}}));
    cache_.publish(prefix, key);
    cache_.erase(prefix);
    wait();
    const SequenceId other = cache_.create();
    const double stored = seconds_of([&] {
      for (int part = 1; part <= kParts; ++part) cache_.reserve(other, tokens_ * part / kParts);
      wait();
    });
    cache_.erase(other);
    PrefixMatch match;
    const double loaded = seconds_of([&] {
      match = cache_.match_prefix(key);
      wait();
    });
    if (match.tokens != tokens_) throw Error("bench: the host tier has lost pages");
    cache_.release(match);
    return op_ == Op::kStore ? stored : loaded;
  }

 private:
  static CacheOptions with_tier(const WorkloadShape& shape, std::int64_t pages) {
    CacheOptions options = cache_options(shape, pages);
    options.prefix.enabled = true;
    options.prefix.hash = PrefixHash::kXxh3;
    options.prefix.eviction = Eviction::kLru;  // pages that came back do not outlive new ones
    const Shape& model = shape.model;
    options.tiers.host_bytes =
        pages * shape.layers * model.page_size * model.kv_heads * model.page_row_bytes();
    options.tiers.stores_per_operation = static_cast<int>(pages);
    return options;
  }
  void wait() { static_cast<void>(cache_.planes(0)); }  // until the copies of tiers are done

  std::int64_t tokens_;
  Op op_;
  KvCache cache_;
  std::int32_t first_ = 0;
};

std::unique_ptr<Moves> make_moves(Mesh& mesh, const WorkloadShape& shape, std::int64_t pages,
                                  Op op) {
  if (op == Op::kMove) return std::make_unique<WithinDevice>(mesh, shape, pages);
  return std::make_unique<ToHostAndBack>(mesh, shape, pages, op);
}

}  // namespace

Row measure_moves(const WorkloadShape& shape, Mesh& mesh, Machine& machine, const Options& options,
                  Op op) {
  std::int64_t pages = 0;
  for (const std::int64_t length : lengths_of(shape))
    pages += (length + shape.model.page_size - 1) / shape.model.page_size;
  const Shape& model = shape.model;
  const auto bytes =
      static_cast<std::size_t>(pages * shape.layers * model.page_size *
                               (model.kv_heads / mesh.head_parallel()) * model.page_row_bytes());
  const std::unique_ptr<Moves> moves = make_moves(mesh, shape, pages, op);
  const HostCalls calls{.once = [&] { return moves->once(); },
                        .amount = static_cast<double>(bytes) * mesh.head_parallel(),
                        .plain = op == Op::kMove ? machine.copy_within(bytes)
                                                 : machine.copy_to_host(bytes, op == Op::kLoad)};
  return measure_calls(calls, mesh, machine, case_of(shape, op, 1), shape.layers, options.repeats);
}

}  // namespace kvmesh::bench
