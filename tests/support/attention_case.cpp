#include "tests/support/attention_case.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

namespace kvmesh::test {
namespace {

// Pages of the pool that no sequence has.
constexpr std::int64_t kSparePages = 3;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<std::int32_t> local_pages(const CaseSequence& sequence, std::int64_t page_size) {
  if (sequence.local) return *sequence.local;
  std::vector<std::int32_t> all(
      static_cast<std::size_t>((sequence.kv_len + page_size - 1) / page_size));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

std::int64_t count_pages(const CaseSpec& spec) {
  std::int64_t pages = kSparePages;
  for (const CaseSequence& sequence : spec.sequences) {
    pages += std::ssize(local_pages(sequence, spec.shape.page_size));
  }
  return pages;
}

std::int64_t count_tokens(const CaseSpec& spec) {
  std::int64_t tokens = 0;
  for (const CaseSequence& sequence : spec.sequences) tokens += sequence.q_len;
  return tokens;
}

// `rounded`: the expected output if the queries were rounded.
bool close(double value, double expected, double rounded, double bound) {
  return value == expected || std::abs(value - expected) <= bound + std::abs(expected - rounded);
}

double largest(const std::vector<ReferenceRow>& rows) {
  double max = 0;
  for (const ReferenceRow& row : rows) {
    for (double o : row.o) max = std::max(max, std::abs(o));
  }
  return max;
}

}  // namespace

AttentionCase::AttentionCase(CaseSpec spec)
    : spec_(std::move(spec)),
      pool_pages_(count_pages(spec_)),
      q_(spec_.q_dtype, {count_tokens(spec_), spec_.shape.q_heads, spec_.shape.k_dim}, spec_.q),
      k_(spec_.dtype, {pool_pages_, spec_.shape.kv_heads, spec_.shape.page_size, spec_.shape.k_dim},
         spec_.pool),
      v_(spec_.dtype,
         {spec_.latent ? 0 : pool_pages_, spec_.shape.kv_heads, spec_.shape.page_size,
          spec_.shape.v_dim},
         spec_.pool),
      k_scales_(Dtype::kFloat32, {pool_pages_, spec_.shape.kv_heads, spec_.shape.page_size, 1}),
      v_scales_(Dtype::kFloat32, {pool_pages_, spec_.shape.kv_heads, spec_.shape.page_size, 1}) {
  place_pages();
  fill();
}

void AttentionCase::place_pages() {
  std::vector<std::int32_t> free(static_cast<std::size_t>(pool_pages_));
  std::iota(free.begin(), free.end(), 0);
  Random random(spec_.seed);
  for (std::size_t i = free.size(); i > 1; --i) {
    std::swap(free[i - 1],
              free[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(i) - 1))]);
  }
  batch_.q_indptr = {0};
  batch_.page_indptr = {0};
  batch_.q_positions = spec_.positions;
  for (const CaseSequence& sequence : spec_.sequences) {
    const std::size_t first = batch_.pages.size();
    for (std::int32_t logical : local_pages(sequence, spec_.shape.page_size)) {
      const auto at = std::ssize(batch_.pages) - static_cast<std::int64_t>(first);
      if (at < sequence.prefix.pages) {
        const std::int64_t page = batch_.page_indptr[sequence.prefix.of] + at;
        batch_.pages.push_back(batch_.pages[static_cast<std::size_t>(page)]);
        continue;
      }
      batch_.pages.push_back({free.back(), logical});
      free.pop_back();
    }
    batch_.kv_lens.push_back(sequence.kv_len);
    if (!spec_.sinks.empty()) batch_.counts_sinks.push_back(sequence.counts_sinks);
    batch_.q_indptr.push_back(batch_.q_indptr.back() + sequence.q_len);
    batch_.page_indptr.push_back(std::ssize(batch_.pages));
  }
}

ConstTensorView AttentionCase::per_head(const std::vector<float>& scales) const {
  const AttentionShape& shape = spec_.shape;
  return {scales.data(),
          Dtype::kFloat32,
          {pool_pages_, shape.kv_heads, shape.page_size, 1},
          {0, 1, 0, 1}};
}

