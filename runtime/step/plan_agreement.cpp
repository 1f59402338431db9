#include "runtime/step/plan_agreement.hpp"

#include <bit>
#include <string_view>

#include "core/check.hpp"
#include "core/hash.hpp"
#include "kernels/mods/graph.hpp"

namespace kvmesh {
namespace {

struct Field {
  std::string_view name;
  PlanGroup group;
};

enum : std::size_t {
  kOperations,  // first: check_replicas names more than a field
  kBatch,
  kPositions,
  kLimits,
  kScale,
  kScatter,
  kStrategy,
  kWay,
  kTravelsAs,
  kSharesPrefixes,
  kLeastSaved,
  kFixedSplit,
  kMaskMod,
  kScoreMod,
  kBlockMask
};
constexpr std::array<Field, 15> kFields{{{"the allocator", PlanGroup::kLengths},
                                         {"the batch", PlanGroup::kLengths},
                                         {"q_positions", PlanGroup::kLengths},
                                         {"the limits", PlanGroup::kLengths},
                                         {"scale", PlanGroup::kScale},
                                         {"scatter", PlanGroup::kStrategy},
                                         {"strategy", PlanGroup::kStrategy},
                                         {"way", PlanGroup::kStrategy},
                                         {"travels_as", PlanGroup::kStrategy},
                                         {"shares_prefixes", PlanGroup::kStrategy},
                                         {"least_saved_tokens", PlanGroup::kStrategy},
                                         {"fixed_split_tokens", PlanGroup::kStrategy},
                                         {"the mask mod", PlanGroup::kMask},
                                         {"the score mod", PlanGroup::kMask},
                                         {"the block mask", PlanGroup::kMask}}};

std::uint64_t hash_of(const ModGraph& graph, Contents contents) {
  Hash hash;
  for (const ModNode& node : graph.nodes) {
    hash.add(node.op).add(node.type).add(node.payload).add_all(node.inputs);
  }
  for (const ModBuffer& buffer : graph.buffers) {
    hash.add(buffer.type).add(buffer.size);
    if (contents == Contents::kLeftOut) continue;
    const std::size_t element = buffer.type == ModType::kBool ? 1 : 4;
    const auto* bytes = static_cast<const unsigned char*>(buffer.data);
    hash.add_all(std::span(bytes, static_cast<std::size_t>(buffer.size) * element));
  }
  return hash.value();
}

void add_rows(const BlockMask& mask, Hash& hash) {
  const BlockMaskShape& shape = mask.shape();
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      for (std::int64_t q = 0; q < shape.q_blocks(); ++q) {
        const BlockRowView row = mask.row(b, h, q);
        hash.add_all(row.partial).add_all(row.full);
      }
    }
  }
}

std::uint64_t hash_of(const BlockMask* mask, Contents contents) {
  if (mask == nullptr) return 0;
  const BlockMaskShape& shape = mask->shape();
  Hash hash;
  hash.add(shape.batch).add(shape.heads).add(shape.q_len).add(shape.kv_len);
  hash.add(shape.q_block).add(shape.kv_block).add_all(shape.q_start);
  hash.add(std::bit_cast<std::uint64_t>(mask->sparsity()));
  if (contents == Contents::kHashed) add_rows(*mask, hash);
  return hash.add(hash_of(mask->mask_mod().graph(), contents)).value();
}

// hashes_of, and this for the limits, name every member: one that is added does not compile before
// someone has decided how it is compared.
std::uint64_t hash_of(const std::optional<StepLimits>& limits) {
  if (!limits) return 0;
  const auto& [sequences, query_tokens, pages, shares_prefixes] = *limits;
  return Hash().add(sequences).add(query_tokens).add(pages).add(shares_prefixes).value();
}

// The three numbers of an entry are joined without waiting for the hash of the entry before.
std::uint64_t hash_of(std::span<const BatchEntry> batch) {
  Hash hash;
  for (const BatchEntry& entry : batch) {
    hash.add(entry.sequence.value * 0xD6E8'FEB8'6659'FD93u ^
             static_cast<std::uint64_t>(entry.append_tokens) << 32 ^
             static_cast<std::uint64_t>(entry.query_tokens));
  }
  return hash.add(batch.size()).value();
}

