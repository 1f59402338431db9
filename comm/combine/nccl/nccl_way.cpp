// The combine on GPUs: kernels around NCCL's messages.
#include "comm/combine/nccl/nccl_way.hpp"

#include <algorithm>
#include <utility>

#include "comm/combine/nccl/device_combine_params.hpp"
#include "comm/combine/nccl/row_transfer.hpp"
#include "comm/nccl/state.hpp"
#include "core/check.hpp"
#include "core/cuda/check.hpp"
#include "core/cuda/device_scope.hpp"

namespace kvmesh {
namespace {

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
  std::optional<Partial> sent_tensors() const override;
  CombineStrategy strategy() const override { return rows_.current().strategy; }
  std::uint64_t generation() const override { return rows_.generation(); }
  std::size_t workspace_bytes() const override { return rows_.workspace_bytes(); }

 private:
  void all_to_all(const cuda::CombineParams& params, cudaStream_t stream);
  void reduce(const cuda::CombineParams& params, cudaStream_t stream);
  void gather_lses(const cuda::CombineParams& params, cudaStream_t stream);

  int ranks() const { return static_cast<int>(members_.size()); }

  NcclGroup::State* nccl_;     // stays where it is when the group is moved
  std::vector<Rank> members_;  // of the group
  int rank_ = 0;               // among the members
  PlannedRows rows_;
};

void NcclWay::plan(const CombineShape& shape, const CombineOptions& options, Stream stream) {
  DeviceCombinePlan next = plan_device_combine(shape, options, rank_, ranks());
  require(ranks() == nccl_->size || next.packs(),
          "combine: some ranks of a group have no strategy {}", name(next.strategy));
  const DeviceScope scope(nccl_->device);
  rows_.plan(std::move(next), stream, [&] { nccl_->wait(native(stream), "combine: plan"); });
}

void NcclWay::check_run(const Partial& mine, const CombineOutput& output) const {
  require(rows_.is_planned(), "combine: run without a plan");
  const DeviceCombinePlan& plan = rows_.current();
  check_tensors(mine, output, plan.shape, plan.block(plan.rank), DeviceKind::kCuda);
  require(mine.lse.size(1) <= 1 || mine.lse.stride(1) == 1,
          "combine: the last dimension of the partial's lse has stride {}", mine.lse.stride(1));
}

void NcclWay::run(const Partial& mine, const CombineOutput& output, Stream stream) {
  nccl_->require_whole("combine");
  const DeviceCombinePlan& plan = rows_.current();
  if (plan.rows() == 0) return;
  const DeviceScope scope(nccl_->device);
  const cuda::CombineParams params = device_params(plan, rows_.memory(), mine, output);
  if (plan.packs() || plan.ranks == 1) {
    all_to_all(params, native(stream));
  } else {
    reduce(params, native(stream));
  }
}

std::optional<Partial> NcclWay::sent_tensors() const {
  const DeviceCombinePlan& plan = rows_.current();
  if (!plan.is_tensor()) return std::nullopt;
  return partial_in_messages(plan, rows_.memory().send_buffer, {DeviceKind::kCuda, nccl_->device});
}

void NcclWay::all_to_all(const cuda::CombineParams& params, cudaStream_t stream) {
  const DeviceCombineMemory memory = rows_.memory();
  const auto is_any = [](const RowMessage& message) { return message.rows > 0; };
  const bool is_packed = params.tensors.o == memory.send_buffer;  // it lies in sent_tensors()
  if (!is_packed && std::ranges::any_of(rows_.current().sent, is_any)) {
    check(cuda::launch_pack(params, stream), "combine: pack");
  }
  transfer_rows(*nccl_, members_, rows_.current(), memory.send_buffer, memory.receive_buffer,
                {stream}, "combine: partials to their owners");
  check(cuda::launch_merge(params, stream), "combine: merge");
}

void NcclWay::reduce(const cuda::CombineParams& params, cudaStream_t stream) {
  gather_lses(params, stream);
  check(cuda::launch_rescale(params, stream), "combine: rescale");
  const float* send = rows_.memory().send_buffer;
  float* receive = rows_.memory().receive_buffer;
  const auto block = static_cast<std::size_t>(rows_.current().block_floats());
  if (rows_.current().scatter == Scatter::kAll) {
    nccl_->poll(ncclAllReduce(send, receive, block, ncclFloat, ncclSum, nccl_->comm, stream),
                "combine: sums of all rows");
  } else {
    nccl_->poll(ncclReduceScatter(send, receive, block, ncclFloat, ncclSum, nccl_->comm, stream),
                "combine: sums of rows to their owners");
  }
  check(cuda::launch_finish(params, stream), "combine: finish");
}

/// Gathers all ranks' LSEs, or their maximum. NCCL needs them in one piece.
void NcclWay::gather_lses(const cuda::CombineParams& params, cudaStream_t stream) {
  const DeviceCombinePlan& plan = rows_.current();
  float* lses = rows_.memory().lses;
  const auto rows = static_cast<std::size_t>(plan.rows());
  const float* mine = params.tensors.lse;
  const std::int64_t stride = params.tensors.lse_token_stride;
  if (stride != plan.shape.heads && plan.shape.tokens > 1) {
    float* packed = lses + static_cast<std::size_t>(plan.ranks) * rows;
    const auto row_bytes = static_cast<std::size_t>(plan.shape.heads) * sizeof(float);
    check(cudaMemcpy2DAsync(
              packed, row_bytes, mine, static_cast<std::size_t>(stride) * sizeof(float), row_bytes,
              static_cast<std::size_t>(plan.shape.tokens), cudaMemcpyDeviceToDevice, stream),
          "combine: LSEs in one piece");
    mine = packed;
  }
  if (reduces_maxima(plan)) {
    nccl_->poll(ncclAllReduce(mine, lses, rows, ncclFloat, ncclMax, nccl_->comm, stream),
                "combine: largest LSEs");
  } else {
    nccl_->poll(ncclAllGather(mine, lses, rows, ncclFloat, nccl_->comm, stream), "combine: LSEs");
  }
}

}  // namespace

std::unique_ptr<CombineWay> make_nccl_way(NcclGroup& group, std::vector<Rank> members) {
  return std::make_unique<NcclWay>(group, std::move(members));
}

}  // namespace kvmesh
