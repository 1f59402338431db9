#include "kernels/attend_work.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <span>

#include "core/check.hpp"
#include "kernels/cpu/classify.hpp"
#include "kernels/mods/interval.hpp"

namespace kvmesh {
namespace {

// Query rows of one task: enough that a tile of keys is used often while in the first-level cache
// (64 keys x 128 x 2 bytes = 16 KB), few enough that scores and outputs stay there too (32 rows x
// (64 + 128) x 4 bytes = 24 KB).
constexpr int kRowsPerBlock = 32;
// Keys of one split. One long sequence makes enough tasks for all cores (32768 keys and 8 heads:
// 256), and merging costs one row for each 1024 keys read.
constexpr int kKeysPerSplit = 1024;
// A sequence with this many work blocks fills the cores without being split by keys.
constexpr std::int64_t kEnoughBlocks = 64;
// Positions are int32, and so is the end of a range of them.
constexpr std::int64_t kMaxPosition = std::numeric_limits<std::int32_t>::max();

void check_indptr(const char* what, const std::vector<std::int64_t>& indptr, std::size_t batch,
                  std::int64_t last) {
  require(indptr.size() == batch + 1 && indptr.front() == 0 && indptr.back() == last &&
              std::is_sorted(indptr.begin(), indptr.end()),
          "attention: {} must rise from 0 to {} in {} steps", what, last, batch);
}

void check_pages(const AttentionShape& shape, const AttentionBatch& batch, std::size_t s) {
  const std::int64_t kv_len = batch.kv_lens[s];
  require(kv_len >= 0 && kv_len <= kMaxPosition,
          "attention: sequence {} has length {}, which is not in [0, 2^31)", s, kv_len);
  for (std::int64_t i = batch.page_indptr[s]; i < batch.page_indptr[s + 1]; ++i) {
    const LocalPage& page = batch.pages[static_cast<std::size_t>(i)];
    const bool rising = i == batch.page_indptr[s] ||
                        batch.pages[static_cast<std::size_t>(i - 1)].logical < page.logical;
    require(page.page >= 0 && page.logical >= 0 && rising,
            "attention: the pages of sequence {} must be valid and in rising logical order", s);
    require(page.logical < kMostPages, "attention: sequence {} has logical page {} of at most {}",
            s, page.logical, kMostPages);
    require(static_cast<std::int64_t>(page.logical) * shape.page_size < kv_len,
            "attention: logical page {} of sequence {} lies past its length {}", page.logical, s,
            kv_len);
  }
}

std::vector<std::int32_t> positions_of(const AttentionBatch& batch) {
  std::vector<std::int32_t> positions;
  positions.reserve(static_cast<std::size_t>(batch.q_indptr.back()));
  for (std::size_t s = 0; s < batch.kv_lens.size(); ++s) {
    const std::int64_t first = batch.kv_lens[s] - batch.q_indptr[s + 1];
    for (std::int64_t t = batch.q_indptr[s]; t < batch.q_indptr[s + 1]; ++t) {
      const std::int64_t position =
          batch.q_positions.empty() ? first + t : batch.q_positions[static_cast<std::size_t>(t)];
      positions.push_back(static_cast<std::int32_t>(position));
    }
  }
  return positions;
}

class WorkMaker {
 public:
  WorkMaker(const AttentionShape& shape, const AttentionBatch& batch,
            const AttentionOptions& options)
      : shape_(shape),
        batch_(batch),
        options_(options),
        group_(shape.q_heads / shape.kv_heads),
        mask_(options.mask.graph()),
        evaluator_(mask_),
        per_head_(options.block_mask ? options.block_mask->heads() > 1
                                     : mask_.depends_on(kDependsHead)) {
    work_.positions = positions_of(batch);
    work_.visits_per_split = std::max(1, kKeysPerSplit / shape.page_size);
  }

  AttendWork make() {
    for (std::size_t s = 0; s < batch_.kv_lens.size(); ++s) {
      const std::size_t first_block = work_.blocks.size();
      const std::int64_t q_begin = batch_.q_indptr[s], q_end = batch_.q_indptr[s + 1];
      for (std::int64_t q = q_begin; q < q_end;) {
        const std::int64_t next = block_end(q - q_begin, q_end - q_begin) + q_begin;
        add_blocks(static_cast<std::int32_t>(s), q, next);
        q = next;
      }
      add_tasks(first_block);
    }
    return std::move(work_);
  }