ConstKvPool AttentionCase::pool() {
  ConstKvPool pool{k_.view(), spec_.latent ? k_.view() : v_.view()};
  pool.v.shape[3] = spec_.shape.v_dim;
  if (!info_of(spec_.dtype).has_scales) return pool;
  if (spec_.scales.kind == ScaleKind::kPerTensor) {
    pool.k_scale.number = spec_.scales.k;
    pool.v_scale.number = spec_.scales.v;
  } else if (spec_.scales.kind == ScaleKind::kPerHead) {
    pool.k_scale.per_token = per_head(spec_.scales.k_heads);
    pool.v_scale.per_token = per_head(spec_.scales.v_heads);
  } else {
    pool.k_scale.per_token = k_scales_.view();
    pool.v_scale.per_token = v_scales_.view();
  }
  if (spec_.latent) pool.v_scale = pool.k_scale;
  return pool;
}

void AttentionCase::fill() {
  Random random(spec_.seed + 1), scales(spec_.seed + 2);
  for (std::int64_t t = 0; t < q_.size(0); ++t) {
    for (std::int64_t h = 0; h < q_.size(1); ++h) {
      for (std::int64_t d = 0; d < q_.size(2); ++d) q_.set(spec_.q_size * random.real(), t, h, d);
    }
  }
  const std::int64_t heads = first_kv_head() + spec_.shape.kv_heads;
  for (std::size_t s = 0; s < spec_.sequences.size(); ++s) {
    const auto length = spec_.sequences[s].kv_len;
    DenseSequence dense;
    dense.kv_heads = heads;
    dense.k_dim = spec_.shape.k_dim;
    dense.v_dim = spec_.shape.v_dim;
    dense.k.resize(static_cast<std::size_t>(length * heads * dense.k_dim));
    dense.v.resize(static_cast<std::size_t>(length * heads * dense.v_dim));
    for (float& k : dense.k) k = random.real();
    for (float& v : dense.v) v = random.real();
    fill_sequence(s, dense, scales);
    dense_.push_back(std::move(dense));
  }
}

void AttentionCase::fill_sequence(std::size_t sequence, DenseSequence& dense, Random& scales) {
  const CasePrefix& prefix = spec_.sequences[sequence].prefix;
  const auto page = batch_.pages.begin() + batch_.page_indptr[sequence];
  const std::int64_t shared =
      prefix.pages == 0 ? 0 : std::int64_t{page[prefix.pages - 1].logical} + 1;
  const std::int64_t first = shared * spec_.shape.page_size;
  if (first > 0) {
    const DenseSequence& from = dense_[prefix.of];
    std::copy_n(from.k.begin(), first * dense.kv_heads * dense.k_dim, dense.k.begin());
    std::copy_n(from.v.begin(), first * dense.kv_heads * dense.v_dim, dense.v.begin());
  }
  for (std::int64_t position = first; position < spec_.sequences[sequence].kv_len; ++position) {
    if (const auto slot = slot_of(sequence, position)) fill_token(dense, position, *slot, scales);
  }
}

// Writes to the pool, and reads back as the pool stores it.
void AttentionCase::fill_token(DenseSequence& dense, std::int64_t position, const Slot& slot,
                               Random& scales) {
  for (std::int64_t head = 0; head < spec_.shape.kv_heads; ++head) {
    const std::int64_t row = position * dense.kv_heads + first_kv_head() + head;
    const auto row_of = [&](std::vector<float>& rows, std::int64_t dim) {
      return std::span(rows).subspan(static_cast<std::size_t>(row * dim),
                                     static_cast<std::size_t>(dim));
    };
    const std::span k = row_of(dense.k, dense.k_dim), v = row_of(dense.v, dense.v_dim);
    const auto number_of = [&](float number, const std::vector<float>& of_heads) {
      return of_heads.empty() ? number : of_heads[static_cast<std::size_t>(head)];
    };
    fill_row(k, k_, k_scales_, number_of(spec_.scales.k, spec_.scales.k_heads), slot, head, scales);
    if (spec_.latent) {
      std::copy_n(k.begin(), v.size(), v.begin());
    } else {
      fill_row(v, v_, v_scales_, number_of(spec_.scales.v, spec_.scales.v_heads), slot, head,
               scales);
    }
  }
}

