// The places of a contract: the ranks, the device, and the sizes of the caches.
#pragma once

#include <memory>
#include <ostream>
#include <string>
#include <type_traits>
#include <vector>

#include "kvmesh/kv_cache.hpp"
#include "tests/support/kept_meshes.hpp"
#include "tests/support/ranks.hpp"

namespace kvmesh::test {

struct ContractShape {
  int q_heads, kv_heads, k_dim, v_dim, page_size;
  Dtype dtype = Dtype::kFloat32;
  PageKind kind = PageKind::kKv;
  KvScales scales{};
};

/// Scales per head that make some values of the first heads saturate.
inline KvScales head_scales(int kv_heads, PageKind kind = PageKind::kKv) {
  KvScales scales{.kind = ScaleKind::kPerHead};
  for (int head = 0; head < kv_heads; ++head) {
    scales.k_heads.push_back(0.002f * (1 + 0.25f * static_cast<float>(head)));
    if (kind == PageKind::kKv) scales.v_heads.push_back(2 * scales.k_heads.back());
  }
  return scales;
}

inline CacheOptions with_shape(CacheOptions options, const ContractShape& shape) {
  options.q_heads = shape.q_heads;
  options.kv_heads = shape.kv_heads;
  options.k_dim = shape.k_dim;
  options.v_dim = shape.v_dim;
  options.page_size = shape.page_size;
  options.dtype = shape.dtype;
  options.page_kind = shape.kind;
  options.scales = shape.scales;
  return options;
}

/// With other numbers of heads, and scales for them if each has one.
inline CacheOptions with_heads(CacheOptions options, int q_heads, int kv_heads) {
  options.q_heads = q_heads;
  options.kv_heads = kv_heads;
  if (options.scales.kind == ScaleKind::kPerHead) {
    options.scales = head_scales(kv_heads, options.page_kind);
  }
  return options;
}

/// Small enough for float64, with a threshold so low that most sequences spread over the ranks.
inline CacheOptions small_cache(const ContractShape& shape) {
  return with_shape({.layers = 2, .pages_per_rank = 120, .home_threshold_tokens = 8}, shape);
}

/// Every size is odd or different from the others.
inline constexpr ContractShape kSmallShape{
    .q_heads = 6, .kv_heads = 2, .k_dim = 20, .v_dim = 12, .page_size = 4};

/// On the CPU kv pages have each dtype and many sizes.
struct KvSizes {
  static constexpr const char* kName = "";
  static constexpr int kRandomMods = 30;
  static constexpr int kRandomCases = 25;
  static constexpr ContractShape kSmall = kSmallShape;
  static std::vector<ContractShape> shapes() {
    return {{4, 4, 16, 0, 16}, {8, 1, 33, 7, 1},     {8, 2, 64, 128, 8},
            {5, 5, 1, 3, 3},   {14, 2, 128, 64, 16}, {2, 1, 576, 512, 32}};
  }
  static std::vector<Dtype> stored() {
    return {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16};
  }
};
/// Latent pages: those of MLA, and sizes that no model has.
struct LatentSizes {
  static constexpr const char* kName = "Latent";
  static constexpr int kRandomMods = 3;
  static constexpr int kRandomCases = 0;
  static constexpr ContractShape kSmall{6, 2, 20, 12, 4, Dtype::kFloat32, PageKind::kLatent};
  static std::vector<ContractShape> shapes() {
    return {{16, 1, 576, 512, 64, Dtype::kBFloat16, PageKind::kLatent},
            {128, 1, 576, 512, 16, Dtype::kFloat16, PageKind::kLatent},
            {8, 1, 33, 7, 1, Dtype::kFloat16, PageKind::kLatent},
            {8, 2, 64, 32, 16, Dtype::kBFloat16, PageKind::kLatent}};
  }
  static std::vector<Dtype> stored() { return {Dtype::kFloat32, Dtype::kBFloat16}; }
};

/// Float8 pages with scales per token and head, or for all. The numbers make some values saturate.
struct Float8Sizes {
  static constexpr const char* kName = "Float8";
  static constexpr int kRandomMods = 3;
  static constexpr int kRandomCases = 0;
  static inline const KvScales kNumbers{.kind = ScaleKind::kPerTensor, .k = 0.002f, .v = 0.0025f};
  static constexpr ContractShape kSmall{6, 2, 20, 12, 4, Dtype::kFloat8E4M3};
  static std::vector<ContractShape> shapes() {
    return {{8, 2, 64, 128, 16, Dtype::kFloat8E4M3, PageKind::kKv, kNumbers},
            {8, 1, 128, 64, 8, Dtype::kFloat8E4M3, PageKind::kKv},
            {8, 1, 33, 7, 1, Dtype::kFloat8E4M3, PageKind::kKv},
            {16, 1, 576, 512, 64, Dtype::kFloat8E4M3, PageKind::kLatent},
            {128, 1, 576, 512, 16, Dtype::kFloat8E4M3, PageKind::kLatent, kNumbers},
            {4, 2, 48, 16, 8, Dtype::kFloat8E4M3, PageKind::kLatent, kNumbers}};
  }
  static std::vector<Dtype> stored() { return {Dtype::kFloat8E4M3}; }
};

/// With a scale for each head.
struct Float8HeadSizes {
  static constexpr const char* kName = "Float8Heads";
  static constexpr int kRandomMods = 3;
  static constexpr int kRandomCases = 0;
  static inline const ContractShape kSmall{
      6, 2, 20, 12, 4, Dtype::kFloat8E4M3, PageKind::kKv, head_scales(2)};
  static std::vector<ContractShape> shapes() {
    const auto latent = [](int kv_heads) { return head_scales(kv_heads, PageKind::kLatent); };
    return {{8, 2, 64, 128, 16, Dtype::kFloat8E4M3, PageKind::kKv, head_scales(2)},
            {16, 4, 128, 128, 8, Dtype::kFloat8E4M3, PageKind::kKv, head_scales(4)},
            {6, 3, 33, 7, 1, Dtype::kFloat8E4M3, PageKind::kKv, head_scales(3)},
            {16, 1, 576, 512, 64, Dtype::kFloat8E4M3, PageKind::kLatent, latent(1)},
            {8, 2, 192, 128, 16, Dtype::kFloat8E4M3, PageKind::kLatent, latent(2)}};
  }
  static std::vector<Dtype> stored() { return {Dtype::kFloat8E4M3}; }
};

template <class Ranks, class Sizes = KvSizes>
struct OnCpu {
  static constexpr DeviceChoice kDevice = DeviceChoice::kCpu;
  static constexpr int kRandomMods = Sizes::kRandomMods;
  static constexpr int kRandomCases = Sizes::kRandomCases;
  static constexpr bool kReproducible = false;

