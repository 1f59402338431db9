#include "launch/verify/engine_pages.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace kvmesh::verify {
namespace {

constexpr std::byte kNoToken{0xFF};  // a NaN in every type
constexpr std::byte kGivenUp{0x3C};  // a number between 0.01 and 2 in every type

using RowPlace = std::array<std::int64_t, 3>;  // page, head, token of the page

std::byte* row_of(const TensorView& view, const RowPlace& at) {
  const std::int64_t offset =
      at[0] * view.stride(0) + at[1] * view.stride(1) + at[2] * view.stride(2);
  return static_cast<std::byte*>(view.data) +
         offset * static_cast<std::int64_t>(size_bytes(view.dtype));
}

std::size_t row_bytes(const TensorView& view) {
  return static_cast<std::size_t>(view.size(3)) * size_bytes(view.dtype);
}

void fill_row(const TensorView& view, const RowPlace& at, std::byte byte) {
  std::fill_n(row_of(view, at), row_bytes(view), byte);
}

void copy_row(const TensorView& to, const TensorView& from, const RowPlace& to_at,
              const RowPlace& from_at) {
  std::copy_n(row_of(from, from_at), row_bytes(to), row_of(to, to_at));
}

/// The planes that append writes: keys, values, and scales that each row has.
std::vector<TensorView> written_planes(const KvPool& pool) {
  std::vector<TensorView> planes{pool.k};
  if (!pool.is_latent()) planes.push_back(pool.v);
  for (const auto* scale : {&pool.k_scale, &pool.v_scale}) {
    const bool is_of_rows = !scale->per_token.empty() && scale->per_token.stride(0) != 0;
    if (is_of_rows && (scale == &pool.k_scale || !pool.is_latent())) {
      planes.push_back(scale->per_token);
    }
  }
  return planes;
}

bool has_row_scales(const KvPool& pool) {
  return !pool.k_scale.per_token.empty() && pool.k_scale.per_token.stride(0) != 0;
}

std::int32_t number(std::int64_t value) { return static_cast<std::int32_t>(value); }

}  // namespace

EngineForm random_form(Random& random, int page_size) {
  EngineForm form{.heads_first = random.coin(),
                  .values = random.pick(std::vector{ValuePlace::kApart, ValuePlace::kPaired,
                                                    ValuePlace::kSideBySide}),
                  .gap = random.pick(std::vector{0, 0, 3, 8})};
  const int part = page_size % 2 == 0 ? page_size / 2 : 1;
  form.interleave = random.pick(std::vector<std::int64_t>{0, 1, part, 2 * page_size});
  return form;
}

std::string describe(const EngineForm& form) {
  constexpr std::array kPlaces{"apart", "paired", "side by side"};
  return fmt::format("{}, values {}, {} between rows, interleave {}",
                     form.heads_first ? "HND" : "NHD",
                     kPlaces[static_cast<std::size_t>(form.values)], form.gap, form.interleave);
}

bool can_be_divided(const KvPool& layer, const EngineForm& form) {
  if (layer.is_latent() || form.values != ValuePlace::kPaired) return true;
  return layer.k.size(3) == layer.v.size(3) && !has_row_scales(layer);
}

EnginePages::EnginePages(const Mesh& mesh, const KvPool& layer, IndexRange heads,
                         const EngineForm& form, std::int64_t pages)
    : like_(layer),
      form_(form),
      heads_(heads),
      device_(mesh.device()),
      pages_(pages),
      page_size_(layer.k.size(2)),
      me_(mesh.page_rank().value),
      ranks_(mesh.kv_parallel()) {
  const std::int64_t slots = pages_ * heads_.size() * page_size_;
  std::int64_t row = like_.k.size(3) + form_.gap;
  if (!like_.is_latent()) row += like_.v.size(3) + form_.gap;
  rows_.resize(static_cast<std::size_t>(slots * row) * size_bytes(like_.k.dtype));
  if (has_row_scales(like_)) scales_.resize(static_cast<std::size_t>(2 * slots) * sizeof(float));
  if (device_.kind == DeviceKind::kCpu) return;
  rows_there_ = DeviceMemory(device_, rows_.size());
  if (has_row_scales(like_)) scales_there_ = DeviceMemory(device_, scales_.size());
}

