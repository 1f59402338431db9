// The backend that runs on one GPU.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <vector>

#include "core/check.hpp"
#include "core/cuda/check.hpp"
#include "core/cuda/device_wait.hpp"
#include "kernels/cuda/attend/cuda_attend.hpp"
#include "kernels/cuda/load_built_kernels.hpp"
#include "kernels/cuda/plan/block_mask_builder.hpp"
#include "kernels/cuda/pool/cuda_move_stream.hpp"
#include "kernels/cuda/pool/pool_writer.hpp"
#include "kernels/cuda/pool/token_mover.hpp"
#include "runtime/step/backend.hpp"
#include "runtime/step/cuda_attend_options.hpp"
#include "runtime/step/device_mover.hpp"
#include "runtime/step/exact/cuda_exact_combine.hpp"
#include "runtime/step/exact/exact_step.hpp"
#include "runtime/step/sent_pages.hpp"
#include "runtime/step/step_combine.hpp"

namespace kvmesh {
namespace {

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

/// The state that all steps on the device share.
struct CudaContext {
  CudaContext(Mesh& owner, PageAllocator* allocator)
      : mesh(owner),
        kernels(mesh.device().index),
        writer(kernels),
        sent(allocator),
        ways(mesh.device_group()),
        exact_rows(std::make_shared<RowExchange>(mesh.kv_comm())) {
    cuda::load_built_kernels();
    kernels.before_loading([this] {
      refuse_in_capture();
      if (mesh.kv_parallel() > 1) wait_idle();
    });
  }

  /// Loading a kernel may wait for the device, which ends a capture.
  void refuse_in_capture() const {
    if (launching_on == nullptr) return;  // which cannot be captured
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(launching_on, &status), "asking whether a stream is captured");
    require(
        status == cudaStreamCaptureStatusNone,
        "run: the kernels for tensors of these dtypes and alignments are not loaded yet, and the "
        "stream is being captured: run the plan once with such tensors before");
  }

  void wait_idle() {
    mesh.wait_until(whole_device_done(mesh.device().index), "wait for the device");
  }

  Mesh& mesh;
  cudaStream_t launching_on = nullptr;  // during a part of a run
  cuda::KernelStore kernels;
  cuda::PoolWriter writer;
  cuda::PageLists pages;
  SentPages sent;  // what `pages` has
  CombineWays ways;
  std::shared_ptr<RowExchange> exact_rows;  // of all reproducible steps
};

/// Names the stream of a part of a run while it lasts.
class Launching {
 public:
  Launching(CudaContext& context, Stream stream) : context_(context) {
    context_.launching_on = native(stream);
  }
  ~Launching() { context_.launching_on = nullptr; }
  Launching(const Launching&) = delete;
  Launching& operator=(const Launching&) = delete;

 private:
  CudaContext& context_;
};

/// Attention sends the rows of steps up to this size itself. It must merge every row to do so,
/// which saves a kernel, and costs traffic that grows with the rows: on two H200s steps of 64 and
/// 512 rows became 5 and 1 % faster, those of 4096 rows 1 % (64 x 8192 tokens) and 9 % (64 x 512)
/// slower.
constexpr std::int64_t kMostSentRows = 1024;

class CudaStep : public StepKernels {
 public:
  CudaStep(CudaContext& context, const StepOptions& options, std::span<const BatchEntry> first)
      : context_(context),
        options_(options),
        combine_(context.ways, options.combine, options.limits.has_value(),
                 options.fixed_split_tokens > 0) {
    if (options.reproducible) options_.shares_prefixes = false;
    if (options.reproducible && context.mesh.kv_parallel() > 1) {
      exact_.emplace(
          context.mesh, context.kernels, context.exact_rows,
          ExactCombineOptions{options.shape, options.combine, options.limits.has_value()});
    }
    if (options.limits) plan_limits();
    kinds_.reserve(options.kinds.size());
    for (const AttentionOptions& kind : options.kinds) {
      kinds_.emplace_back(context.kernels, options.shape,
                          attend_options(options_, kind, first, merges_all()));
    }
    planner_.reserve(kinds_);
  }

