#include "kernels/cpu/plan/work_blocks.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>
#include <span>

#include "kernels/cpu/plan/banded_pages.hpp"
#include "kernels/cpu/plan/classify.hpp"
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
  std::int64_t queries = 0;
  for (const AttendSequence& sequence : batch.sequences) queries += sequence.queries;
  positions.resize(static_cast<std::size_t>(queries));
  std::ranges::transform(batch.q_positions, positions.begin(),
                         [](std::int64_t position) { return static_cast<std::int32_t>(position); });
  if (!batch.q_positions.empty()) return;
  auto at = positions.begin();
  for (const AttendSequence& sequence : batch.sequences) {
    const auto end = at + sequence.queries;
    std::iota(at, end, static_cast<std::int32_t>(sequence.kv_len - sequence.queries));
    at = end;
  }
}

/// Empties the lists and keeps their memory.
void clear(WorkBlocks& work) {
  work.blocks.clear();
  work.ranges.clear();
  work.head_classes.clear();
  work.tasks = work.merges = 0;
  work.shared.clear();
  work.workspace_rows = work.most_queries = 0;
  work.tiles = {};
}

class WorkMaker {
 public:
  WorkMaker(const AttentionShape& shape, const AttendSteps& batch, const AttentionOptions& options,
            WorkBlocks& work, const std::optional<MaskBand>& band)
      : shape_(shape),
        batch_(batch),
        options_(options),
        group_(shape.q_heads / shape.kv_heads),
        block_tokens_(std::max(1, kRowsPerBlock / group_)),
        page_size_(shape.page_size),
        per_split_(std::max(1, kKeysPerSplit / shape.page_size)),
        mask_(options.mask.graph()),
        per_head_(options.block_mask ? options.block_mask->heads() > 1
                                     : mask_.depends_on(kDependsHead)),
        band_(batch.q_positions.empty() ? band : std::nullopt),
        work_(work) {
    clear(work_);
    set_positions(batch, work_.positions);
    work_.group = group_;
    work_.visits_per_split = static_cast<int>(per_split_.divisor);
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
    for (const SharedBlock& block : work_.shared.blocks) add_shared_block(block);
    add_tasks(0);
  }

  void add_shared_block(const SharedBlock& shared) {
    WorkBlock& block = begin_block(shared.sequence, 0, shape_.kv_heads);
    block.q_begin = shared.token_begin;
    block.q_end = shared.token_end;
    block.is_shared = true;
    add_pages(block, sequence_of(block).pages.first(static_cast<std::size_t>(shared.pages)), false);
    end_visits(block);
    count(block);
  }

  // Returns the end of the work block that starts at query `q` of a sequence. A block does not
  // cross a q block of an explicit block mask.
  std::int64_t block_end(std::int64_t q, std::int64_t q_len) const {
    std::int64_t end = q + block_tokens_;
    if (options_.block_mask) {
      const std::int64_t q_block = options_.block_mask->q_block();
      end = std::min(end, (q / q_block + 1) * q_block);
    }
    return std::min(end, q_len);
  }

  // Adds the queries [q_begin, q_end): a block for all kv heads, or one for each if they see
  // different pages.
  void add_blocks(std::int32_t sequence, std::int64_t q_begin, std::int64_t q_end) {
    const int kv_heads = per_head_ ? 1 : shape_.kv_heads;
    const SharedPart part = work_.shared.part(static_cast<std::size_t>(sequence));
    for (int head = 0; head < shape_.kv_heads; head += kv_heads) {
      WorkBlock& block = begin_block(sequence, head, kv_heads);
      block.q_begin = q_begin;
      block.q_end = q_end;
      block.shared_block = part.block;
      block.shared_row = part.token * group_;
      if (options_.block_mask && shares_q_block(block)) {
        take_visits(*(&block - shape_.kv_heads / kv_heads), block);
      } else {
        add_visits(block);
        end_visits(block);
      }
      count(block);
    }
  }

