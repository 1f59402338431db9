// The content of a page. Code that stores, copies or sends pages loops over planes; only append and
// attention interpret planes, as a pool of keys and values.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <vector>

#include "kvmesh/api.h"
#include "kvmesh/tensor.hpp"

namespace KVMESH_API kvmesh {

/// A list of up to four values, one for each plane of a format, in their order.
template <class T>
class PlaneList {
 public:
  static constexpr std::size_t kMost = 4;

  constexpr PlaneList() = default;
  /// REQUIRES: no more than kMost values.
  constexpr PlaneList(std::initializer_list<T> values) {
    for (const T& value : values) push_back(value);
  }
  /// REQUIRES: size() < kMost.
  constexpr void push_back(const T& value) { values_[size_++] = value; }

  constexpr std::size_t size() const { return size_; }
  constexpr const T& operator[](std::size_t plane) const { return values_[plane]; }
  constexpr const T* begin() const { return values_.data(); }
  constexpr const T* end() const { return values_.data() + size_; }

 private:
  std::array<T, kMost> values_{};
  std::size_t size_ = 0;
};

/// One array of a page: [heads, page_size, elements].
struct PagePlane {
  std::string_view name{};
  Dtype dtype = Dtype::kFloat32;
  int elements = 0;  ///< per token and head
};

/// The planes of a page on one rank, in the order in which they lie in memory.
struct PageFormat {
  int heads = 0;
  int page_size = 0;  ///< tokens
  PlaneList<PagePlane> planes{};
};

/// One layer's planes on one rank: plane i is [pages, heads, page_size, elements] of the format's
/// plane i, with a contiguous last dimension.
using PagePlanes = PlaneList<TensorView>;

/// The sizes of attention; heads are one rank's.
struct AttentionShape {
  int q_heads = 0;
  int kv_heads = 0;
  int k_dim = 0;
  int v_dim = 0;
  int page_size = 0;
};

/// The content of a page per token and kv head.
enum class PageKind : std::uint8_t {
  kKv,      ///< a key of k_dim elements and a value of v_dim
  kLatent,  ///< a key of k_dim elements whose first v_dim are the value (MLA)
};
/// "kv" or "latent".
std::string_view name(PageKind kind);

/// The factors that elements of float8 pages are multiplied by when they are read.
enum class ScaleKind : std::uint8_t {
  kPerTensor,        ///< a number for all keys and one for all values
  kPerTokenAndHead,  ///< append computes one for each row that it writes
  kPerHead           ///< a number for the keys of each kv head, and one for its values
};
/// "per tensor", "per token and head" or "per head".
std::string_view name(ScaleKind kind);

/// REQUIRES: the numbers are positive and finite.
struct KvScales {
  ScaleKind kind = ScaleKind::kPerTokenAndHead;
  float k = 1;  ///< kPerTensor: of keys, and of whole rows of latent pages
  float v = 1;  ///< kPerTensor: of values
  /// kPerHead, else empty: [kv_heads] of the whole model; of latent pages `v_heads` is empty.
  std::vector<float> k_heads{};
  std::vector<float> v_heads{};
};
/// Whether elements of `dtype` are multiplied by scales, and those are of this kind.
inline bool has_scales(Dtype dtype, const KvScales& scales, ScaleKind kind) {
  return info_of(dtype).has_scales && scales.kind == kind;
}

/// How a page stores keys and values.
struct KvFormat {
  PageKind kind = PageKind::kKv;
  Dtype dtype = Dtype::kBFloat16;
  KvScales scales{};  ///< of float8 pages; else ignored
};

/// The factors of keys or of values: `number`, or, unless that is empty, `per_token` [pages,
/// kv_heads, page_size, 1] in float32. If the strides of pages and of tokens are 0, there is one
/// per head, which append reads; else append writes them.
template <class View>
struct BasicRowScale {
  float number = 1;
  View per_token{};
};

/// One layer's pages on one rank as append and attention see them, to write to (`KvPool`) or to
/// read (`ConstKvPool`). `k` [pages, kv_heads, page_size, k_dim], `v` [pages, kv_heads, page_size,
/// v_dim], any strides with a contiguous last dimension, one dtype for both. Latent pages have no
/// values of their own: `v` is a view of the first v_dim elements of `k`'s rows.
template <class View>
struct BasicKvPool {
  View k;
  View v;
  BasicRowScale<View> k_scale{};  ///< of float8 pages
  BasicRowScale<View> v_scale{};  ///< of latent pages: that of k

  bool is_latent() const { return k.data != nullptr && v.data == k.data; }

  /// A writable pool converts to a read-only pool.
  operator BasicKvPool<ConstTensorView>() const requires(!std::is_same_v<View, ConstTensorView>) {
    return {k, v, {k_scale.number, k_scale.per_token}, {v_scale.number, v_scale.per_token}};
  }
};
using KvPool = BasicKvPool<TensorView>;
using ConstKvPool = BasicKvPool<ConstTensorView>;

/// The planes that `format` needs.
///
///   kv      "k" [k_dim], "v" [v_dim]
///   latent  "latent" [k_dim]
///
/// Float8 pages with scales per token and head also have "k_scale" [1] and "v_scale" [1], or
/// "scale" [1] if they are latent, in float32.
PageFormat make_page_format(const AttentionShape& shape, const KvFormat& format);

/// The pool whose planes are `planes`, which have the format make_page_format(shape, format).
/// `head_scales` [2, kv_heads] in float32 and the pages' memory, for pages with scales per head:
/// those of keys, then those of values; of latent pages [1, kv_heads].
KvPool kv_pool(const AttentionShape& shape, const KvFormat& format, const PagePlanes& planes,
               const TensorView& head_scales = {});

}  // namespace kvmesh