  /// Checks as if this rank had all pages, so that every rank refuses the same batches.
  void check(std::span<const SequenceSize> batch) const override {
    if (options_.reproducible) ExactStep::check(batch, options_.shape.page_size);
    for (const cuda::CudaAttend& kind : kinds_) kind.check_plan(batch);
  }

  void plan(const StepBatch& batch, Stream stream) override {
    context_.mesh.wait_until([&] { return planner_.is_ready(kinds_); }, "plan");
    try {
      change_pages(batch);
      plan_combine(batch, stream);
      const AttendSteps prefixes = find_prefixes(batch);
      planner_.plan(kinds_, context_.pages,
                    {sequences_, batch.q_positions(), merges_all(), prefixes}, native(stream));
    } catch (...) {
      forget_pages(batch, stream);
      throw;
    }
  }

  void set_layer(int layer) override { combine_.set_layer(layer); }
  void check_append(const KvPool& pool) const override { cuda::PoolWriter::check(pool); }
  void append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
              Stream stream) override {
    const cuda::DevicePlan& plan = kinds_[0].current();  // slots are those of any
    const Launching launching(context_, stream);
    context_.writer.append(pool, k, v, plan.token_slots(), native(stream));
  }
  void check_attend_partial(const AttendInput& input, const KvPool& pool) const override {
    kinds_[input.kind].check(input.q, pool, input.sinks);
  }
  void attend_partial(const AttendInput& input, const KvPool& pool, const Partial& out,
                      Stream stream) override {
    launch(input, pool, AttendedRows{out.o, out.lse}, stream);
  }
  void check_combine(const Partial& mine, const CombineOutput& output) const override {
    combine_.check_run(mine, output);
  }
  void combine(const Partial& mine, const CombineOutput& output, Stream stream) override {
    combine_.run(mine, output, stream);
  }
  void gather_queries(const QueryShares& queries, Stream stream) override {
    QueryShares planned = queries;
    if (options_.limits) planned.planned_tokens = kinds_[0].current().query_tokens();
    combine_.gather_queries(planned, stream);
  }

  /// A rank that holds all keys of its rows writes the output itself. Else it sends rows from the
  /// kernels of attention, or they store them as they are sent, where the combine takes them so.
  bool needs_partial() const override {
    return context_.mesh.kv_parallel() > 1 && !options_.reproducible;
  }
  void attend(const AttendInput& input, const KvPool& pool, const Partial& partial,
              const CombineOutput& output, Stream stream) override {
    if (exact_) return attend_exactly(input, pool, output, stream);
    if (writes_output()) return launch(input, pool, AttendedRows{output.o, output.lse}, stream);
    if (!sends_) {
      const Partial mine = combine_.sent_tensors().value_or(partial);
      return StepKernels::attend(input, pool, mine, output, stream);
    }
    launch(input, pool, combine_.target(), stream);
    combine_.run_sent(output, stream);
  }
  void check_attend(const AttendInput& input, const KvPool& pool, const Partial& partial,
                    const CombineOutput& output) const override {
    const cuda::CudaAttend& kind = kinds_[input.kind];
    kind.check(input.q, pool, exact_ ? ConstTensorView{} : input.sinks);
    if (exact_) return exact_->check_run(output);
    if (!writes_output()) return combine_.check_run(partial, output);
    kind.check_output({output.o, output.lse});
  }

  TileCounts tiles() const override {
    TileCounts sum;
    for (const cuda::CudaAttend& kind : kinds_) sum += kind.current().tiles();
    return sum;
  }
  std::int64_t workspace_bytes() const override {
    auto bytes =
        static_cast<std::int64_t>(combine_.workspace_bytes() + context_.pages.size_bytes()) +
        planner_.size_bytes();
    for (const cuda::CudaAttend& kind : kinds_) bytes += kind.workspace_bytes() + kind.plan_bytes();
    if (exact_) bytes += static_cast<std::int64_t>(exact_->workspace_bytes());
    return bytes;
  }
  std::int64_t host_bytes() const override {
    auto bytes = static_cast<std::int64_t>(sequences_.capacity() * sizeof(AttendSequence) +
                                           combine_.host_bytes());
    for (const cuda::CudaAttend& kind : kinds_) bytes += kind.current().host_bytes();
    if (exact_) bytes += static_cast<std::int64_t>(exact_->host_bytes());
    return bytes;
  }
  std::uint64_t generation() const override {
    std::uint64_t generation = combine_.generation() + (exact_ ? exact_->generation() : 0);
    for (const cuda::CudaAttend& kind : kinds_) generation += kind.generation();
    return generation;
  }