 private:
  // Where the work block that starts at query `q` of a sequence ends: it never crosses a q block of
  // an explicit block mask.
  std::int64_t block_end(std::int64_t q, std::int64_t q_len) const {
    std::int64_t end = q + std::max(1, kRowsPerBlock / group_);
    if (options_.block_mask) {
      const std::int64_t q_block = options_.block_mask->q_block();
      end = std::min(end, (q / q_block + 1) * q_block);
    }
    return std::min(end, q_len);
  }

  // The blocks of queries [q_begin, q_end), one for each kv head; heads that see the same pages
  // share one list of visits.
  void add_blocks(std::int32_t sequence, std::int64_t q_begin, std::int64_t q_end) {
    WorkBlock block{.sequence = sequence, .q_begin = q_begin, .q_end = q_end};
    for (int head = 0; head < shape_.kv_heads; ++head) {
      block.kv_head = head;
      if (head == 0 || per_head_) {
        block.visit_begin = static_cast<std::int64_t>(work_.visits.size());
        add_visits(block);
        block.visit_end = static_cast<std::int64_t>(work_.visits.size());
      }
      count_tiles(block);
      work_.blocks.push_back(block);
    }
  }

  void add_visits(const WorkBlock& block) {
    if (options_.block_mask) return add_listed_visits(block);
    const auto s = static_cast<std::size_t>(block.sequence);
    add_range(block, batch_.page_indptr[s], batch_.page_indptr[s + 1]);
  }

  // Classifies pages [begin, end) of the batch as one range of keys where that is decided at once
  // (most of a causal sequence is), else by halves: O(log pages) for a mask with one border.
  void add_range(const WorkBlock& block, std::int64_t begin, std::int64_t end) {
    if (begin == end) return;
    const bool one_page = end - begin == 1;
    const std::optional<TileClass> group_class =
        class_of_group(block, keys_of(block, begin, end), one_page);
    if (!one_page && (!group_class || *group_class == TileClass::kPartial)) {
      const std::int64_t middle = begin + (end - begin) / 2;
      add_range(block, begin, middle);
      add_range(block, middle, end);
    } else if (*group_class != TileClass::kEmpty) {
      for (std::int64_t i = begin; i < end; ++i) {
        const LocalPage& page = batch_.pages[static_cast<std::size_t>(i)];
        add_visit(page, *group_class == TileClass::kPartial);
      }
    }
  }

  void add_visit(const LocalPage& page, bool masked) {
    work_.visits.push_back({.page = page.page,
                            .logical = static_cast<std::uint32_t>(page.logical),
                            .masked = masked,
                            .mixed = 0});
  }

  // The positions from the first of pages [begin, end) to the last, the pages of other ranks
  // between them included: what holds for all of them holds for ours.
  PositionRange keys_of(const WorkBlock& block, std::int64_t begin, std::int64_t end) const {
    const std::int64_t first = batch_.pages[static_cast<std::size_t>(begin)].logical;
    const std::int64_t last = batch_.pages[static_cast<std::size_t>(end - 1)].logical;
    const std::int64_t kv_len = batch_.kv_lens[static_cast<std::size_t>(block.sequence)];
    return {static_cast<std::int32_t>(first * shape_.page_size),
            static_cast<std::int32_t>(std::min(kv_len, (last + 1) * shape_.page_size))};
  }

  // The class that all heads of the group share; kPartial where they differ; nothing if unknown,
  // which only an `exact` answer never is.
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

  // The pages that an explicit block mask lists for any head of the group.
  void add_listed_visits(const WorkBlock& block) {
    const LocalBlockMask& mask = *options_.block_mask;
    const auto s = static_cast<std::size_t>(block.sequence);
    const std::int64_t q_block = (block.q_begin - batch_.q_indptr[s]) / mask.q_block();
    std::vector<std::span<const LocalBlock>> rows;
    for (int g = 0; g < (per_head_ ? group_ : 1); ++g) {
      rows.push_back(
          mask.row(block.sequence, options_.first_head + block.kv_head * group_ + g, q_block));
    }
    std::vector<TileClass> classes(rows.size());
    for (std::int64_t i = batch_.page_indptr[s]; i < batch_.page_indptr[s + 1]; ++i) {
      const LocalPage& page = batch_.pages[static_cast<std::size_t>(i)];
      for (std::size_t g = 0; g < rows.size(); ++g) classes[g] = take(rows[g], page.logical);
      add_listed_visit(page, classes);
    }
  }