// Float8 rows of a token and head become smaller by a power of two, and their scale with them.
void AttentionCase::fill_row(std::span<float> row, OwnedTensor& pool, OwnedTensor& scales,
                             float number, const Slot& slot, std::int64_t head, Random& random) {
  float scale = 1, size = 1;
  if (info_of(spec_.dtype).has_scales) {
    scale = number;
    if (spec_.scales.kind == ScaleKind::kPerTokenAndHead) {
      const std::int64_t step = slot.position / 128 % 2 * spec_.scale_step;
      size = std::exp2(-static_cast<float>(step + random.integer(0, spec_.scale_bits)));
      scale = size / 400;
      scales.set(scale, slot.page, head, slot.offset, 0);
    }
  }
  for (std::size_t d = 0; d < row.size(); ++d) {
    const auto column = static_cast<std::int64_t>(d);
    pool.set(row[d] * size / scale, slot.page, head, slot.offset, column);
    row[d] = scale * pool.at(slot.page, head, slot.offset, column);
  }
}

std::optional<AttentionCase::Slot> AttentionCase::slot_of(std::size_t sequence,
                                                          std::int64_t position) const {
  for (std::int64_t i = batch_.page_indptr[sequence]; i < batch_.page_indptr[sequence + 1]; ++i) {
    const LocalPage& page = batch_.pages[static_cast<std::size_t>(i)];
    if (page.logical == position / spec_.shape.page_size) {
      return Slot{page.page, static_cast<std::int32_t>(position % spec_.shape.page_size), position};
    }
  }
  return std::nullopt;
}

void AttentionCase::poison_key(std::size_t sequence, std::int64_t position) {
  const Slot slot = slot_of(sequence, position).value();
  for (std::int64_t head = 0; head < spec_.shape.kv_heads; ++head) {
    k_.set(kNan, slot.page, head, slot.offset, spec_.shape.k_dim / 2);
  }
}

void AttentionCase::poison_value(std::size_t sequence, std::int64_t position) {
  OwnedTensor& values = spec_.latent ? k_ : v_;
  const Slot slot = slot_of(sequence, position).value();
  for (std::int64_t head = 0; head < spec_.shape.kv_heads; ++head) {
    for (std::int64_t d = 0; d < spec_.shape.v_dim; ++d) {
      values.set(kNan, slot.page, head, slot.offset, d);
    }
  }
}

void AttentionCase::poison_value_scale(std::size_t sequence, std::int64_t position) {
  OwnedTensor& scales = spec_.latent ? k_scales_ : v_scales_;
  const Slot slot = slot_of(sequence, position).value();
  for (std::int64_t head = 0; head < spec_.shape.kv_heads; ++head) {
    scales.set(kNan, slot.page, head, slot.offset, 0);
  }
}

void AttentionCase::poison_page(std::size_t sequence, std::int64_t logical) {
  const std::int64_t first = logical * spec_.shape.page_size;
  const std::int64_t last = std::min(first + spec_.shape.page_size, batch_.kv_lens[sequence]);
  for (std::int64_t position = first; position < last; ++position) {
    poison_key(sequence, position);
    poison_value(sequence, position);
  }
}

CaseResult AttentionCase::outputs() const {
  return {OwnedTensor(Dtype::kFloat32, {tokens(), spec_.shape.q_heads, spec_.shape.v_dim}, spec_.o),
          OwnedTensor(Dtype::kFloat32, {tokens(), spec_.shape.q_heads}, spec_.lse), TileCounts{}};
}

CaseResult AttentionCase::run(const AttentionBatch& batch, const AttentionOptions& options,
                              int threads) {
  CaseResult result = outputs();
  result.tiles = run_attention(spec_.shape, batch, options, q_.view(), pool(), partial(result),
                               threads, spec_.sinks.empty() ? ConstTensorView{} : sinks());
  return result;
}

std::int32_t AttentionCase::position_of(std::size_t sequence, std::int64_t token) const {
  if (!spec_.positions.empty()) {
    return static_cast<std::int32_t>(spec_.positions[static_cast<std::size_t>(token)]);
  }
  return static_cast<std::int32_t>(batch_.kv_lens[sequence] - batch_.q_indptr[sequence + 1] +
                                   token);
}

