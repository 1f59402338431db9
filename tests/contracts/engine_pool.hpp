// A layer's pages as an engine has them on one rank: in one block of memory, in any of the orders
// that engines use, NaN wherever no token was written.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "core/numbers/half.hpp"
#include "kvmesh/device_memory.hpp"
#include "kvmesh/external_pool.hpp"
#include "launch/verify/host_tensor.hpp"
#include "tests/contracts/places.hpp"

namespace kvmesh::test {

/// How the dimensions lie. T: tokens of a page, H: kv heads, D: elements of a head.
enum class PoolOrder : std::uint8_t {
  kHnd,         ///< keys [pages, H, T, D], then values
  kNhd,         ///< keys [pages, T, H, D], then values
  kPairNhd,     ///< [pages, 2, T, H, D]: a page's keys, then its values
  kSideHnd,     ///< [pages, H, T, 2 D]: a token's key, then its value
  kSideNhd,     ///< [pages, T, H, 2 D]
  kHeadScales,  ///< kHnd; float8 with a given scale per head
  kRowScales  ///< float8 with scales per token and head: kNhd, each row of D bytes before its scale
};

inline bool has_row_scales(const ContractShape& shape) {
  return has_scales(shape.dtype, shape.scales, ScaleKind::kPerTokenAndHead);
}

class EnginePool {
 public:
  EnginePool(const ContractShape& shape, PoolOrder order, std::int64_t pages, Device device)
      : shape_(shape), order_(order), pages_(pages), device_(device) {
    const std::int64_t row = shape.k_dim + (is_latent() ? 0 : shape.v_dim);
    rows_.assign(static_cast<std::size_t>(slots() * row) * size_bytes(shape.dtype), kPoison);
    const std::size_t scale_bytes =
        has_row_scales(shape) ? static_cast<std::size_t>(slots()) * 2 * sizeof(float) : 0;
    std::vector<std::byte>& scales = order == PoolOrder::kRowScales ? rows_ : scales_;
    scales.resize(scales.size() + scale_bytes, kPoison);
    give_head_scales();
    if (device.kind == DeviceKind::kCpu) return;
    rows_there_ = DeviceMemory(device, rows_.size());
    scales_there_ = DeviceMemory(device, scales_.size());
  }

  /// Forgets all tokens, in the same memory.
  void clear() {
    std::ranges::fill(rows_, kPoison);
    std::ranges::fill(scales_, kPoison);
    give_head_scales();
  }

  /// As which rows of a head are stored: see verify::stored_row.
  KvScales scales_of(std::int64_t head) const {
    if (order_ != PoolOrder::kHeadScales) return shape_.scales;
    const auto factor = static_cast<float>(head + 1);
    return {.kind = ScaleKind::kPerTensor, .k = 0.003f * factor, .v = 0.004f * factor};
  }

  /// On the host.
  KvPool host() { return pool(rows_.data(), scales_.data(), {}); }
  /// On the device, with all that the host has now; on the CPU the host's own.
  KvPool on_device() {
    if (device_.kind == DeviceKind::kCpu) return host();
    copy_bytes(rows_there_.data(), rows_.data(), rows_.size());
    copy_bytes(scales_there_.data(), scales_.data(), scales_.size());
    return pool(rows_there_.data(), scales_there_.data(), device_);
  }

  /// Writes a token's key and value of one head. Returns nothing: see verify::stored_row.
  void write(std::int64_t page, std::int64_t offset, std::int64_t head, std::span<const float> k,
             std::span<const float> v) {
    const KvPool to = host();
    write_row(to.k, to.k_scale, page, offset, head, k);
    if (!is_latent()) write_row(to.v, to.v_scale, page, offset, head, v);
  }

 private:
  static constexpr std::byte kPoison{0xFF};  // a NaN in every type
  static constexpr std::int64_t kScaleBytes = sizeof(float);

  bool is_latent() const { return shape_.kind == PageKind::kLatent; }
  void give_head_scales() {
    if (order_ != PoolOrder::kHeadScales) return;
    auto* const scales = reinterpret_cast<float*>(scales_.data());
    for (std::int64_t head = 0; head < shape_.kv_heads; ++head) {
      scales[head] = scales_of(head).k;
      scales[slots() + head] = scales_of(head).v;
    }
  }
  std::int64_t slots() const { return pages_ * shape_.page_size * shape_.kv_heads; }

