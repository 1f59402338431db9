#include "kernels/attend_work.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <span>

#include "kernels/banded_pages.hpp"
#include "kernels/cpu/classify.hpp"
#include "kernels/mods/interval.hpp"

namespace kvmesh {
namespace {

// Query rows of one task. Enough that a tile of keys is used often while it is in the first-level
// cache (64 keys x 128 x 2 bytes = 16 KB); few enough that queries, scores and outputs stay in the
// second (64 rows x (128 + 64 + 128) x 4 bytes = 80 KB).
constexpr int kRowsPerBlock = 64;
// Keys of one split. One long sequence makes enough tasks for all cores (32768 keys and 8 heads:
// 256), and merging costs one row for each 1024 keys read.
constexpr int kKeysPerSplit = 1024;
// A sequence with this many work blocks fills the cores without being split by keys.
constexpr std::int64_t kEnoughBlocks = 64;
// Query rows of a task that reads a shared prefix: each page is read once for this many. Their
// queries, scores and outputs stay in a second-level cache of 1 MB (128 rows x (128 + 64 + 128) x 4
// bytes = 160 KB).
constexpr int kSharedRows = 128;
// A sequence's rows of the prefix are written and merged once more, which costs about the same as
// 16 keys.
constexpr std::int64_t kLeastSavedTokens = 128;
void set_positions(const AttendSteps& batch, std::vector<std::int32_t>& positions) {
  positions.clear();
  for (const AttendSequence& sequence : batch.sequences) {
    const std::int64_t first = sequence.kv_len - sequence.queries;
    for (std::int64_t i = 0; i < sequence.queries; ++i) {
      const std::int64_t position =
          batch.q_positions.empty() ? first + i : batch.q_positions[positions.size()];
      positions.push_back(static_cast<std::int32_t>(position));
    }
  }
}

/// Empties the lists and keeps their memory.
void clear(AttendWork& work) {
  work.blocks.clear();
  work.ranges.clear();
  work.head_classes.clear();
  work.tasks.clear();
  work.merges.clear();
  work.shared.clear();
  work.workspace_rows = 0;
  work.tiles = {};
}

class WorkMaker {
 public:
  WorkMaker(const AttentionShape& shape, const AttendSteps& batch, const AttentionOptions& options,
            AttendWork& work, const std::optional<MaskBand>& band)
      : shape_(shape),
        batch_(batch),
        options_(options),
        group_(shape.q_heads / shape.kv_heads),
        mask_(options.mask.graph()),
        evaluator_(mask_),
        per_head_(options.block_mask ? options.block_mask->heads() > 1
                                     : mask_.depends_on(kDependsHead)),
        band_(batch.q_positions.empty() ? band : std::nullopt),
        work_(work) {
    clear(work_);
    set_positions(batch, work_.positions);
    work_.visits_per_split = std::max(1, kKeysPerSplit / shape.page_size);
  }

  void make() {
    share_prefixes();
    for (std::size_t s = 0; s < batch_.sequences.size(); ++s) {
      const std::size_t first_block = work_.blocks.size();
      const std::int64_t queries = batch_.sequences[s].queries;
      for (std::int64_t q = 0; q < queries;) {
        const std::int64_t next = block_end(q, queries);
        add_blocks(static_cast<std::int32_t>(s), first_query_ + q, first_query_ + next);
        q = next;
      }
      add_tasks(first_block);
      first_query_ += queries;
    }
  }

 private:
  void share_prefixes() {
    if (options_.block_mask) return;
    const int most_tokens = std::max(1, kSharedRows / group_);
    work_.shared.set(batch_, mask_, most_tokens);
    for (const SharedBlock& block : work_.shared.blocks) add_shared_blocks(block);
    add_tasks(0);
  }

  // A work block for each kv head.
  void add_shared_blocks(const SharedBlock& shared) {
    WorkBlock block{.sequence = shared.sequence,
                    .q_begin = shared.token_begin,
                    .q_end = shared.token_end,
                    .visit_begin = visits_,
                    .range_begin = static_cast<std::int32_t>(work_.ranges.size()),
                    .is_shared = true};
    add_pages(block, sequence_of(block).pages.first(static_cast<std::size_t>(shared.pages)), false);
    block.visit_end = visits_;
    block.range_end = static_cast<std::int32_t>(work_.ranges.size());
    for (block.kv_head = 0; block.kv_head < shape_.kv_heads; ++block.kv_head) {
      work_.tiles += tiles_of(block);
      work_.blocks.push_back(block);
    }
  }

