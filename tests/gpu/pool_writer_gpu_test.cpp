// append on the device leaves the same bytes as on the CPU.
#include <gtest/gtest.h>

#include "kernels/cuda/pool/pool_writer.hpp"
#include "tests/gpu/device_tensor.hpp"
#include "tests/gpu/gpu_support.hpp"
#include "tests/support/owned_tensor.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

constexpr Dtype kAllDtypes[] = {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16};
constexpr std::int64_t kHeads = 3, kPages = 9, kPageSize = 16;

struct Pool {
  Pool(Dtype dtype, std::int64_t k_dim, std::int64_t v_dim, const Layout& layout = {})
      : k(dtype, {kPages, kHeads, kPageSize, k_dim}, layout),
        v(dtype, {kPages, kHeads, kPageSize, v_dim}, layout) {}
  KvPool view() { return {k.view(), v.view()}; }
  PagePlanes planes() { return {k.view(), v.view()}; }
  friend bool operator==(const Pool&, const Pool&) = default;
  OwnedTensor k, v;
};

void fill(OwnedTensor& tensor, Random& random) {
  for (std::int64_t a = 0; a < tensor.size(0); ++a) {
    for (std::int64_t b = 0; b < tensor.size(1); ++b) {
      for (std::int64_t d = 0; d < tensor.size(2); ++d) tensor.set(random.real(), a, b, d);
    }
  }
}

class AppendOnDevice : public testing::TestWithParam<std::tuple<Dtype, Dtype>> {};

TEST_P(AppendOnDevice, EqualsTheCpu) {
  const auto [fresh, dtype] = GetParam();
  for (const auto& [k_dim, v_dim] : {std::pair{64, 128}, {24, 40}, {7, 5}}) {
    for (std::int64_t gap : {0, 3, 8}) {
      Random random(11);
      const std::int64_t tokens = 50;
      OwnedTensor k(fresh, {tokens, kHeads, k_dim}, {.gap = gap});
      OwnedTensor v(fresh, {tokens, kHeads, v_dim}, {.gap = gap});
      fill(k, random);
      fill(v, random);
      std::vector<TokenSlot> slots;
      for (std::int32_t t = 0; t < tokens; ++t) {
        slots.push_back({t % 5 == 0 ? -1 : t * 2 / int{kPageSize}, t * 2 % int{kPageSize}});
      }
      Pool expected(dtype, k_dim, v_dim, {.gap = gap}), pool(dtype, k_dim, v_dim, {.gap = gap});
      const DeviceTensor device_k(k.view()), device_v(v.view());
      const DeviceTensor pool_k(pool.k.view()), pool_v(pool.v.view());
      const cuda::DeviceBuffer device_slots = cuda::upload(std::span<const TokenSlot>(slots));
      const Stream stream;
      cuda::PoolWriter writer(kernels());
      const KvPool device_pool{pool_k.view(), pool_v.view()};
      cuda::PoolWriter::check(device_pool);
      writer.append(device_pool, device_k.view(), device_v.view(), device_slots.as<TokenSlot>(),
                    stream);
      stream.wait();
      pool_k.download(pool.k.view().data);
      pool_v.download(pool.v.view().data);
      ThreadPool threads(1);
      append(expected.view(), k.view(), v.view(), slots, threads);
      EXPECT_TRUE(pool == expected)
          << name(fresh) << " to " << name(dtype) << ", dims " << k_dim << ", gap " << gap;
    }
  }
}