 private:
  /// `rows`: AttendedRows or a CombineTarget.
  template <class Rows>
  void launch(const AttendInput& input, const KvPool& pool, const Rows& rows, Stream stream) {
    const Launching launching(context_, stream);
    kinds_[input.kind].launch(input.q, pool, rows, native(stream), input.sinks);
  }

  void attend_exactly(const AttendInput& input, const KvPool& pool, const CombineOutput& output,
                      Stream stream) {
    {
      const Launching launching(context_, stream);
      kinds_[input.kind].launch(input.q, pool, exact_->messages(), native(stream));
    }
    exact_->run(output, static_cast<const float*>(input.sinks.data), stream);
  }

  void change_pages(const StepBatch& batch) {
    sequences_.clear();
    context_.sent.follow([this](std::size_t list) { context_.pages.erase(list); });
    for (const SequenceStep& sequence : batch.sequences()) {
      const std::span<const LocalPage> pages = sequence.pages->pages;
      const std::size_t list = sequence.sequence.slot();
      const std::size_t kept = context_.sent.kept(list, pages);
      context_.pages.change(list, static_cast<std::int64_t>(kept), pages.subspan(kept));
      context_.sent.sent(list, pages);
      sequences_.push_back({.queries = sequence.size.queries,
                            .kv_len = sequence.size.length,
                            .pages = pages,
                            .counts_sinks = sequence.counts_sinks,
                            .appended = sequence.size.appended,
                            .list = list});
    }
  }

  /// The prefixes that the batch's sequences share, for all kinds of layers: a kind whose mods do
  /// not allow it leaves them.
  AttendSteps find_prefixes(const StepBatch& batch) {
    if (!options_.shares_prefixes || batch.sequences().size() < 2) return {};
    SharedPrefixRules rules;
    for (const cuda::CudaAttend& kind : kinds_) {
      if (rules.most_queries == 0) rules = kind.shared_prefix_rules();
    }
    if (rules.most_queries == 0) return {};
    rules = rules.with(options_.least_saved_tokens);
    prefixes_ = find_shared_prefixes(sequences_, rules);
    return {sequences_, batch.q_positions(), prefixes_, rules};
  }

  /// After an error it is unknown which changes have reached the device: the next plan sends all
  /// pages again.
  void forget_pages(const StepBatch& batch, Stream stream) {
    for (const SequenceStep& sequence : batch.sequences()) {
      context_.pages.erase(sequence.sequence.slot());
      context_.sent.forget(sequence.sequence.slot());
    }
    context_.pages.cancel(native(stream));
  }

  bool writes_output() const { return !needs_partial() || rows_stay_; }
  /// Exact rows are rounded by the merge, and the merge sends rows.
  bool merges_all() const { return sends_ || options_.reproducible; }

  /// Allocates memory for the limits before the allocator appends.
  void plan_limits() {
    StepBatch none;
    none.set_members(context_.mesh.membership());
    plan_combine(none, {});
  }

  void plan_combine(const StepBatch& batch, Stream stream) {
    const std::int64_t tokens = options_.limits
                                    ? options_.limits->sequences * options_.limits->query_tokens
                                    : batch.query_tokens();
    if (exact_) {
      exact_->plan(tokens, exact_->follows_mask() ? &batch.participation() : nullptr,
                   batch.digest(), stream);
    }
    if (options_.reproducible) return;
    combine_.plan({tokens, options_.shape.q_heads, options_.shape.v_dim}, batch, stream);
    // A graph has the launches that any later step of it may need. With a fixed split a row goes
    // the same way in every batch: where it stays, or is merged to be sent, its last bit may
    // differ.
    const bool follows_batch = !options_.limits && options_.fixed_split_tokens == 0;
    rows_stay_ = options_.combine.scatter == Scatter::kOwner && follows_batch &&
                 batch.participation().is_of_owners_alone();
    sends_ = combine_.takes_sent_rows() && !rows_stay_ && (follows_batch || options_.limits) &&
             tokens * options_.shape.q_heads <= kMostSentRows;
  }

