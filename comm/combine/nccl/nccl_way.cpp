// The combine on GPUs: kernels around NCCL's messages.
#include "comm/combine/nccl/nccl_way.hpp"

#include <algorithm>
#include <utility>

#include "comm/combine/nccl/device_combine_params.hpp"
#include "comm/nccl/state.hpp"
#include "core/check.hpp"
#include "core/cuda/device_array.hpp"
#include "core/cuda/device_scope.hpp"

namespace kvmesh {
namespace {

// cudaMemcpyAsync's, from pageable memory.
constexpr std::size_t kTakenAtOnce = 64 << 10;

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

class NcclWay : public CombineWay {
 public:
  NcclWay(NcclGroup& group, std::vector<Rank> members)
      : nccl_(&group.state()), members_(std::move(members)) {
    if (members_.empty()) {
      for (int r = 0; r < nccl_->size; ++r) members_.push_back(Rank{r});
    }
    const auto me = std::ranges::find(members_, nccl_->rank);
    require(me != members_.end(), "combine: rank {} is not a member", nccl_->rank.value);
    rank_ = static_cast<int>(me - members_.begin());
  }

  WayKind kind() const override { return WayKind::kNccl; }
  void plan(const CombineShape& shape, const CombineOptions& options, Stream stream) override;
  void check_run(const Partial& mine, const CombineOutput& output) const override;
  void run(const Partial& mine, const CombineOutput& output, Stream stream) override;
  CombineStrategy strategy() const override { return plan_.strategy; }
  std::uint64_t generation() const override { return generation_; }
  std::size_t workspace_bytes() const override {
    return table_.size_bytes() + send_.size_bytes() + receive_.size_bytes() + lses_.size_bytes();
  }

 private:
  bool makes_other_messages(const DeviceCombinePlan& next) const;
  void reserve();
  void upload(cudaStream_t stream);

  void all_to_all(const cuda::CombineParams& params, cudaStream_t stream);
  void reduce(const cuda::CombineParams& params, cudaStream_t stream);
  void gather_lses(const cuda::CombineParams& params, cudaStream_t stream);

  int ranks() const { return static_cast<int>(members_.size()); }