  // Returns the end of the work block that starts at query `q` of a sequence. A block does not
  // cross a q block of an explicit block mask.
  std::int64_t block_end(std::int64_t q, std::int64_t q_len) const {
    std::int64_t end = q + std::max(1, kRowsPerBlock / group_);
    if (options_.block_mask) {
      const std::int64_t q_block = options_.block_mask->q_block();
      end = std::min(end, (q / q_block + 1) * q_block);
    }
    return std::min(end, q_len);
  }

  // Adds a block of queries [q_begin, q_end) for each kv head. Heads that see the same pages share
  // one list of visits.
  void add_blocks(std::int32_t sequence, std::int64_t q_begin, std::int64_t q_end) {
    WorkBlock block{.sequence = sequence, .q_begin = q_begin, .q_end = q_end};
    block.counts_sinks = batch_.sequences[static_cast<std::size_t>(sequence)].counts_sinks;
    const SharedPart part = work_.shared.part(static_cast<std::size_t>(sequence));
    block.shared_row = part.token * group_;
    TileCounts tiles;  // of heads that share their visits: counted once
    for (int head = 0; head < shape_.kv_heads; ++head) {
      block.kv_head = head;
      if (part.block >= 0) block.shared_block = part.block * shape_.kv_heads + head;
      if (options_.block_mask && shares_q_block(block)) {
        take_visits(work_.blocks[work_.blocks.size() - static_cast<std::size_t>(shape_.kv_heads)],
                    block);
        tiles = tiles_of(block);
      } else if (head == 0 || per_head_) {
        block.visit_begin = visits_;
        block.range_begin = static_cast<std::int32_t>(work_.ranges.size());
        add_visits(block);
        block.visit_end = visits_;
        block.range_end = static_cast<std::int32_t>(work_.ranges.size());
        tiles = tiles_of(block);
      }
      work_.tiles += tiles;
      work_.blocks.push_back(block);
    }
  }

  // True if the block's q block in an explicit block mask is also that of the queries before it.
  bool shares_q_block(const WorkBlock& block) const {
    return (block.q_begin - first_query_) % options_.block_mask->q_block() != 0;
  }

  static void take_visits(const WorkBlock& from, WorkBlock& to) {
    to.visit_begin = from.visit_begin;
    to.visit_end = from.visit_end;
    to.range_begin = from.range_begin;
    to.range_end = from.range_end;
  }

  void add_visits(const WorkBlock& block) {
    if (options_.block_mask) return add_listed_visits(block);
    const auto shared = work_.shared.part(static_cast<std::size_t>(block.sequence)).pages;
    const AttendSequence& sequence = sequence_of(block);
    const auto pages = sequence.pages.subspan(static_cast<std::size_t>(shared));
    if (!band_) return add_range(block, pages);
    const auto position = [&](std::int64_t q) {
      return work_.positions[static_cast<std::size_t>(q)];
    };
    const PositionRange queries{position(block.q_begin), position(block.q_end - 1) + 1};
    for (const BandedPages& part :
         pages_in_band(*band_, queries, pages, shape_.page_size, sequence.kv_len)) {
      if (!part.pages.empty()) add_pages(block, part.pages, part.partial);
    }
  }

  const AttendSequence& sequence_of(const WorkBlock& block) const {
    return batch_.sequences[static_cast<std::size_t>(block.sequence)];
  }

  // Classifies the pages as one range of keys if that decides the class (as for most of a causal
  // sequence), else by halves: O(log pages) for a mask with one border.
  void add_range(const WorkBlock& block, std::span<const LocalPage> pages) {
    if (pages.empty()) return;
    const bool one_page = pages.size() == 1;
    const std::optional<TileClass> group_class =
        class_of_group(block, keys_of(block, pages), one_page);
    if (!one_page && (!group_class || *group_class == TileClass::kPartial)) {
      add_range(block, pages.first(pages.size() / 2));
      add_range(block, pages.subspan(pages.size() / 2));
    } else if (*group_class != TileClass::kEmpty) {
      add_pages(block, pages, *group_class == TileClass::kPartial);
    }
  }