EnginePages::Slot EnginePages::slot_of(std::int64_t position) const {
  const std::int64_t turn = form_.interleave == 0 ? page_size_ : form_.interleave;
  const std::int64_t mine = position / (turn * ranks_) * turn + position % turn;
  return {position / turn % ranks_, mine / page_size_, mine % page_size_};
}

std::int64_t EnginePages::pages_on(std::int64_t rank, const EngineSequence& sequence) const {
  std::int64_t pages = 0;
  for (std::int64_t position = 0; position < sequence.length; ++position) {
    const Slot slot = slot_of(position);
    if (slot.rank == rank) pages = slot.page + 1;
  }
  return pages;
}

bool EnginePages::have_room_for(std::span<const EngineSequence> batch) const {
  for (std::int64_t rank = 0; rank < ranks_; ++rank) {
    std::int64_t pages = 0;
    for (const EngineSequence& sequence : batch) pages += pages_on(rank, sequence);
    if (pages > pages_) return false;
  }
  return true;
}

void EnginePages::take_pages(const EngineSequence& sequence) {
  for (std::int64_t i = pages_on(me_, sequence); i > 0; --i) {
    indices_.push_back(number(pages_ - 1 - std::ssize(indices_)));  // not in ascending order
  }
  indptr_.push_back(number(std::ssize(indices_)));
  kv_lens_.push_back(number(sequence.length));
  appended_.push_back(number(sequence.appended));
  q_indptr_.push_back(number(q_indptr_.back() + sequence.queries));
}

void EnginePages::copy_tokens(const KvPool& from, const PageAllocator& source,
                              const EngineSequence& sequence, std::int64_t first_entry) {
  const std::vector<TensorView> to_planes = written_planes(pool_at(rows_.data(), scales_.data()));
  const std::vector<TensorView> from_planes = written_planes(from);
  const std::span<const PageId> table = source.pages(sequence.sequence);
  const std::int64_t kept = source.released_pages(sequence.sequence) * page_size_;
  for (std::int64_t position = 0; position < sequence.length; ++position) {
    const Slot slot = slot_of(position);
    if (slot.rank != me_) continue;
    const std::int64_t page = indices_[static_cast<std::size_t>(first_entry + slot.page)];
    is_written_[static_cast<std::size_t>(page * page_size_ + slot.offset)] = true;
    if (position >= sequence.length - sequence.appended) continue;
    const auto each_row = [&](const auto& take) {
      for (std::int64_t head = 0; head < heads_.size(); ++head) {
        for (std::size_t p = 0; p < to_planes.size(); ++p) take(p, head);
      }
    };
    if (position < kept) {  // an engine may have anything where no query looks
      each_row([&](std::size_t p, std::int64_t head) {
        fill_row(to_planes[p], {page, head, slot.offset}, kGivenUp);
      });
      continue;
    }
    const std::int64_t there = table[static_cast<std::size_t>(position / page_size_)].index();
    each_row([&](std::size_t p, std::int64_t head) {
      copy_row(to_planes[p], from_planes[p], {page, head, slot.offset},
               {there, heads_.begin + head, position % page_size_});
    });
  }
}

void EnginePages::fill(const KvPool& from, const PageAllocator& source,
                       std::span<const EngineSequence> batch) {
  std::ranges::fill(rows_, kNoToken);
  std::ranges::fill(scales_, kNoToken);
  is_written_.assign(static_cast<std::size_t>(pages_ * page_size_), false);
  q_indptr_ = indptr_ = {0};
  for (auto* array : {&kv_lens_, &indices_, &appended_}) array->clear();
  for (const EngineSequence& sequence : batch) {
    const std::int64_t first_entry = std::ssize(indices_);
    take_pages(sequence);
    copy_tokens(from, source, sequence, first_entry);
  }
}