  CudaContext& context_;
  StepOptions options_;
  std::vector<AttendSequence> sequences_;
  std::vector<SharedPrefix> prefixes_;
  bool rows_stay_ = false;  // with the ranks that hold their keys, which own them
  bool sends_ = false;      // attention's kernels send the rows
  StepCombine combine_;
  std::optional<CudaExactCombine> exact_;  // instead, if reproducible on several ranks
  std::vector<cuda::CudaAttend> kinds_;
  cuda::AttendPlanner planner_;
};

class CudaBackend : public Backend {
 public:
  CudaBackend(Mesh& mesh, PageAllocator* allocator) : context_(mesh, allocator) {}

  std::unique_ptr<StepKernels> make_step(const StepOptions& options,
                                         std::span<const BatchEntry> first) override {
    return std::make_unique<CudaStep>(context_, options, first);
  }

  std::vector<std::string> kernel_programs() override { return context_.kernels.programs(); }
  BlockMask make_block_mask(const MaskMod& mask, const BlockMaskShape& shape) override {
    context_.wait_idle();
    return cuda::make_block_mask(context_.kernels, mask, shape);
  }

  void wait_idle() override { context_.wait_idle(); }
  void wait(Stream stream) override { context_.mesh.wait(stream, "wait for a stream"); }

  void write(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
             std::span<const TokenSlot> slots, Stream stream) override {
    cuda::PoolWriter::check(pool);
    const cuda::DeviceBuffer list = cuda::upload(slots);
    context_.writer.append(pool, k, v, list.as<TokenSlot>(), native(stream));
    context_.mesh.wait(stream, "write");
  }

  DeviceMoves device_moves(std::optional<Stream> on) override {
    return [this, on](const PageMoves& moves) { pages_.move(moves, on); };
  }
  void after_late_moves(std::optional<Stream> stream) override { pages_.after_late_moves(stream); }
  std::unique_ptr<MoveStream> make_move_stream() override {
    return std::make_unique<CudaMoveStream>(
        context_.mesh.device().index, [this](const CudaMoveStream::IsDone& is_done) {
          Communicator& world = context_.mesh.world();
          wait_until(is_done, {world.rank(), world.deadline(), "move pages"});
        });
  }

  void move_tokens(const TokenPlanes& planes, std::span<const TokenSlot> from,
                   std::span<const TokenSlot> to, Stream stream) override {
    wait_for_mover();
    mover_.move(planes, from, to, native(stream));
  }
  void pack_tokens(const TokenPlanes& planes, std::span<const TokenSlot> slots, std::byte* packed,
                   Stream stream) override {
    wait_for_mover();
    mover_.pack(planes, slots, packed, native(stream));
    context_.mesh.wait(stream, "pack tokens");
  }
  void unpack_tokens(const TokenPlanes& planes, std::span<const TokenSlot> slots,
                     const std::byte* packed, Stream stream) override {
    wait_for_mover();
    mover_.unpack(planes, slots, packed, native(stream));
    context_.mesh.wait(stream, "unpack tokens");
  }

 private:
  void wait_for_mover() {
    context_.mesh.wait_until([this] { return mover_.is_ready(); }, "move tokens");
  }

  CudaContext context_;
  cuda::TokenMover mover_;
  DeviceMover pages_{[this] { return make_move_stream(); },
                     [this](const DeviceMover::IsDone& is_done) {
                       context_.mesh.wait_until(is_done, "move pages");
                     }};
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(Mesh& mesh, PageAllocator* allocator) {
  return std::make_unique<CudaBackend>(mesh, allocator);
}

}  // namespace kvmesh
