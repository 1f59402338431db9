// The backend that runs on this machine's cores.
#include <algorithm>
#include <deque>

#include "kernels/cpu/attend.hpp"
#include "kernels/cpu/copy.hpp"
#include "runtime/step/backend.hpp"
#include "runtime/step/exact/exact_step.hpp"
#include "runtime/step/step_combine.hpp"

namespace kvmesh {
namespace {

/// The first tokens of a tensor, which may have room for more.
template <class View>
View first_tokens(View view, std::int64_t tokens) {
  view.shape[0] = std::min(view.shape[0], tokens);
  return view;
}

/// The number of tokens that tensors have room for.
std::int64_t tokens_of(const StepLimits& limits) { return limits.sequences * limits.query_tokens; }

class CpuStep : public StepKernels {
 public:
  CpuStep(const StepOptions& options, Mesh& mesh, CombineWays& ways,
          const std::shared_ptr<RowExchange>& rows)
      : options_(options),
        mesh_(mesh),
        combine_(ways, options.combine, options.limits.has_value(),
                 options.fixed_split_tokens > 0) {
    for (const AttentionOptions& kind : options.kinds) {
      if (options.reproducible)
        exact_.emplace_back(rows);
      else
        kinds_.emplace_back(options.shape, kind);
    }
  }

  void check(std::span<const SequenceSize> batch) const override {
    if (is_exact()) ExactStep::check(batch, options_.shape.page_size);
  }
  void plan(const StepBatch& batch, Stream) override {
    const int page_size = options_.shape.page_size;
    std::optional<LocalBlockMask> blocks;
    if (options_.block_mask) blocks = local_block_mask(batch, *options_.block_mask);
    set_token_slots(batch, page_size, slots_);
    batch_ = &batch;
    const std::int64_t tokens =
        options_.limits ? tokens_of(*options_.limits) : batch.query_tokens();
    for (std::size_t kind = 0; kind < exact_.size(); ++kind) {
      AttentionOptions attention = options_.kinds[kind];
      if (blocks) attention.block_mask = &*blocks;
      exact_[kind].plan(options_.shape, attention, options_.combine, exact_batch(batch, tokens),
                        tokens);
    }
    if (is_exact()) return;
    sequences_.clear();
    for (const SequenceStep& it : batch.sequences()) {
      sequences_.push_back({it.size.queries, it.size.length, it.pages->pages, it.counts_sinks});
    }
    const SharedPrefixRules rules =
        shared_prefix_rules(options_.shape).with(options_.least_saved_tokens);
    shared_.clear();
    if (options_.shares_prefixes) shared_ = find_shared_prefixes(sequences_, rules);
    for (cpu::Attend& kind : kinds_) {
      kind.plan({sequences_, batch.q_positions(), shared_, rules}, blocks ? &*blocks : nullptr);
    }
    combine_.plan({tokens, options_.shape.q_heads, options_.shape.v_dim}, batch, {});
  }

  void append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
              Stream) override {
    const std::int64_t tokens = options_.limits ? batch_->append_tokens() : k.size(0);
    cpu::write_tokens(pool, first_tokens(k, tokens), first_tokens(v, tokens), slots_,
                      mesh_.threads());
  }
  void attend_partial(const AttendInput& input, const KvPool& pool, const Partial& out,
                      Stream) override {
    const std::int64_t tokens = options_.limits ? batch_->query_tokens() : input.q.size(0);
    kinds_[input.kind].run(first_tokens(input.q, tokens), pool,
                           {first_tokens(out.o, tokens), first_tokens(out.lse, tokens)},
                           mesh_.threads(), input.sinks);
  }
  void check_attend(const AttendInput&, const KvPool&, const Partial& partial,
                    const CombineOutput& output) const override {
    is_exact() ? exact_[0].check_combine(output) : combine_.check_run(partial, output);
  }
  void check_combine(const Partial& mine, const CombineOutput& output) const override {
    combine_.check_run(mine, output);
  }
  void combine(const Partial& mine, const CombineOutput& output, Stream) override {
    combine_.run(mine, output, {});
  }
  void gather_queries(const QueryShares& queries, Stream) override {
    combine_.gather_queries(queries, {});
  }
  TileCounts tiles() const override {
    TileCounts sum;
    for (const ExactStep& kind : exact_) sum += kind.tiles();
    for (const cpu::Attend& kind : kinds_) sum += kind.tiles();
    return sum;
  }
  std::int64_t workspace_bytes() const override {
    const std::size_t lists = slots_.capacity() * sizeof(TokenSlot) +
                              sequences_.capacity() * sizeof(AttendSequence) +
                              combine_.workspace_bytes();
    auto bytes = static_cast<std::int64_t>(lists);
    for (const ExactStep& kind : exact_) bytes += kind.workspace_bytes();
    for (const cpu::Attend& kind : kinds_) bytes += kind.workspace_bytes();
    return bytes;
  }
  bool needs_partial() const override { return !is_exact(); }
  void attend(const AttendInput& input, const KvPool& pool, const Partial& partial,
              const CombineOutput& output, Stream stream) override {
    if (!is_exact()) return StepKernels::attend(input, pool, partial, output, stream);
    const std::int64_t tokens = options_.limits ? batch_->query_tokens() : input.q.size(0);
    ExactStep& exact = exact_[input.kind];
    exact.attend(first_tokens(input.q, tokens), pool, mesh_.threads());
    exact.combine(output, static_cast<const float*>(input.sinks.data));
  }
  std::int64_t host_bytes() const override { return workspace_bytes(); }
  std::uint64_t generation() const override { return combine_.generation(); }