PlanHashes folded(PlanHashes history, const PlanHashes& next) {
  for (std::size_t i = 0; i < kFields.size(); ++i) {
    history.fields[i] = Hash().add(history.fields[i]).add(next.fields[i]).value();
  }
  return history;
}

void fold_in(const LayerKind& kind, PlanHashes& hashes, Contents contents) {
  const auto& [layers, mask, score, scale] = kind;
  const auto fold = [&of = hashes.fields, &in = layers](std::size_t field, std::uint64_t hash) {
    of[field] = Hash().add(of[field]).add_all(in).add(hash).value();
  };
  fold(kMaskMod, hash_of(mask.graph(), contents));
  if (!score.is_identity()) fold(kScoreMod, hash_of(score.graph(), contents));
  if (scale) fold(kScale, std::bit_cast<std::uint32_t>(*scale));
}

}  // namespace

PlanHashes hashes_of(const PlanOptions& options, Contents contents) {
  const auto& [mask, score, scale, scatter, strategy, way, travels_as, q_positions, block_mask,
               kinds, shares_prefixes, least_saved_tokens, fixed_split_tokens, limits] = options;
  PlanHashes hashes;  // of all but q_positions: with_batch adds these
  hashes.fields[kLimits] = hash_of(limits);
  if (scale) hashes.fields[kScale] = Hash().add(std::bit_cast<std::uint32_t>(*scale)).value();
  hashes.fields[kScatter] = static_cast<std::uint64_t>(scatter);
  hashes.fields[kStrategy] = static_cast<std::uint64_t>(strategy);
  hashes.fields[kWay] = way ? static_cast<std::uint64_t>(*way) : kWayKinds;
  hashes.fields[kTravelsAs] = static_cast<std::uint64_t>(travels_as);
  hashes.fields[kSharesPrefixes] = static_cast<std::uint64_t>(shares_prefixes);
  if (least_saved_tokens) hashes.fields[kLeastSaved] = Hash().add(*least_saved_tokens).value();
  hashes.fields[kFixedSplit] = static_cast<std::uint64_t>(fixed_split_tokens);
  hashes.fields[kMaskMod] = hash_of(mask.graph(), contents);
  hashes.fields[kScoreMod] = hash_of(score.graph(), contents);
  for (const LayerKind& kind : kinds) fold_in(kind, hashes, contents);
  hashes.fields[kBlockMask] = hash_of(block_mask, contents);
  return hashes;
}

PlanHashes with_batch(PlanHashes hashes, std::span<const BatchEntry> batch,
                      std::span<const std::int64_t> q_positions, std::uint64_t digest) {
  hashes.fields[kBatch] = hash_of(batch);
  hashes.fields[kPositions] = Hash().add_all(q_positions).value();
  hashes.fields[kOperations] = digest;
  return hashes;
}

void PlanHistory::compare(Communicator& world, const PlanHashes& next,
                          const std::function<void()>& check_replicas) const {
  if ((plans_ + 1) % kInterval != 0 || world.size() == 1) return;
  const std::vector<PlanHashes> all =
      all_gather_value(world, folded(folded_, next), "compare the ranks' plans");
  for (std::size_t i = 0; i < kFields.size(); ++i) {
    for (std::size_t rank = 1; rank < all.size(); ++rank) {
      if (all[rank].fields[i] == all[0].fields[i]) continue;
      if (i == kOperations) check_replicas();
      throw DigestMismatch(fmt::format(
          "plan: {} of rank {} is another than that of rank 0, in plan {} of the cache{}",
          kFields[i].name, rank, plans_, kInterval == 1 ? "" : " or since the last comparison"));
    }
  }
}

void PlanHistory::add(const PlanHashes& next) {
  folded_ = folded(folded_, next);
  ++plans_;
}

PlanDigest PlanHistory::digest() const {
  PlanDigest digest;
  for (std::size_t i = 0; i < kFields.size(); ++i) digest.add(kFields[i].group, folded_.fields[i]);
  return digest;
}

}  // namespace kvmesh