  // Blocks are changed in place: a copy would read wider than the last write, and wait for it.
  WorkBlock& begin_block(std::int32_t sequence, std::int32_t kv_head, std::int32_t kv_heads) {
    static constexpr WorkBlock kNew;  // copied from memory, as GCC would clear one byte by byte
    work_.blocks.push_back(kNew);
    WorkBlock& block = work_.blocks.back();
    block.sequence = sequence;
    block.kv_head = kv_head;
    block.kv_heads = kv_heads;
    block.visit_begin = visits_;
    block.range_begin = static_cast<std::int32_t>(work_.ranges.size());
    block.counts_sinks = sequence_of(block).counts_sinks;
    return block;
  }
  void end_visits(WorkBlock& block) const {
    block.visit_end = visits_;
    block.range_end = static_cast<std::int32_t>(work_.ranges.size());
  }
  void count(const WorkBlock& block) {
    work_.most_queries = std::max(work_.most_queries, block.q_end - block.q_begin);
    const TileCounts tiles = tiles_of(block);
    work_.tiles +=
        {.visited = tiles.visited * block.kv_heads, .masked = tiles.masked * block.kv_heads};
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
    const BandedPages seen = pages_in_band(*band_, queries, pages, page_size_, sequence.kv_len);
    const auto add = [&](std::size_t from, std::size_t to, bool masked) {
      if (from < to) add_pages(block, pages.subspan(from, to - from), masked);
    };
    add(seen.begin, seen.full, true);
    add(seen.full, seen.after, false);
    add(seen.after, seen.end, true);
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
      work_.ranges.emplace_back() = {
          .first_visit = visits_, .pages = pages.data(), .count = count, .masked = masked};
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
    if (exact) return classify_tile(mask_, evaluator(), block.sequence, head, queries, kv);
    const auto [low, high] = std::ranges::minmax(queries);
    return classify_by_interval(mask_, block.sequence, head, {low, high + 1}, kv);
  }

  // Made when a page's class is first evaluated: it takes as long as the plan of some sequences.
  ModEvaluator& evaluator() {
    if (!evaluator_) evaluator_.emplace(mask_);
    return *evaluator_;
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
    const std::span blocks = std::span(work_.blocks).subspan(first_block);
    std::int64_t of_heads = 0;
    for (const WorkBlock& block : blocks) of_heads += block.kv_heads;
    for (WorkBlock& block : blocks) {
      const std::int64_t visits = block.visit_end - block.visit_begin;
      if (of_heads < kEnoughBlocks && visits > work_.visits_per_split) {
        block.splits = per_split_.quotient(static_cast<int>(visits) - 1) + 1;
      }
      const std::int64_t tasks = std::int64_t{block.kv_heads} * block.splits;
      block.first_task = work_.tasks;
      block.first_merge = work_.merges;
      work_.tasks += tasks;
      if (!block.is_merged()) continue;
      block.workspace_row = work_.workspace_rows;
      work_.workspace_rows += tasks * (block.q_end - block.q_begin) * group_;
      if (!block.is_shared) work_.merges += block.kv_heads;
    }
  }

  const AttentionShape& shape_;
  const AttendSteps& batch_;
  const AttentionOptions& options_;
  const int group_;
  const int block_tokens_;
  const Divisor page_size_;
  const Divisor per_split_;  // visits
  const ModGraph& mask_;
  std::optional<ModEvaluator> evaluator_;
  const bool per_head_;
  const std::optional<MaskBand> band_;
  WorkBlocks& work_;
  std::int64_t first_query_ = 0;  // first query of the current sequence
  std::int64_t visits_ = 0;
};

}  // namespace

SharedPrefixRules shared_prefix_rules(const AttentionShape& shape) {
  return {.page_size = shape.page_size,
          .most_queries = std::max(1, kRowsPerBlock / (shape.q_heads / shape.kv_heads)),
          .least_saved_tokens = kLeastSavedTokens};
}

void plan_work_blocks(const AttentionShape& shape, const AttendSteps& batch,
                      const AttentionOptions& options, WorkBlocks& work,
                      const std::optional<MaskBand>& band) {
  WorkMaker(shape, batch, options, work, band).make();
}

}  // namespace kvmesh
