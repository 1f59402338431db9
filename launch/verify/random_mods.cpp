#include "launch/verify/random_mods.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace kvmesh::verify {
namespace {

Buffer<std::int32_t> random_documents(Random& random, std::int64_t length) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(std::max<std::int64_t>(1, length)));
  std::int32_t id = 0;
  for (std::int32_t& at : ids) at = id += random.one_in(9);
  return Buffer<std::int32_t>(ids);
}

}  // namespace

NamedMask random_mask(Random& random, int q_heads, std::int64_t length) {
  const auto n = static_cast<std::int32_t>(random.integer(1, std::max<std::int64_t>(1, length)));
  switch (random.integer(0, 8)) {
    case 0:
      return {"no mask", mods::no_mask()};
    case 1:
      return {fmt::format("sliding_window({})", n), mods::sliding_window(n)};
    case 2:
      return {fmt::format("prefix_lm({})", n), mods::prefix_lm(n)};
    case 3:
      return {"causal within documents",
              mods::causal() && mods::documents(random_documents(random, length))};
    case 4:  // each head sees other keys
      return {"every (h % 3 + 1)th key",
              MaskMod([](auto, auto h, auto, auto kv) { return kv % (h % 3 + 1) == 0; })};
    case 5:  // so does each row of the batch
      return {
          "causal, keys of the batch row's parity",
          mods::causal() && MaskMod([](auto b, auto, auto, auto kv) { return (kv + b) % 2 == 0; })};
    case 6:  // whole rows without a key
      return {
          "every second query and head sees nothing",
          mods::causal() && MaskMod([](auto, auto h, auto q, auto) { return (q + h) % 2 == 0; })};
    case 7: {
      Buffer<std::int32_t> windows(std::vector<std::int32_t>(static_cast<std::size_t>(q_heads)));
      for (int h = 0; h < q_heads; ++h) {
        windows.set(h, static_cast<std::int32_t>(random.integer(0, length)));
      }
      return {"causal with a window for each head",
              mods::causal() && MaskMod([windows](auto, auto h, auto q, auto kv) {
                return q - kv < windows[h];
              })};
    }
    default:
      return {"causal", mods::causal()};
  }
}

NamedScore random_score(Random& random, int q_heads) {
  switch (random.integer(0, 6)) {
    case 0:
      return {"alibi", mods::alibi(q_heads)};
    case 1:
      return {"soft_cap(2)", mods::soft_cap(2.0f)};
    case 2: {
      constexpr std::int32_t kDistance = 6;
      const Buffer<float> table(random.reals(q_heads * (2 * kDistance + 1)), 2 * kDistance + 1);
      return {"relative_bias", mods::relative_bias(table, kDistance)};
    }
    case 3:  // h % 8 bounds the factor: a score's rounding grows as the score does
      return {"head and batch row", ScoreMod([](auto score, auto b, auto h, auto q, auto kv) {
                return score * (1.0f + 0.125f * to_float(h % 8)) +
                       0.25f * to_float((q + kv + b) % 5);
              })};
    case 4:
      return {"alibi, then soft_cap(5)", mods::compose(mods::alibi(q_heads), mods::soft_cap(5.0f))};
    default:
      return {"no score mod", ScoreMod()};
  }
}

CheckedBlockMask created_block_mask(const MaskMod& mask, const BlockMaskShape& shape) {
  return {BlockMask::create(mask, shape), mask};
}

CheckedBlockMask listed_block_mask(Random& random, const MaskMod& mask,
                                   const BlockMaskShape& shape) {
  enum : std::int32_t { kEmpty, kPartial, kFull };
  std::vector<BlockRow> rows;
  std::vector<std::int32_t> classes;
  for (std::int64_t r = 0; r < shape.batch * shape.heads * shape.q_blocks(); ++r) {
    BlockRow& row = rows.emplace_back();
    for (std::int32_t block = 0; block < shape.kv_blocks(); ++block) {
      classes.push_back(static_cast<std::int32_t>(random.integer(kEmpty, kFull)));
      if (classes.back() == kPartial) row.partial.push_back(block);
      if (classes.back() == kFull) row.full.push_back(block);
    }
  }
  const Buffer<std::int32_t> start(shape.q_start);
  const Buffer<std::int32_t> table(classes);
  const auto heads = static_cast<std::int32_t>(shape.heads);
  const auto q_blocks = static_cast<std::int32_t>(shape.q_blocks());
  const auto kv_blocks = static_cast<std::int32_t>(shape.kv_blocks());
  const std::int32_t q_block = shape.q_block, kv_block = shape.kv_block;
  const MaskMod visible([=](auto b, auto h, auto q, auto kv) {
    const auto row = (b * heads + h % heads) * q_blocks + (q - start[b]) / q_block;
    const auto block_class = table[row * kv_blocks + kv / kv_block];
    return block_class == std::int32_t{kFull} ||
           (block_class == std::int32_t{kPartial} && mask(b, h, q, kv));
  });
  return {BlockMask::from_lists(shape, rows, mask), visible};
}

}  // namespace kvmesh::verify