 private:
  bool is_exact() const { return options_.reproducible; }

  /// With limits every rank takes part in every row, unless owners get the rows.
  ExactBatch exact_batch(const StepBatch& batch, std::int64_t tokens) const {
    const bool has_mask =
        tokens == batch.query_tokens() || options_.combine.scatter == Scatter::kOwner;
    return {.attention = attention_batch(batch),
            .query_tokens = batch.query_tokens(),
            .participation = has_mask ? &batch.participation() : nullptr,
            .digest = batch.digest()};
  }

  StepOptions options_;
  Mesh& mesh_;
  StepCombine combine_;
  const StepBatch* batch_ = nullptr;
  std::vector<TokenSlot> slots_;
  std::vector<AttendSequence> sequences_;
  std::vector<SharedPrefix> shared_;
  std::deque<cpu::Attend> kinds_;
  std::deque<ExactStep> exact_;  // instead of kinds_ and combine_, if reproducible
};

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(Mesh& mesh)
      : mesh_(mesh),
        ways_(mesh.device_group()),
        exact_rows_(std::make_shared<RowExchange>(mesh.kv_comm())) {}

  std::unique_ptr<StepKernels> make_step(const StepOptions& options,
                                         std::span<const BatchEntry>) override {
    return std::make_unique<CpuStep>(options, mesh_, ways_, exact_rows_);
  }
  BlockMask make_block_mask(const MaskMod& mask, const BlockMaskShape& shape) override {
    return BlockMask::create(mask, shape);
  }
  void wait_idle() override {}
  void wait(Stream) override {}
  void write(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
             std::span<const TokenSlot> slots, Stream) override {
    cpu::write_tokens(pool, k, v, slots, mesh_.threads());
  }
  void move_tokens(const TokenPlanes& planes, std::span<const TokenSlot> from,
                   std::span<const TokenSlot> to, Stream) override {
    std::vector<std::byte> packed(from.size() * planes.token_bytes());
    kvmesh::pack_tokens(planes, from, packed.data());
    kvmesh::unpack_tokens(planes, to, packed.data());
  }
  void pack_tokens(const TokenPlanes& planes, std::span<const TokenSlot> slots, std::byte* packed,
                   Stream) override {
    kvmesh::pack_tokens(planes, slots, packed);
  }
  void unpack_tokens(const TokenPlanes& planes, std::span<const TokenSlot> slots,
                     const std::byte* packed, Stream) override {
    kvmesh::unpack_tokens(planes, slots, packed);
  }

 private:
  Mesh& mesh_;
  CombineWays ways_;
  std::shared_ptr<RowExchange> exact_rows_;  // of all reproducible steps
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(Mesh& mesh) { return std::make_unique<CpuBackend>(mesh); }

namespace {

std::unique_ptr<Backend> make_backend_of(Mesh& mesh, PageAllocator* allocator) {
  return mesh.device().kind == DeviceKind::kCuda ? make_cuda_backend(mesh, allocator)
                                                 : make_cpu_backend(mesh);
}

}  // namespace

std::unique_ptr<Backend> make_backend(Mesh& mesh, PageAllocator& allocator) {
  return make_backend_of(mesh, &allocator);
}
std::unique_ptr<Backend> make_backend(Mesh& mesh) { return make_backend_of(mesh, nullptr); }

}  // namespace kvmesh