  static std::string name() { return Ranks::name() + Sizes::kName; }
  static void run(const RankBody& body) { Ranks::run(body); }
  static std::shared_ptr<Mesh> mesh(Communicator& comm, const MeshOptions& options) {
    return std::make_shared<Mesh>(comm, options);
  }
  static CacheOptions small() { return small_cache(Sizes::kSmall); }
  static std::vector<ContractShape> shapes() { return Sizes::shapes(); }
  static std::vector<Dtype> stored() { return Sizes::stored(); }
};

/// Three groups of layers that differ in all that groups may differ in.
template <class Ranks>
struct GroupsOnCpu : OnCpu<Ranks> {
  static constexpr int kRandomCases = 0;
  static std::string name() { return Ranks::name() + "Groups"; }
  static CacheOptions small() {
    CacheOptions options = small_cache(kSmallShape);
    options.layers = 4;
    options.groups = {{.layers = {2}, .q_heads = 4, .kv_heads = 4, .k_dim = 8, .v_dim = 16},
                      {.layers = {3, 1},
                       .q_heads = 2,
                       .kv_heads = 1,
                       .k_dim = 24,
                       .dtype = Dtype::kBFloat16,
                       .page_kind = PageKind::kLatent,
                       .page_share = 2}};
    return options;
  }
};

/// Caches with the small shape `Sizes::kSmall`, and those of `Sizes::shapes()`, in the memory of
/// the ranks' GPUs. One element type each: a kernel compiles for half a second the first time, and
/// all three types need some 60 attention kernels, and 30 more for random mods and cases.
template <class Ranks, class Sizes>
struct OnCuda {
  static constexpr DeviceChoice kDevice = DeviceChoice::kCuda;
  static constexpr int kRandomMods = 3;
  static constexpr int kRandomCases = Sizes::kRandomCases;
  static constexpr bool kReproducible = false;