  // The class of a page in a row of lists, whose entries before it are dropped.
  static TileClass take(std::span<const LocalBlock>& row, std::int32_t logical) {
    while (!row.empty() && row.front().logical < logical) row = row.subspan(1);
    if (row.empty() || row.front().logical != logical) return TileClass::kEmpty;
    return row.front().full ? TileClass::kFull : TileClass::kPartial;
  }

  void add_listed_visit(const LocalPage& page, const std::vector<TileClass>& classes) {
    const bool same = std::ranges::count(classes, classes[0]) == std::ssize(classes);
    if (same && classes[0] == TileClass::kEmpty) return;
    add_visit(page, !same || classes[0] == TileClass::kPartial);
    if (same) return;
    work_.visits.back().mixed = 1;
    work_.head_classes.resize((work_.visits.size() - 1) * classes.size());
    work_.head_classes.insert(work_.head_classes.end(), classes.begin(), classes.end());
  }

  void count_tiles(const WorkBlock& block) {
    for (std::int64_t i = block.visit_begin; i < block.visit_end; ++i) {
      ++work_.tiles.visited;
      work_.tiles.masked += work_.visits[static_cast<std::size_t>(i)].masked;
    }
  }

  // Splits the sequence's blocks by keys if there are few of them. The rule looks at the batch
  // alone, so the result does not depend on the number of threads.
  void add_tasks(std::size_t first_block) {
    const auto blocks = static_cast<std::int64_t>(work_.blocks.size() - first_block);
    for (std::size_t b = first_block; b < work_.blocks.size(); ++b) {
      WorkBlock& block = work_.blocks[b];
      const std::int64_t visits = block.visit_end - block.visit_begin;
      if (blocks < kEnoughBlocks && visits > work_.visits_per_split) {
        block.splits = static_cast<std::int32_t>((visits + work_.visits_per_split - 1) /
                                                 work_.visits_per_split);
        block.workspace_row = work_.workspace_rows;
        work_.workspace_rows += block.splits * (block.q_end - block.q_begin) * group_;
        work_.merges.push_back(static_cast<std::int32_t>(b));
      }
      for (std::int32_t split = 0; split < block.splits; ++split) {
        work_.tasks.push_back({static_cast<std::int32_t>(b), split});
      }
    }
  }

  const AttentionShape& shape_;
  const AttentionBatch& batch_;
  const AttentionOptions& options_;
  const int group_;
  const ModGraph& mask_;
  ModEvaluator evaluator_;
  const bool per_head_;
  AttendWork work_;
};

}  // namespace

void check_attention(const AttentionShape& shape, const AttentionBatch& batch) {
  require(shape.q_heads > 0 && shape.kv_heads > 0 && shape.q_heads % shape.kv_heads == 0,
          "attention: {} query heads do not divide over {} kv heads", shape.q_heads,
          shape.kv_heads);
  require(shape.k_dim > 0 && shape.v_dim > 0 && shape.k_dim <= kMaxHeadDim &&
              shape.v_dim <= kMaxHeadDim,
          "attention: head dims must be in [1, {}], are {} (k) and {} (v)", kMaxHeadDim,
          shape.k_dim, shape.v_dim);
  require(shape.page_size > 0, "attention: page_size is {}", shape.page_size);
  const std::size_t sequences = batch.kv_lens.size();
  require(!batch.q_indptr.empty(), "attention: q_indptr is empty");
  check_indptr("q_indptr", batch.q_indptr, sequences, batch.q_indptr.back());
  require(batch.q_indptr.back() <= kMaxPosition, "attention: {} queries are too many for one plan",
          batch.q_indptr.back());
  check_indptr("page_indptr", batch.page_indptr, sequences,
               static_cast<std::int64_t>(batch.pages.size()));
  require(batch.q_positions.empty() ||
              static_cast<std::int64_t>(batch.q_positions.size()) == batch.q_indptr.back(),
          "attention: {} query positions for {} queries", batch.q_positions.size(),
          batch.q_indptr.back());
  for (std::int64_t position : batch.q_positions) {
    require(position > -kMaxPosition && position < kMaxPosition,
            "attention: query position {} does not fit in int32", position);
  }
  for (std::size_t s = 0; s < sequences; ++s) check_pages(shape, batch, s);
}

AttendWork make_attend_work(const AttentionShape& shape, const AttentionBatch& batch,
                            const AttentionOptions& options) {
  check_attention(shape, batch);
  return WorkMaker(shape, batch, options).make();
}

}  // namespace kvmesh