// The keys on this rank.
MaskMod AttentionCase::local_keys(std::size_t sequence) const {
  if (!spec_.sequences[sequence].local) return {};
  std::vector<bool> here;
  for (std::int64_t kv = 0; kv < std::max<std::int64_t>(1, batch_.kv_lens[sequence]); ++kv) {
    here.push_back(slot_of(sequence, kv).has_value());
  }
  const Buffer<bool> buffer(here);
  return [&](auto, auto, auto, auto kv) { return buffer[kv]; };
}

std::vector<ReferenceRow> AttentionCase::reference(const MaskMod& visible, Dtype queries) const {
  const double scale = spec_.options.scale ? double{*spec_.options.scale}
                                           : 1.0 / std::sqrt(double(spec_.shape.k_dim));
  std::vector<ReferenceRow> rows;
  for (std::size_t s = 0; s < dense_.size(); ++s) {
    const MaskMod mask = visible && local_keys(s);
    for (std::int64_t t = batch_.q_indptr[s]; t < batch_.q_indptr[s + 1]; ++t) {
      for (int h = 0; h < spec_.shape.q_heads; ++h) {
        std::vector<float> q;
        for (std::int64_t d = 0; d < spec_.shape.k_dim; ++d) {
          float rounded[1];
          store_element(rounded, queries, 0, q_.at(t, h, d));
          q.push_back(load_element(rounded, queries, 0));
        }
        rows.push_back(reference_row(dense_[s], q.data(), scale, mask, spec_.options.score,
                                     static_cast<std::int32_t>(s), spec_.options.first_head + h,
                                     group(), position_of(s, t)));
        if (!spec_.sinks.empty() && spec_.sequences[s].counts_sinks) {
          rows.back() = verify::with_sink(rows.back(), spec_.sinks[static_cast<std::size_t>(h)]);
        }
      }
    }
  }
  return rows;
}

testing::AssertionResult AttentionCase::matches(const CaseResult& result, const MaskMod& visible,
                                                const RowFilter& poisoned) const {
  const std::vector<ReferenceRow> rows = reference(visible, spec_.q_dtype);
  const Dtype rounded_type = rounded_query_type(spec_);
  const std::vector<ReferenceRow> rounded =
      rounded_type == spec_.q_dtype ? rows : reference(visible, rounded_type);
  const CaseTolerance tolerance = tolerance_of(spec_);
  const double scale = largest(rows);
  const std::int64_t heads = spec_.shape.q_heads;
  for (std::int64_t r = 0; r < std::ssize(rows); ++r) {
    const std::int64_t token = r / heads, head = r % heads;
    const ReferenceRow& expected = rows[static_cast<std::size_t>(r)];
    const ReferenceRow& of_rounded = rounded[static_cast<std::size_t>(r)];
    const double lse = result.lse.at(token, head);
    const bool nan = poisoned && poisoned(token, static_cast<std::int32_t>(head));
    const double lse_bound = tolerance.lse * std::max(1.0, std::abs(lse));
    const bool lse_right = nan || close(lse, expected.lse, of_rounded.lse, lse_bound);
    if (!lse_right) {
      return testing::AssertionFailure() << "token " << token << " head " << head << ": LSE is "
                                         << lse << ", should be " << expected.lse;
    }
    for (std::int64_t d = 0; d < spec_.shape.v_dim; ++d) {
      const double o = result.o.at(token, head, d);
      const auto i = static_cast<std::size_t>(d);
      const double wanted = nan ? double{kNan} : expected.o[i];
      if (nan ? !std::isnan(o) : !close(o, wanted, of_rounded.o[i], tolerance.o * scale)) {
        return testing::AssertionFailure()
               << "token " << token << " head " << head << " dim " << d << ": O is " << o
               << ", should be " << wanted << " (largest " << scale << ", seed " << spec_.seed
               << ")";
      }
    }
  }
  if (result.o.written() > std::ssize(rows) * spec_.shape.v_dim ||
      result.lse.written() > std::ssize(rows)) {
    return testing::AssertionFailure() << "something beside the outputs was written";
  }
  return testing::AssertionSuccess();
}

}  // namespace kvmesh::test