  // Lengthens the block's last range if the pages follow it and are visited in the same way.
  void add_pages(const WorkBlock& block, std::span<const LocalPage> pages, bool masked) {
    const auto count = static_cast<std::int32_t>(pages.size());
    const bool is_first = std::ssize(work_.ranges) == block.range_begin;
    PageRange* last = is_first ? nullptr : &work_.ranges.back();
    if (last && last->masked == masked && last->head_classes < 0 &&
        last->pages + last->count == pages.data()) {
      last->count += count;
    } else {
      work_.ranges.push_back(
          {.first_visit = visits_, .pages = pages.data(), .count = count, .masked = masked});
    }
    visits_ += count;
  }

  // Positions from the first page to the last, including those of other ranks' pages between them:
  // a class that holds for all of them also holds for this rank's.
  PositionRange keys_of(const WorkBlock& block, std::span<const LocalPage> pages) const {
    const std::int64_t first = pages.front().logical, last = pages.back().logical;
    const std::int64_t kv_len = sequence_of(block).kv_len;
    return {static_cast<std::int32_t>(first * shape_.page_size),
            static_cast<std::int32_t>(std::min(kv_len, (last + 1) * shape_.page_size))};
  }

  // Returns the class that all heads of the group share, kPartial if they differ, or nothing if it
  // is unknown. An `exact` class is never unknown.
  std::optional<TileClass> class_of_group(const WorkBlock& block, PositionRange kv, bool exact) {
    std::optional<TileClass> shared;
    for (int g = 0; g < (per_head_ ? group_ : 1); ++g) {
      const std::int32_t head = options_.first_head + block.kv_head * group_ + g;
      const std::optional<TileClass> head_class = class_of_head(block, head, kv, exact);
      if (!head_class) return std::nullopt;
      if (shared && *shared != *head_class) return TileClass::kPartial;
      shared = head_class;
    }
    return shared;
  }

  std::optional<TileClass> class_of_head(const WorkBlock& block, std::int32_t head,
                                         PositionRange kv, bool exact) {
    const std::span queries(work_.positions.data() + block.q_begin,
                            static_cast<std::size_t>(block.q_end - block.q_begin));
    if (exact) return classify_tile(mask_, evaluator_, block.sequence, head, queries, kv);
    const auto [low, high] = std::ranges::minmax(queries);
    return classify_by_interval(mask_, block.sequence, head, {low, high + 1}, kv);
  }

  // Adds the pages that an explicit block mask lists for any head of the group.
  void add_listed_visits(const WorkBlock& block) {
    const LocalBlockMask& mask = *options_.block_mask;
    const std::int64_t q_block = (block.q_begin - first_query_) / mask.q_block();
    std::vector<std::span<const LocalBlock>> rows;
    for (int g = 0; g < (per_head_ ? group_ : 1); ++g) {
      rows.push_back(
          mask.row(block.sequence, options_.first_head + block.kv_head * group_ + g, q_block));
    }
    std::vector<TileClass> classes(rows.size());
    std::span<const LocalPage> pages = sequence_of(block).pages;
    for (std::int32_t logical = first_of(rows); logical < kNoPage; logical = first_of(rows)) {
      for (std::size_t g = 0; g < rows.size(); ++g) classes[g] = take(rows[g], logical);
      pages = std::ranges::subrange(
          std::ranges::lower_bound(pages, logical, {}, &LocalPage::logical), pages.end());
      if (pages.empty()) return;
      if (pages.front().logical == logical) add_listed_visit(block, pages.front(), classes);
    }
  }

  static constexpr std::int32_t kNoPage = std::numeric_limits<std::int32_t>::max();

  // Returns the first page in any of the lists.
  static std::int32_t first_of(const std::vector<std::span<const LocalBlock>>& rows) {
    std::int32_t first = kNoPage;
    for (const std::span<const LocalBlock>& row : rows) {
      if (!row.empty()) first = std::min(first, row.front().logical);
    }
    return first;
  }