  static std::string name() { return "Cuda" + Ranks::name() + Sizes::kName; }
  static void run(const RankBody& body) {
    Ranks::run([&](Communicator& comm) {
      comm.set_deadline(std::chrono::seconds(120));  // a peer may be compiling
      body(comm);
    });
  }
  static std::shared_ptr<Mesh> mesh(Communicator& /*comm*/, const MeshOptions& options) {
    static_assert(std::is_same_v<Ranks, MpiRanks>);
    return kept_meshes.get(options);
  }
  static CacheOptions small() { return small_cache(Sizes::kSmall); }
  static std::vector<ContractShape> shapes() { return Sizes::shapes(); }
  static std::vector<Dtype> stored() { return {Sizes::kSmall.dtype}; }
};

/// The plain kernel; and the random cases, which draw their own sizes.
struct Float32Sizes {
  static constexpr const char* kName = "Float32";
  static constexpr int kRandomCases = 2;
  static constexpr ContractShape kSmall = kSmallShape;
  static std::vector<ContractShape> shapes() { return {{8, 1, 33, 7, 1}, {14, 2, 128, 64, 16}}; }
};
/// Tensor cores from here on: one query head per KV head.
struct Float16Sizes {
  static constexpr const char* kName = "Float16";
  static constexpr int kRandomCases = 0;
  static constexpr ContractShape kSmall{2, 2, 64, 64, 4, Dtype::kFloat16};
  static std::vector<ContractShape> shapes() {
    return {{4, 1, 64, 64, 16, Dtype::kFloat16}, {8, 1, 128, 128, 1, Dtype::kFloat16}};
  }
};
/// Groups of four and eight.
struct BFloat16Sizes {
  static constexpr const char* kName = "BFloat16";
  static constexpr int kRandomCases = 0;
  static constexpr ContractShape kSmall{8, 2, 128, 128, 4, Dtype::kBFloat16};
  static std::vector<ContractShape> shapes() {
    return {{8, 1, 192, 128, 64, Dtype::kBFloat16},
            {8, 2, 128, 128, 16, Dtype::kBFloat16},
            {14, 2, 64, 128, 7, Dtype::kBFloat16},
            {4, 4, 256, 256, 16, Dtype::kBFloat16}};
  }
};

/// A place as a value: a suite with it as parameter is compiled once for all places.
struct Place {
  std::string name;
  DeviceChoice device;
  int random_mods;
  std::uint64_t random_cases;
  bool reproducible;
  void (*run)(const RankBody& body);
  /// A mesh over the ranks of `run`, to which it passed `comm`; tests on GPUs may share it.
  std::shared_ptr<Mesh> (*mesh)(Communicator& comm, const MeshOptions& options);
  CacheOptions (*small)();
  std::vector<ContractShape> (*shapes)();
  std::vector<Dtype> (*stored)();
};
inline void PrintTo(const Place& place, std::ostream* out) { *out << place.name; }

template <class Type>
Place place_of() {
  return {.name = Type::name(),
          .device = Type::kDevice,
          .random_mods = Type::kRandomMods,
          .random_cases = Type::kRandomCases,
          .reproducible = Type::kReproducible,
          .run = &Type::run,
          .mesh = &Type::mesh,
          .small = &Type::small,
          .shapes = &Type::shapes,
          .stored = &Type::stored};
}
/// The places of a list of types: INSTANTIATE_TEST_SUITE_P(..., each_place(Types()), param_name).
template <class... Types>
auto each_place(testing::internal::ProxyTypeList<Types...>) {
  return testing::Values(place_of<Types>()...);
}

/// Names a typed suite's cases after their places: INSTANTIATE_TYPED_TEST_SUITE_P(..., PlaceNames).
struct PlaceNames {
  template <class Place>
  static std::string GetName(int) {
    return Place::name();
  }
};

using LoopbackPlaces =
    testing::Types<OnCpu<LoopbackRanks<1>>, OnCpu<LoopbackRanks<2>>, OnCpu<LoopbackRanks<3>>,
                   OnCpu<LoopbackRanks<4>>, OnCpu<LoopbackRanks<8>>>;
using MpiPlaces = testing::Types<OnCpu<MpiRanks>>;
using CudaPlaces = testing::Types<OnCuda<MpiRanks, Float32Sizes>, OnCuda<MpiRanks, Float16Sizes>,
                                  OnCuda<MpiRanks, BFloat16Sizes>, OnCuda<MpiRanks, LatentSizes>,
                                  OnCuda<MpiRanks, Float8Sizes>>;
/// Other formats of pages; a cache's suites run over each.
using LoopbackFormats =
    testing::Types<OnCpu<LoopbackRanks<3>, LatentSizes>, OnCpu<LoopbackRanks<2>, Float8Sizes>,
                   OnCpu<LoopbackRanks<4>, Float8HeadSizes>>;
using CudaFormats = testing::Types<OnCuda<MpiRanks, Float8HeadSizes>>;
using MpiFormats = testing::Types<OnCpu<MpiRanks, LatentSizes>, OnCpu<MpiRanks, Float8Sizes>,
                                  OnCpu<MpiRanks, Float8HeadSizes>>;
/// Several groups of layers in one cache.
using LoopbackGroups = testing::Types<GroupsOnCpu<LoopbackRanks<1>>, GroupsOnCpu<LoopbackRanks<3>>>;
using MpiGroups = testing::Types<GroupsOnCpu<MpiRanks>>;

}  // namespace kvmesh::test
