// Invalid values, for tables of calls × arguments × values.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "kvmesh/error.hpp"
#include "kvmesh/tensor.hpp"

namespace kvmesh::test {

inline constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min();
inline constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
inline constexpr int kLeastInt = std::numeric_limits<int>::min();
inline constexpr int kMostInt = std::numeric_limits<int>::max();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Invalid forms of a tensor whose extents are all over 1.
template <class View>
struct Spoil {
  std::string name;
  std::function<void(View&)> apply;
};

/// Invalid forms of tensors that are read.
template <class View>
std::vector<Spoil<View>> spoils() {
  using Bytes = std::conditional_t<std::is_same_v<View, TensorView>, char*, const char*>;
  std::vector<Spoil<View>> all{
      {"no memory", [](View& v) { v.data = nullptr; }},
      {"an odd address", [](View& v) { v.data = static_cast<Bytes>(v.data) + 1; }},
      {"an element type that is not valid", [](View& v) { v.dtype = static_cast<Dtype>(77); }},
      {"a device kind that is not valid",
       [](View& v) { v.device.kind = static_cast<DeviceKind>(9); }},
  };
  for (int dims : {kLeastInt, -1, 0, 1, 5, kMostInt}) {
    all.push_back({"dims " + std::to_string(dims), [dims](View& v) { v.dims = dims; }});
  }
  for (std::size_t i : {0, 1}) {
    for (std::int64_t extent :
         {kLeast, std::int64_t{-1}, std::int64_t{0}, std::int64_t{1} << 40, kMost}) {
      all.push_back({"extent " + std::to_string(i) + " of " + std::to_string(extent),
                     [i, extent](View& v) { v.shape[i] = extent; }});
    }
    for (std::int64_t stride : {kLeast, std::int64_t{-8}, std::int64_t{1} << 58, kMost}) {
      all.push_back({"stride " + std::to_string(i) + " of " + std::to_string(stride),
                     [i, stride](View& v) { v.strides[i] = stride; }});
    }
  }
  return all;
}

/// Invalid forms of tensors that are written.
inline std::vector<Spoil<TensorView>> output_spoils() {
  std::vector<Spoil<TensorView>> all = spoils<TensorView>();
  all.push_back({"rows in one place", [](TensorView& v) { v.strides[0] = 0; }});
  return all;
}

/// Calls `call` with each spoilt copy of `good` and expects an InvalidArgument each time.
template <class View, class Call>
void expect_refuses(const char* what, const View& good, const std::vector<Spoil<View>>& table,
                    const Call& call) {
  for (const Spoil<View>& spoil : table) {
    SCOPED_TRACE(std::string(what) + " with " + spoil.name);
    View spoilt = good;
    spoil.apply(spoilt);
    EXPECT_THROW(call(spoilt), InvalidArgument);
  }
}

}  // namespace kvmesh::test
