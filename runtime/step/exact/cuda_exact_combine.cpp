#include "runtime/step/exact/cuda_exact_combine.hpp"

#include <optional>

#include "comm/combine/choice/combine_ways.hpp"
#include "comm/combine/host/host_plan.hpp"
#include "comm/combine/nccl/row_transfer.hpp"
#include "comm/combine/way_strategies.hpp"
#include "core/check.hpp"
#include "core/cuda/memory.hpp"
#include "kernels/cuda/attend/cuda_attend.hpp"

namespace kvmesh {
namespace {

constexpr std::string_view kOperation = "combine: exact rows to their owners";

bool goes_by_host(Mesh& mesh, const CombineOptions& options) {
  const std::optional<WayKind> way = options.way ? options.way : way_of_environment();
  return mesh.device_group().nccl() == nullptr || way == WayKind::kStaged;
}

std::int64_t row_floats(const AttentionShape& shape) {
  return exact_row_bytes(shape.v_dim) / static_cast<std::int64_t>(sizeof(float));
}

void refuse_capture(Stream stream) {
  if (stream.handle == nullptr || !cuda_memory::is_captured(stream)) return;
  throw Unsupported(
      "run: this reproducible step goes by way of the host, as its ranks have no NCCL group or the "
      "way staged was requested, so no graph has it");
}

}  // namespace

CudaExactCombine::CudaExactCombine(Mesh& mesh, cuda::KernelStore& kernels,
                                   std::shared_ptr<RowExchange> host_rows,
                                   const ExactCombineOptions& options)
    : mesh_(mesh),
      host_rows_(std::move(host_rows)),
      options_(options.combine),
      shape_(options.shape),
      has_limits_(options.has_limits),
      by_host_(goes_by_host(mesh, options.combine)),
      merge_(kernels, options.shape.v_dim) {
  static_cast<void>(resolve_strategy(WayKind::kHost, {}, options_, mesh.kv_comm().size()));
}

void CudaExactCombine::plan(std::int64_t tokens, const Participation* mask,
                            const PlanDigest& digest, Stream stream) {
  const CombineShape shape{tokens, shape_.q_heads, shape_.v_dim};
  CombineOptions options = options_;
  std::optional<Participation> padded;
  if (follows_mask()) {
    if (mask->tokens() < tokens) padded = mask->padded(tokens);
    options.participation = padded ? &*padded : mask;
  } else if (options.scatter == Scatter::kOwner) {
    options.scatter = Scatter::kAll;
  }
  if (by_host_) digest_ = digest_of(shape, options, digest);
  const Communicator& comm = mesh_.kv_comm();
  rows_.plan(plan_device_rows(shape, options, row_floats(shape_), comm.rank().value, comm.size()),
             stream, [&] { mesh_.wait(stream, "combine: plan"); });
}

void CudaExactCombine::check_run(const CombineOutput& output) const {
  const DeviceCombinePlan& plan = rows_.current();
  check_output_tensors(output, plan.shape, plan.block(plan.rank), DeviceKind::kCuda);
}

void CudaExactCombine::run(const CombineOutput& output, const float* sinks, Stream stream) {
  const DeviceCombineMemory memory = rows_.memory();
  if (by_host_) {
    exchange_by_host(stream);
  } else {
    transfer_rows(mesh_.device_group().nccl()->state(), {}, rows_.current(), memory.send_buffer,
                  memory.receive_buffer, stream, kOperation);
  }
  merge_.launch({.places = rows_.places(),
                 .mine = memory.send_buffer,
                 .received = memory.receive_buffer,
                 .sinks = sinks,
                 .out = cuda::attend_output({output.o, output.lse})},
                static_cast<cudaStream_t>(stream.handle));
}

void CudaExactCombine::exchange_by_host(Stream stream) {
  refuse_capture(stream);
  mesh_.wait(stream, kOperation);
  host_rows_->identify(digest_);
  const DeviceCombinePlan& plan = rows_.current();
  const DeviceCombineMemory memory = rows_.memory();
  const auto each_peer = [&](const auto& visit) {
    for (int peer = 0; peer < plan.ranks; ++peer) {
      const auto at = static_cast<std::size_t>(peer);
      if (peer != plan.rank) visit(peer, plan.sent[at], plan.received[at]);
    }
  };
  const auto bytes = [](const RowBuffer& buffer) {
    return static_cast<std::size_t>(buffer.floats()) * sizeof(float);
  };
  each_peer([&](int peer, const RowMessage& out, const RowMessage& in) {
    host_rows_->incoming(peer).resize(in.rows * plan.row_floats);
    RowBuffer& outgoing = host_rows_->outgoing(peer);
    outgoing.resize(out.rows * plan.row_floats);
    copy_bytes(outgoing.data(), memory.send_buffer + out.offset, bytes(outgoing));
  });
  host_rows_->exchange(kOperation);
  each_peer([&](int peer, const RowMessage&, const RowMessage& in) {
    RowBuffer& incoming = host_rows_->incoming(peer);
    copy_bytes(memory.receive_buffer + in.offset, incoming.data(), bytes(incoming));
  });
}

}  // namespace kvmesh