KvPool EnginePages::on_device() {
  if (device_.kind == DeviceKind::kCpu) return pool_at(rows_.data(), scales_.data());
  copy_bytes(rows_there_.data(), rows_.data(), rows_.size());
  copy_bytes(scales_there_.data(), scales_.data(), scales_.size());
  return pool_at(rows_there_.data(), scales_there_.data());
}

PageTables EnginePages::tables() const {
  return {.q_indptr = q_indptr_,
          .kv_lens = kv_lens_,
          .indptr = indptr_,
          .indices = indices_,
          .appended = appended_};
}

// Of rows that begin `row` elements apart, in pages that begin `page` elements apart.
TensorView EnginePages::plane(const TensorView& like, void* data, std::int64_t row,
                              std::int64_t page) const {
  TensorView view = like;
  view.data = data;
  view.shape[0] = pages_;
  view.shape[1] = heads_.size();
  view.strides = {page, form_.heads_first ? page_size_ * row : row,
                  form_.heads_first ? row : heads_.size() * row, 1};
  return view;
}

KvPool EnginePages::pool_at(void* rows, void* scales) const {
  const std::int64_t slots = heads_.size() * page_size_, v_dim = like_.v.size(3);
  const std::int64_t k_row = like_.k.size(3) + form_.gap, v_row = v_dim + form_.gap;
  const auto after = [&](std::int64_t elements) {
    return static_cast<std::byte*>(rows) +
           elements * static_cast<std::int64_t>(size_bytes(like_.k.dtype));
  };
  KvPool made = like_;
  if (like_.is_latent()) {
    made.k = plane(like_.k, rows, k_row, slots * k_row);
    made.v = made.k;
    made.v.shape[3] = v_dim;
  } else if (form_.values == ValuePlace::kApart) {
    made.k = plane(like_.k, rows, k_row, slots * k_row);
    made.v = plane(like_.v, after(pages_ * slots * k_row), v_row, slots * v_row);
  } else if (form_.values == ValuePlace::kPaired) {
    made.k = plane(like_.k, rows, k_row, slots * (k_row + v_row));
    made.v = plane(like_.v, after(slots * k_row), v_row, slots * (k_row + v_row));
  } else {
    const std::int64_t row = k_row + v_row;
    made.k = plane(like_.k, rows, row, slots * row);
    made.v = plane(like_.v, after(like_.k.size(3)), row, slots * row);
  }
  set_scales(made, static_cast<float*>(scales));
  return made;
}

void EnginePages::set_scales(KvPool& made, float* scales) const {
  if (!has_row_scales(like_)) {  // one per head, or numbers: the cache's own
    made.k_scale.per_token.shape[0] = made.v_scale.per_token.shape[0] = pages_;
    return;
  }
  const std::int64_t slots = heads_.size() * page_size_;
  const TensorView& each = like_.k_scale.per_token;
  made.k_scale.per_token = plane(each, scales, 1, slots);
  made.v_scale.per_token =
      like_.is_latent() ? made.k_scale.per_token : plane(each, scales + pages_ * slots, 1, slots);
}

bool EnginePages::gaps_untouched() {
  if (device_.kind == DeviceKind::kCuda) {
    copy_bytes(rows_.data(), rows_there_.data(), rows_.size());
    copy_bytes(scales_.data(), scales_there_.data(), scales_.size());
  }
  // What a run may write becomes poison; then there is nothing else.
  for (const TensorView& plane : written_planes(pool_at(rows_.data(), scales_.data()))) {
    for (std::size_t slot = 0; slot < is_written_.size(); ++slot) {
      if (!is_written_[slot]) continue;
      const auto page = static_cast<std::int64_t>(slot) / page_size_;
      const auto offset = static_cast<std::int64_t>(slot) % page_size_;
      for (std::int64_t head = 0; head < heads_.size(); ++head) {
        fill_row(plane, {page, head, offset}, kNoToken);
      }
    }
  }
  const auto is_poison = [](std::byte byte) { return byte == kNoToken; };
  return std::ranges::all_of(rows_, is_poison) && std::ranges::all_of(scales_, is_poison);
}

}  // namespace kvmesh::verify