  NcclGroup::State* nccl_;     // stays where it is when the group is moved
  std::vector<Rank> members_;  // of the group
  int rank_ = 0;               // among the members
  DeviceCombinePlan plan_;
  bool is_planned_ = false;
  std::uint64_t generation_ = 0;
  std::vector<std::byte> host_table_;  // as uploaded
  cuda::DeviceArray<std::byte> table_;
  cuda::DeviceArray<float> send_;
  cuda::DeviceArray<float> receive_;
  /// [ranks][rows] gathered (or [rows]: maxima), then [rows]: my own.
  cuda::DeviceArray<float> lses_;
};

void NcclWay::plan(const CombineShape& shape, const CombineOptions& options, Stream stream) {
  DeviceCombinePlan next = plan_device_combine(shape, options, rank_, ranks());
  require(ranks() == nccl_->size || next.strategy == CombineStrategy::kAllToAll,
          "combine: some ranks of a group have no strategy {}", name(next.strategy));
  if (is_planned_ && next == plan_) return;
  const DeviceScope scope(nccl_->device);
  if (!is_planned_ || makes_other_messages(next)) ++generation_;
  is_planned_ = false;  // until all is where the plan says
  plan_ = std::move(next);
  reserve();
  upload(native(stream));
  is_planned_ = true;
}

/// Returns true if a graph that was captured with the current plan would send other messages than
/// the next plan needs.
bool NcclWay::makes_other_messages(const DeviceCombinePlan& next) const {
  DeviceCombinePlan as_before = next;
  as_before.token_places = plan_.token_places;  // only these are read on the device
  return as_before != plan_ || next.token_places.empty() != plan_.token_places.empty();
}

void NcclWay::reserve() {
  bool moved = false;
  const auto grow = [&](auto& array, std::int64_t count) {
    moved |= array.reserve(static_cast<std::size_t>(count));
  };
  const bool packs = plan_.strategy == CombineStrategy::kAllToAll;
  grow(table_, std::ssize(device_table(plan_)));
  grow(send_, packs ? plan_.sent_floats : plan_.reduced_floats());
  grow(receive_, packs ? plan_.received_floats : plan_.block_floats());
  if (!packs) grow(lses_, (plan_.ranks + 1) * plan_.rows());
  if (!moved) return;
  host_table_.clear();  // what was uploaded is gone
  ++generation_;
}

void NcclWay::upload(cudaStream_t stream) {
  std::vector<std::byte> table = device_table(plan_);
  if (table == host_table_) return;
  // From pageable memory: the runtime has taken the bytes when it returns. It may wait for the
  // stream until it can, so more than it takes at once is waited for here, where waits end.
  if (table.size() > kTakenAtOnce) nccl_->wait(stream, "combine: plan");
  check(cudaMemcpyAsync(table_.data(), table.data(), table.size(), cudaMemcpyHostToDevice, stream),
        "combine: upload the plan");
  host_table_ = std::move(table);
}

void NcclWay::check_run(const Partial& mine, const CombineOutput& output) const {
  require(is_planned_, "combine: run without a plan");
  check_tensors(mine, output, plan_.shape, plan_.block(plan_.rank), DeviceKind::kCuda);
  require(mine.lse.size(1) <= 1 || mine.lse.stride(1) == 1,
          "combine: the last dimension of the partial's lse has stride {}", mine.lse.stride(1));
}

void NcclWay::run(const Partial& mine, const CombineOutput& output, Stream stream) {
  nccl_->require_whole("combine");
  if (plan_.rows() == 0) return;
  const DeviceScope scope(nccl_->device);
  const DeviceCombineMemory memory{table_.data(), send_.data(), receive_.data(), lses_.data()};
  const cuda::CombineParams params = device_params(plan_, memory, mine, output);
  if (plan_.strategy == CombineStrategy::kAllToAll || plan_.ranks == 1) {
    all_to_all(params, native(stream));
  } else {
    reduce(params, native(stream));
  }
}

void NcclWay::all_to_all(const cuda::CombineParams& params, cudaStream_t stream) {
  const auto floats = [&](const RowMessage& message) {
    return static_cast<std::size_t>(message.rows * (plan_.shape.dim + 1));
  };
  const auto is_any = [](const std::vector<RowMessage>& messages) {
    return std::any_of(messages.begin(), messages.end(),
                       [](const RowMessage& message) { return message.rows > 0; });
  };
  if (is_any(plan_.sent)) check(cuda::launch_pack(params, stream), "combine: pack");
  if (is_any(plan_.sent) || is_any(plan_.received)) {
    nccl_->grouped("combine: partials to their owners", [&] {
      ncclResult_t code = ncclSuccess;
      for (int r = 0; r < plan_.ranks && NcclGroup::State::is_good(code); ++r) {
        if (r == plan_.rank) continue;
        const RowMessage& out = plan_.sent[static_cast<std::size_t>(r)];
        const RowMessage& in = plan_.received[static_cast<std::size_t>(r)];
        const int peer = members_[static_cast<std::size_t>(r)].value;
        if (out.rows > 0) {
          code = ncclSend(send_.data() + out.offset, floats(out), ncclFloat, peer, nccl_->comm,
                          stream);
        }
        if (in.rows > 0 && NcclGroup::State::is_good(code)) {
          code = ncclRecv(receive_.data() + in.offset, floats(in), ncclFloat, peer, nccl_->comm,
                          stream);
        }
      }
      return code;
    });
  }
  check(cuda::launch_merge(params, stream), "combine: merge");
}

void NcclWay::reduce(const cuda::CombineParams& params, cudaStream_t stream) {
  gather_lses(params, stream);
  check(cuda::launch_rescale(params, stream), "combine: rescale");
  const auto block = static_cast<std::size_t>(plan_.block_floats());
  if (plan_.scatter == Scatter::kAll) {
    nccl_->poll(ncclAllReduce(send_.data(), receive_.data(), block, ncclFloat, ncclSum, nccl_->comm,
                              stream),
                "combine: sums of all rows");
  } else {
    nccl_->poll(ncclReduceScatter(send_.data(), receive_.data(), block, ncclFloat, ncclSum,
                                  nccl_->comm, stream),
                "combine: sums of rows to their owners");
  }
  check(cuda::launch_finish(params, stream), "combine: finish");
}

/// Gathers all ranks' LSEs, or their maximum. NCCL needs them in one piece.
void NcclWay::gather_lses(const cuda::CombineParams& params, cudaStream_t stream) {
  const auto rows = static_cast<std::size_t>(plan_.rows());
  const float* mine = params.tensors.lse;
  const std::int64_t stride = params.tensors.lse_token_stride;
  if (stride != plan_.shape.heads && plan_.shape.tokens > 1) {
    float* packed = lses_.data() + static_cast<std::size_t>(plan_.ranks) * rows;
    const auto row_bytes = static_cast<std::size_t>(plan_.shape.heads) * sizeof(float);
    check(cudaMemcpy2DAsync(
              packed, row_bytes, mine, static_cast<std::size_t>(stride) * sizeof(float), row_bytes,
              static_cast<std::size_t>(plan_.shape.tokens), cudaMemcpyDeviceToDevice, stream),
          "combine: LSEs in one piece");
    mine = packed;
  }
  if (reduces_maxima(plan_)) {
    nccl_->poll(ncclAllReduce(mine, lses_.data(), rows, ncclFloat, ncclMax, nccl_->comm, stream),
                "combine: largest LSEs");
  } else {
    nccl_->poll(ncclAllGather(mine, lses_.data(), rows, ncclFloat, nccl_->comm, stream),
                "combine: LSEs");
  }
}

}  // namespace

std::unique_ptr<CombineWay> make_nccl_way(NcclGroup& group, std::vector<Rank> members) {
  return std::make_unique<NcclWay>(group, std::move(members));
}

}  // namespace kvmesh