  // Removes a page from the front of a list and returns its class; kEmpty if the list does not
  // begin with it.
  static TileClass take(std::span<const LocalBlock>& row, std::int32_t logical) {
    if (row.empty() || row.front().logical != logical) return TileClass::kEmpty;
    const bool is_full = row.front().full;
    row = row.subspan(1);
    return is_full ? TileClass::kFull : TileClass::kPartial;
  }

  void add_listed_visit(const WorkBlock& block, const LocalPage& page,
                        const std::vector<TileClass>& classes) {
    if (std::ranges::count(classes, classes[0]) == std::ssize(classes)) {
      if (classes[0] == TileClass::kEmpty) return;
      return add_pages(block, {&page, 1}, classes[0] == TileClass::kPartial);
    }
    work_.ranges.push_back({.first_visit = visits_++,
                            .pages = &page,
                            .count = 1,
                            .masked = true,
                            .head_classes = static_cast<std::int32_t>(work_.head_classes.size())});
    work_.head_classes.insert(work_.head_classes.end(), classes.begin(), classes.end());
  }

  TileCounts tiles_of(const WorkBlock& block) const {
    TileCounts tiles{.visited = block.visit_end - block.visit_begin};
    for (std::int32_t i = block.range_begin; i < block.range_end; ++i) {
      const PageRange& range = work_.ranges[static_cast<std::size_t>(i)];
      tiles.masked += range.masked ? range.count : 0;
    }
    return tiles;
  }

  // Splits the sequence's blocks by keys if there are few of them. The rule depends on the batch
  // alone, so the result does not depend on the number of threads.
  void add_tasks(std::size_t first_block) {
    const auto blocks = static_cast<std::int64_t>(work_.blocks.size() - first_block);
    for (std::size_t b = first_block; b < work_.blocks.size(); ++b) {
      WorkBlock& block = work_.blocks[b];
      const std::int64_t visits = block.visit_end - block.visit_begin;
      if (blocks < kEnoughBlocks && visits > work_.visits_per_split) {
        block.splits = static_cast<std::int32_t>((visits + work_.visits_per_split - 1) /
                                                 work_.visits_per_split);
      }
      if (block.is_merged()) {
        block.workspace_row = work_.workspace_rows;
        work_.workspace_rows += block.splits * (block.q_end - block.q_begin) * group_;
        if (!block.is_shared) work_.merges.push_back(static_cast<std::int32_t>(b));
      }
      for (std::int32_t split = 0; split < block.splits; ++split) {
        work_.tasks.push_back({static_cast<std::int32_t>(b), split});
      }
    }
  }

  const AttentionShape& shape_;
  const AttendSteps& batch_;
  const AttentionOptions& options_;
  const int group_;
  const ModGraph& mask_;
  ModEvaluator evaluator_;
  const bool per_head_;
  const std::optional<MaskBand> band_;
  AttendWork& work_;
  std::int64_t first_query_ = 0;  // first query of the current sequence
  std::int64_t visits_ = 0;
};

template <class T>
std::int64_t bytes_of(const std::vector<T>& list) {
  return static_cast<std::int64_t>(list.capacity() * sizeof(T));
}

}  // namespace

SharedPrefixRules shared_prefix_rules(const AttentionShape& shape) {
  return {.page_size = shape.page_size,
          .most_queries = std::max(1, kRowsPerBlock / (shape.q_heads / shape.kv_heads)),
          .least_saved_tokens = kLeastSavedTokens};
}

void plan_attend_work(const AttentionShape& shape, const AttendSteps& batch,
                      const AttentionOptions& options, AttendWork& work,
                      const std::optional<MaskBand>& band) {
  WorkMaker(shape, batch, options, work, band).make();
}

std::int64_t AttendWork::size_bytes() const {
  return bytes_of(blocks) + bytes_of(ranges) + bytes_of(head_classes) + bytes_of(tasks) +
         bytes_of(merges) + bytes_of(shared.tokens) + bytes_of(positions) + bytes_of(pages);
}

}  // namespace kvmesh