  KvPool pool(std::byte* rows, std::byte* scales, Device device) {
    return pool(static_cast<void*>(rows), static_cast<void*>(scales), device);
  }
  KvPool pool(void* rows, void* scales, Device device) {
    const std::int64_t heads = shape_.kv_heads, tokens = shape_.page_size;
    const std::int64_t k_dim = shape_.k_dim, v_dim = shape_.v_dim;
    const Dtype dtype = shape_.dtype;
    auto* const first = static_cast<std::byte*>(rows);
    const auto after = [&](std::int64_t elements) {
      return first + static_cast<std::size_t>(elements) * size_bytes(dtype);
    };
    KvPool made;
    if (is_latent()) {
      made.k = {rows, dtype, {pages_, heads, tokens, k_dim}, device};
      made.v = made.k;
      made.v.shape[3] = v_dim;
    } else if (order_ == PoolOrder::kHnd || order_ == PoolOrder::kHeadScales) {
      made.k = {rows, dtype, {pages_, heads, tokens, k_dim}, device};
      made.v = {after(slots() * k_dim), dtype, {pages_, heads, tokens, v_dim}, device};
    } else if (order_ == PoolOrder::kNhd) {
      made = nhd_pool({rows, dtype, {pages_, tokens, heads, k_dim}, device},
                      {after(slots() * k_dim), dtype, {pages_, tokens, heads, v_dim}, device});
    } else if (order_ == PoolOrder::kPairNhd) {
      const std::int64_t keys = tokens * heads * k_dim, page = keys + tokens * heads * v_dim;
      made = nhd_pool(
          {rows, dtype, {pages_, tokens, heads, k_dim}, {page, heads * k_dim, k_dim, 1}, device},
          {after(keys),
           dtype,
           {pages_, tokens, heads, v_dim},
           {page, heads * v_dim, v_dim, 1},
           device});
    } else if (order_ == PoolOrder::kRowScales) {
      set_rows_with_scales(made.k, made.k_scale, first, k_dim, device);
      set_rows_with_scales(made.v, made.v_scale, after(slots() * (k_dim + kScaleBytes)), v_dim,
                           device);
      return made;
    } else if (order_ == PoolOrder::kSideHnd) {
      made = side_by_side_pool({rows, dtype, {pages_, heads, tokens, k_dim + v_dim}, device},
                               shape_.k_dim);
    } else {
      const TensorView both{rows, dtype, {pages_, tokens, heads, k_dim + v_dim}, device};
      made = side_by_side_pool(nhd_pool(both, both).k, shape_.k_dim);
    }
    add_scales(made, static_cast<float*>(scales), device);
    return made;
  }

  /// Half a pool, [pages, T, H, dim + a float32]. REQUIRES: a dim that is a multiple of 4.
  void set_rows_with_scales(TensorView& rows, BasicRowScale<TensorView>& scale, std::byte* first,
                            std::int64_t dim, Device device) const {
    const std::int64_t heads = shape_.kv_heads, tokens = shape_.page_size;
    const auto strides = [&](std::int64_t row) {
      return std::array{tokens * heads * row, row, heads * row, std::int64_t{1}};
    };
    rows = {first, shape_.dtype, {pages_, heads, tokens, dim}, device};
    rows.strides = strides(dim + kScaleBytes);
    scale.per_token = {first + dim, Dtype::kFloat32, {pages_, heads, tokens, 1}, device};
    scale.per_token.strides = strides(dim / kScaleBytes + 1);
  }

  /// In the keys' order, without their elements.
  void add_scales(KvPool& made, float* scales, Device device) {
    if (!info_of(shape_.dtype).has_scales) return;
    const std::int64_t heads = shape_.kv_heads, tokens = shape_.page_size;
    const bool hnd = order_ == PoolOrder::kHnd || order_ == PoolOrder::kSideHnd || is_latent();
    const bool is_per_head = order_ == PoolOrder::kHeadScales;
    const auto each = [&](float* data) {
      TensorView view{data, Dtype::kFloat32, {pages_, heads, tokens, 1}, device};
      view.strides = {heads * tokens, hnd ? tokens : 1, hnd ? 1 : heads, 1};
      if (is_per_head) view.strides = {0, 1, 0, 1};
      return view;
    };
    if (shape_.scales.kind == ScaleKind::kPerTensor) {
      made.k_scale.number = shape_.scales.k;
      made.v_scale.number = is_latent() ? shape_.scales.k : shape_.scales.v;
    } else {
      made.k_scale.per_token = each(scales);
      made.v_scale.per_token = is_latent() ? made.k_scale.per_token : each(scales + slots());
    }
  }

  void write_row(const TensorView& to, const BasicRowScale<TensorView>& scale, std::int64_t page,
                 std::int64_t offset, std::int64_t head, std::span<const float> row) {
    const auto place = [&](const TensorView& view) {
      return page * view.stride(0) + head * view.stride(1) + offset * view.stride(2);
    };
    float factor = scale.number;
    if (!scale.per_token.empty()) {
      float largest = 0;
      for (float value : row) largest = std::max(largest, std::abs(value));
      float& stored = static_cast<float*>(scale.per_token.data)[place(scale.per_token)];
      if (order_ != PoolOrder::kHeadScales) {
        stored = std::max(largest / 448, std::numeric_limits<float>::min());
      }
      factor = stored;
    }
    for (std::size_t d = 0; d < row.size(); ++d) {
      store_element(to.data, to.dtype, place(to) + static_cast<std::int64_t>(d), row[d] / factor);
    }
  }

  ContractShape shape_;
  PoolOrder order_;
  std::int64_t pages_;
  Device device_;
  std::vector<std::byte> rows_, scales_;
  DeviceMemory rows_there_, scales_there_;  // empty on the CPU
};

}  // namespace kvmesh::test
