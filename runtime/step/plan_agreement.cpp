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
  kFixedSplit,
  kMaskMod,
  kScoreMod,
  kBlockMask
};
constexpr std::array<Field, 13> kFields{{{"the allocator", PlanGroup::kLengths},
                                         {"the batch", PlanGroup::kLengths},
                                         {"q_positions", PlanGroup::kLengths},
                                         {"the limits", PlanGroup::kLengths},
                                         {"scale", PlanGroup::kScale},
                                         {"scatter", PlanGroup::kStrategy},
                                         {"strategy", PlanGroup::kStrategy},
                                         {"way", PlanGroup::kStrategy},
                                         {"travels_as", PlanGroup::kStrategy},
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

std::uint64_t hash_of(const std::optional<StepLimits>& limits) {
  if (!limits) return 0;
  return Hash().add(limits->sequences).add(limits->query_tokens).add(limits->pages).value();
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

}  // namespace

PlanHashes hashes_of(const PlanOptions& options, Contents contents) {
  PlanHashes hashes;
  hashes.fields[kLimits] = hash_of(options.limits);
  if (options.scale) {
    hashes.fields[kScale] = Hash().add(std::bit_cast<std::uint32_t>(*options.scale)).value();
  }
  hashes.fields[kScatter] = static_cast<std::uint64_t>(options.scatter);
  hashes.fields[kStrategy] = static_cast<std::uint64_t>(options.strategy);
  hashes.fields[kWay] = options.way ? static_cast<std::uint64_t>(*options.way) : kWayKinds;
  hashes.fields[kTravelsAs] = static_cast<std::uint64_t>(options.travels_as);
  hashes.fields[kFixedSplit] = static_cast<std::uint64_t>(options.fixed_split_tokens);
  hashes.fields[kMaskMod] = hash_of(options.mask.graph(), contents);
  hashes.fields[kScoreMod] = hash_of(options.score.graph(), contents);
  for (const LayerKind& kind : options.kinds) {
    const auto fold = [&](std::size_t field, std::uint64_t hash) {
      hashes.fields[field] =
          Hash().add(hashes.fields[field]).add_all(kind.layers).add(hash).value();
    };
    fold(kMaskMod, hash_of(kind.mask.graph(), contents));
    if (!kind.score.is_identity()) fold(kScoreMod, hash_of(kind.score.graph(), contents));
    if (kind.scale) fold(kScale, std::bit_cast<std::uint32_t>(*kind.scale));
  }
  hashes.fields[kBlockMask] = hash_of(options.block_mask, contents);
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
