#include "runtime/step/plan_agreement.hpp"

#include <array>
#include <bit>
#include <string_view>

#include "core/check.hpp"
#include "kernels/mods/graph.hpp"
#include "runtime/memory/gathered.hpp"

namespace kvmesh {
namespace {

constexpr std::array<std::string_view, 9> kFields{
    "the batch",   "scale",        "scatter",       "strategy",      "the limits",
    "q_positions", "the mask mod", "the score mod", "the block mask"};
using Hashes = std::array<std::uint64_t, kFields.size()>;

// FNV-1a over words.
class Hash {
 public:
  template <class T>
  Hash& add(T word) {
    value_ = (value_ ^ static_cast<std::uint64_t>(word)) * 0x100'0000'01B3u;
    value_ ^= value_ >> 29;
    return *this;
  }
  template <class T>
  Hash& add_all(const T& words) {
    add(std::size(words));
    for (const auto& word : words) add(word);
    return *this;
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xCBF2'9CE4'8422'2325u;
};

std::uint64_t hash_of(const ModGraph& graph) {
  Hash hash;
  hash.add_all(to_string(graph));
  for (const ModBuffer& buffer : graph.buffers) {
    hash.add(buffer.type);
    const std::size_t element = buffer.type == ModType::kBool ? 1 : 4;
    const auto* bytes = static_cast<const unsigned char*>(buffer.data);
    hash.add_all(std::span(bytes, static_cast<std::size_t>(buffer.size) * element));
  }
  return hash.value();
}

std::uint64_t hash_of(const BlockMask* mask) {
  if (mask == nullptr) return 0;
  const BlockMaskShape& shape = mask->shape();
  Hash hash;
  hash.add(shape.batch).add(shape.heads).add(shape.q_len).add(shape.kv_len);
  hash.add(shape.q_block).add(shape.kv_block).add_all(shape.q_start);
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      for (std::int64_t q = 0; q < shape.q_blocks(); ++q) {
        const BlockRowView row = mask->row(b, h, q);
        hash.add_all(row.partial).add_all(row.full);
      }
    }
  }
  return hash.add(hash_of(mask->mask_mod().graph())).value();
}

std::uint64_t hash_of(std::span<const BatchEntry> batch) {
  Hash hash;
  for (const BatchEntry& entry : batch) {
    hash.add(entry.sequence.value).add(entry.append_tokens).add(entry.query_tokens);
  }
  return hash.add(batch.size()).value();
}

std::uint64_t hash_of(const std::optional<StepLimits>& limits) {
  if (!limits) return 0;
  return Hash().add(limits->sequences).add(limits->query_tokens).add(limits->pages).value();
}

Hashes hashes_of(std::span<const BatchEntry> batch, const PlanOptions& options) {
  return {hash_of(batch),
          options.scale ? Hash().add(std::bit_cast<std::uint32_t>(*options.scale)).value() : 0,
          static_cast<std::uint64_t>(options.scatter),
          static_cast<std::uint64_t>(options.strategy),
          hash_of(options.limits),
          Hash().add_all(options.q_positions).value(),
          hash_of(options.mask.graph()),
          hash_of(options.score.graph()),
          hash_of(options.block_mask)};
}

}  // namespace

void check_plans_agree(Communicator& world, std::span<const BatchEntry> batch,
                       const PlanOptions& options) {
  const std::vector<Hashes> all =
      gathered(world, hashes_of(batch, options), "compare the ranks' plans");
  for (std::size_t rank = 1; rank < all.size(); ++rank) {
    for (std::size_t i = 0; i < kFields.size(); ++i) {
      require(all[rank][i] == all[0][i], "plan: {} of rank {} is another than that of rank 0",
              kFields[i], rank);
    }
  }
}

}  // namespace kvmesh
