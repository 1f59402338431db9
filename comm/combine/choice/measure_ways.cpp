#include "comm/combine/choice/measure_ways.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>
#include <memory>
#include <vector>

#include "comm/combine/choice/choose_way.hpp"
#include "comm/combine/choice/combine_ways.hpp"
#include "core/cuda/memory.hpp"
#include "kvmesh/device_memory.hpp"

namespace kvmesh {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::string_view kOperation = "measure the combine ways";
constexpr std::array kScatters{Scatter::kHeads, Scatter::kAll};
constexpr std::array<std::int64_t, 3> kRows{32, 512, 4096};
constexpr std::int64_t kDim = 128;

/// About as many rows as the size's, with heads that all ranks can share evenly; more rows from
/// size to size.
CombineShape measured_shape(std::size_t size, int ranks) {
  constexpr std::int64_t kLeastHeads = 8;
  const std::int64_t heads = (kLeastHeads + ranks - 1) / ranks * ranks;
  const std::int64_t least = static_cast<std::int64_t>(size) + 1;
  return {.tokens = std::max(least, kRows[size] / heads), .heads = heads, .dim = kDim};
}

std::vector<WayStrategy> measured_ways(const CombineMeans& means, std::size_t size,
                                       Scatter scatter) {
  return ways_to_choose_from(means, measured_shape(size, means.ranks), {.scatter = scatter});
}

DeviceMemory zeros(Device device, std::int64_t count) {
  const std::vector<float> values(static_cast<std::size_t>(count));
  DeviceMemory memory(device, values.size() * sizeof(float));
  copy_bytes(memory.data(), values.data(), memory.size_bytes());
  return memory;
}

/// The tensors of a combine of one shape, and the clock.
class TimedCombine {
 public:
  TimedCombine(DeviceGroup& group, const CombineShape& shape, Scatter scatter, Stream stream)
      : group_(group),
        shape_(shape),
        scatter_(scatter),
        stream_(stream),
        own_(block_of(shape, scatter, group.comm().rank().value, group.comm().size())),
        o_(zeros(group.device(), shape.rows() * shape.dim)),
        lse_(zeros(group.device(), shape.rows())),
        out_(zeros(group.device(), own_.rows() * shape.dim)) {}

  /// Returns the time of one combine on the slowest rank. Collective.
  double microseconds(CombineWay& way, CombineStrategy strategy) {
    constexpr double kTurn = 1e-3, kMostInAll = 10e-3;  // seconds
    way.plan(shape_, {.scatter = scatter_, .strategy = strategy, .way = way.kind()}, stream_);
    seconds_of(2, way);  // connects the ranks, loads kernels
    // The ranks must agree on how often they run.
    const double one = slowest(seconds_of(1, way));
    const int runs = std::clamp(static_cast<int>(kTurn / one), 1, 16);
    std::vector<double> turns(std::clamp(static_cast<std::size_t>(kMostInAll / (one * runs)),
                                         std::size_t{1}, std::size_t{5}));
    for (double& turn : turns) turn = seconds_of(runs, way) / runs;
    const auto median = turns.begin() + std::ssize(turns) / 2;
    std::ranges::nth_element(turns, median);
    return slowest(*median) * 1e6;
  }

 private:
  double seconds_of(int runs, CombineWay& way) {
    const Device device = group_.device();
    const Partial mine{
        {o_.data(), Dtype::kFloat32, {shape_.tokens, shape_.heads, shape_.dim}, device},
        {lse_.data(), Dtype::kFloat32, {shape_.tokens, shape_.heads}, device}};
    const CombineOutput output{.o = {out_.data(),
                                     Dtype::kFloat32,
                                     {own_.tokens.size(), own_.heads.size(), shape_.dim},
                                     device}};
    way.check_run(mine, output);
    barrier(group_.comm(), kOperation);
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < runs; ++i) way.run(mine, output, stream_);
    group_.wait(stream_, kOperation);
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  double slowest(double seconds) {
    all_reduce_max(group_.comm(), std::span(&seconds, 1), kOperation);
    return seconds;
  }

  DeviceGroup& group_;
  CombineShape shape_;
  Scatter scatter_;
  Stream stream_;
  CombineBlock own_;
  DeviceMemory o_, lse_, out_;
};

cuda_memory::OwnedStream stream_of(Device device) {
  if (device.kind == DeviceKind::kCuda) return cuda_memory::make_stream(device.index);
  return nullptr;
}

/// Returns the rate in GB/s at which the slowest rank's GPU reads and writes its memory in a copy;
/// 0 on CPUs, and if a GPU has no room for the copies. Collective on GPUs.
double measured_read_gbs(DeviceGroup& group, Stream stream) {
  if (group.device().kind == DeviceKind::kCpu) return 0;
  constexpr std::size_t kBytes = std::size_t{128} << 20;  // more than a GPU's caches hold
  constexpr int kCopies = 16;
  double seconds = std::numeric_limits<double>::infinity();
  barrier(group.comm(), kOperation);  // ranks that share a GPU copy at the same time
  try {
    const DeviceMemory from(group.device(), kBytes), to(group.device(), kBytes);
    const auto seconds_of = [&](int copies) {
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < copies; ++i) {
        cuda_memory::copy_bytes_on(stream, to.data(), from.data(), kBytes);
      }
      group.wait(stream, kOperation);
      return std::chrono::duration<double>(Clock::now() - start).count();
    };
    seconds_of(1);
    seconds = seconds_of(kCopies);
  } catch (const OutOfMemory&) {  // the other ranks wait below
  }
  all_reduce_max(group.comm(), std::span(&seconds, 1), kOperation);
  return 2.0 * kCopies * static_cast<double>(kBytes) / seconds / 1e9;
}

/// The ways of a group, made when they are first used.
class MadeWays {
 public:
  explicit MadeWays(DeviceGroup& group) : ways_(group) {}
  CombineMeans means() const { return ways_.means(); }
  CombineWay& operator[](WayKind kind) {
    std::unique_ptr<CombineWay>& way = made_[static_cast<std::size_t>(kind)];
    if (!way) way = ways_.make(kind);
    return *way;
  }

 private:
  CombineWays ways_;
  std::array<std::unique_ptr<CombineWay>, kWayKinds> made_;
};

}  // namespace

bool has_choice_of_ways(DeviceGroup& group) {
  if (group.comm().size() == 1) return false;
  const CombineMeans means = CombineWays(group).means();
  return std::ranges::any_of(
      kScatters, [&](Scatter scatter) { return measured_ways(means, 0, scatter).size() > 1; });
}

WayTable measure_ways(DeviceGroup& group) {
  use_device(group.device());
  const auto stream = stream_of(group.device());
  MadeWays ways(group);
  const CombineMeans means = ways.means();
  WayTable table;
  table.read_gbs = measured_read_gbs(group, {stream.get()});
  for (const Scatter scatter : kScatters) {
    for (std::size_t size = 0; size < kRows.size(); ++size) {
      const std::vector<WayStrategy> choices = measured_ways(means, size, scatter);
      if (choices.size() < 2) continue;
      const CombineShape shape = measured_shape(size, means.ranks);
      TimedCombine combine(group, shape, scatter, {stream.get()});
      for (const WayStrategy& each : choices) {
        const double time = combine.microseconds(ways[each.way], each.strategy);
        table.add(each, scatter, {table_bytes(shape), time});
      }
      barrier(group.comm(), kOperation);  // no rank frees memory while others measure
    }
  }
  return table;
}

}  // namespace kvmesh