TEST(PoolWriterOnDevice, QuantisesAsTheCpu) {
  const auto run = [](Dtype fresh, int k_dim, int v_dim, const KvScales& scales) {
    Random random(6);
    const std::int64_t tokens = 24;
    OwnedTensor k(fresh, {tokens, kHeads, k_dim}), v(fresh, {tokens, kHeads, v_dim}, {.gap = 3});
    fill(k, random);
    fill(v, random);
    std::vector<TokenSlot> slots;
    for (std::int32_t t = 0; t < tokens; ++t) slots.push_back({t % 3 == 0 ? -1 : t / 4, t % 4});
    const AttentionShape shape{
        .kv_heads = kHeads, .k_dim = k_dim, .v_dim = v_dim, .page_size = kPageSize};
    const KvFormat format{.dtype = Dtype::kFloat8E4M3, .scales = scales};
    std::vector<OwnedTensor> expected;
    for (const PagePlane& plane : make_page_format(shape, format).planes) {
      expected.emplace_back(plane.dtype,
                            std::vector<std::int64_t>{kPages, kHeads, kPageSize, plane.elements});
    }
    std::vector<DeviceTensor> device;
    PagePlanes planes, host_planes;
    for (OwnedTensor& tensor : expected) device.emplace_back(tensor.view());
    for (DeviceTensor& tensor : device) planes.push_back(tensor.view());
    for (OwnedTensor& tensor : expected) host_planes.push_back(tensor.view());
    const DeviceTensor device_k(k.view()), device_v(v.view());
    const cuda::DeviceBuffer device_slots = cuda::upload(std::span<const TokenSlot>(slots));
    const Stream stream;
    cuda::PoolWriter writer(kernels());
    std::vector<float> of_heads = scales.k_heads;
    of_heads.insert(of_heads.end(), scales.v_heads.begin(), scales.v_heads.end());
    const TensorView host_scales = tensor(of_heads.data(), {std::ssize(of_heads) / kHeads, kHeads});
    const DeviceTensor device_scales(host_scales);
    const KvPool device_pool = kv_pool(shape, format, planes, device_scales.view());
    cuda::PoolWriter::check(device_pool);
    writer.append(device_pool, device_k.view(), device_v.view(), device_slots.as<TokenSlot>(),
                  stream);
    stream.wait();
    ThreadPool threads(1);
    append(kv_pool(shape, format, host_planes, host_scales), k.view(), v.view(), slots, threads);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      OwnedTensor found = expected[i];
      device[i].download(found.view().data);
      EXPECT_TRUE(found == expected[i]) << name(fresh) << ", plane " << i << ", dim " << k_dim;
    }
  };
  for (Dtype fresh : kAllDtypes) {
    for (const auto& [k_dim, v_dim] : {std::pair{128, 64}, {33, 5}}) {
      run(fresh, k_dim, v_dim, {});
      run(fresh, k_dim, v_dim, {.kind = ScaleKind::kPerTensor, .k = 0.002f, .v = 0.5f});
      KvScales heads{.kind = ScaleKind::kPerHead};
      for (int head = 0; head < kHeads; ++head) {
        heads.k_heads.push_back(0.002f * static_cast<float>(1 + head));
        heads.v_heads.push_back(0.5f / static_cast<float>(1 + head));
      }
      run(fresh, k_dim, v_dim, heads);
    }
  }
}

TEST(PoolWriterOnDevice, WritesLatentPages) {
  for (std::int64_t dim : {576, 33}) {
    Random random(5);
    const std::int64_t tokens = 20;
    OwnedTensor k(Dtype::kBFloat16, {tokens, kHeads, dim});
    fill(k, random);
    std::vector<TokenSlot> slots;
    for (std::int32_t t = 0; t < tokens; ++t) slots.push_back({t / 5, t % 5});
    OwnedTensor expected(Dtype::kBFloat16, {kPages, kHeads, kPageSize, dim});
    const auto latent = [&](const TensorView& plane) {
      return kv_pool({.v_dim = static_cast<int>(dim) - 1}, {.kind = PageKind::kLatent}, {plane});
    };
    const DeviceTensor device_k(k.view()), plane(expected.view());
    const cuda::DeviceBuffer device_slots = cuda::upload(std::span<const TokenSlot>(slots));
    const Stream stream;
    cuda::PoolWriter writer(kernels());
    cuda::PoolWriter::check(latent(plane.view()));
    writer.append(latent(plane.view()), device_k.view(), {}, device_slots.as<TokenSlot>(), stream);
    stream.wait();
    OwnedTensor found = expected;
    plane.download(found.view().data);
    ThreadPool threads(1);
    append(latent(expected.view()), k.view(), {}, slots, threads);
    EXPECT_TRUE(found == expected) << "dim " << dim;
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, AppendOnDevice,
                         testing::Combine(testing::ValuesIn(kAllDtypes),
                                          testing::ValuesIn(kAllDtypes)),
                         [](const auto& param) {
                           return std::string(name(std::get<0>(param.param))) + "_to_" +
                                  std::string(name(std::get<1>(param.param)));
                         });

}  // namespace
}  // namespace kvmesh::test
