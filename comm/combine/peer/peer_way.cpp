#include "comm/combine/peer/peer_way.hpp"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "comm/combine/peer/kernels/peer_params.hpp"
#include "comm/combine/peer/peer_target.hpp"
#include "comm/combine/way_strategies.hpp"
#include "core/check.hpp"
#include "core/cuda/device_array.hpp"
#include "core/cuda/device_wait.hpp"
#include "core/cuda/memory.hpp"

namespace kvmesh {
namespace {

// cudaMemcpyAsync's, from pageable memory.
constexpr std::size_t kTakenAtOnce = 64 << 10;

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

/// All that captured runs have taken over.
struct PeerPlan {
  CombineShape shape;
  Scatter scatter = Scatter::kAll;
  Dtype travels_as = Dtype::kFloat32;
  PeerLayout layout;
  std::optional<PeerLayout> sent;  // of rows that other kernels store: words, if they fit
  bool has_mask = false;
  friend bool operator==(const PeerPlan&, const PeerPlan&) = default;
};

class PeerWay : public CombineWay {
 public:
  PeerWay(PeerWindow& window, std::optional<RowForm> form) : window_(window), form_(form) {}

  WayKind kind() const override { return WayKind::kPeer; }
  void set_layer(int layer) override { layer_ = layer; }
  void plan(const CombineShape& shape, const CombineOptions& options, Stream stream) override;
  void check_run(const Partial& mine, const CombineOutput& output) const override;
  void run(const Partial& mine, const CombineOutput& output, Stream stream) override;
  bool takes_sent_rows() const override { return plan_->sent && plan_->shape.rows() > 0; }
  CombineTarget target() override;
  void run_sent(const CombineOutput& output, Stream stream) override;
  CombineStrategy strategy() const override { return CombineStrategy::kAllToAll; }
  std::uint64_t generation() const override { return generation_; }
  std::size_t workspace_bytes() const override { return participants_.size_bytes(); }

 private:
  PeerPlan checked_plan(const CombineShape& shape, const CombineOptions& options) const;
  void upload(const Participation& participation, Scatter scatter, cudaStream_t stream);
  CombineBlock own() const {
    return block_of(plan_->shape, plan_->scatter, window_.rank().value, window_.ranks());
  }
  CombineTarget target_of(const PeerLayout& layout) const;
  void launch(const PeerLayout& layout, const Partial* mine, const CombineOutput& output,
              Stream stream);

  PeerWindow& window_;
  std::optional<RowForm> form_;
  std::optional<PeerPlan> plan_;
  int runs_ = 0;  // since the plan
  int layer_ = -1;
  std::uint64_t generation_ = 0;
  std::vector<std::uint64_t> uploaded_;
  cuda::DeviceArray<std::uint64_t> participants_;  // [tokens], then owners [tokens]
};

PeerPlan PeerWay::checked_plan(const CombineShape& shape, const CombineOptions& options) const {
  const int ranks = window_.ranks();
  check_plan(shape, options, ranks);
  static_cast<void>(resolve_strategy(WayKind::kPeer, shape, options, ranks));  // or it throws
  const auto layout_in = [&](PeerRoom room) { return fitting_layout(shape, options, ranks, room); };
  const PeerRoom room = window_.room();
  const PeerRoom words{.word_slot_bytes = form_ == RowForm::kLines ? 0 : room.word_slot_bytes};
  const PeerRoom lines{.line_slot_bytes = form_ == RowForm::kWords ? 0 : room.line_slot_bytes};
  const std::optional<PeerLayout> layout =
      layout_in({words.word_slot_bytes, lines.line_slot_bytes});
  require(layout.has_value(), "combine: {} tokens of {} heads and dim {} do not fit into a window",
          shape.tokens, shape.heads, shape.dim);
  return {.shape = shape,
          .scatter = options.scatter,
          .travels_as = options.travels_as,
          .layout = *layout,
          .sent = layout_in(words),
          .has_mask = options.participation != nullptr};
}

void PeerWay::plan(const CombineShape& shape, const CombineOptions& options, Stream stream) {
  const PeerPlan next = checked_plan(shape, options);
  if (next != plan_) ++generation_;
  plan_.reset();  // until all is where the plan says
  if (next.has_mask) upload(*options.participation, options.scatter, native(stream));
  plan_ = next;
  runs_ = 0;
}

void PeerWay::upload(const Participation& participation, Scatter scatter, cudaStream_t stream) {
  // With at most 64 ranks a token has one word of the mask. The owners follow.
  std::vector<std::uint64_t> words(participation.words().begin(), participation.words().end());
  if (scatter == Scatter::kOwner) {
    for (std::int64_t t = 0; t < participation.tokens(); ++t) {
      words.push_back(static_cast<std::uint64_t>(participation.owner(t).value));
    }
  }
  cuda_memory::use_device(window_.device().index);
  const bool moved = participants_.reserve(words.size());
  if (moved) ++generation_;
  if (!moved && std::ranges::equal(words, uploaded_)) return;
  uploaded_.clear();
  const std::size_t bytes = words.size() * sizeof(std::uint64_t);
  // From pageable memory: the runtime has taken the bytes when it returns. It may wait for the
  // stream until it can, so more than it takes at once is waited for here, where waits end.
  if (bytes > kTakenAtOnce) window_.wait(Stream{stream}, "combine: plan");
  check(cudaMemcpyAsync(participants_.data(), words.data(), bytes, cudaMemcpyHostToDevice, stream),
        "combine: upload the mask");
  uploaded_ = std::move(words);
}

void PeerWay::check_run(const Partial& mine, const CombineOutput& output) const {
  require(plan_.has_value(), "combine: run without a plan");
  check_tensors(mine, output, plan_->shape, own(), DeviceKind::kCuda);
  require(mine.lse.size(1) <= 1 || mine.lse.stride(1) == 1,
          "combine: the last dimension of the partial's lse has stride {}", mine.lse.stride(1));
}

void PeerWay::run(const Partial& mine, const CombineOutput& output, Stream stream) {
  window_.check("combine");
  launch(plan_->layout, &mine, output, stream);
}

CombineTarget PeerWay::target() {
  window_.check("combine");
  return target_of(*plan_->sent);
}

void PeerWay::run_sent(const CombineOutput& output, Stream stream) {
  launch(*plan_->sent, nullptr, output, stream);
}

CombineTarget PeerWay::target_of(const PeerLayout& layout) const {
  CombineTarget target =
      peer_target(window_, plan_->shape, plan_->scatter, plan_->travels_as, layout);
  if (plan_->has_mask) target.participants = participants_.data();
  if (plan_->scatter == Scatter::kOwner) {
    target.owners = participants_.data() + plan_->shape.tokens;
  }
  return target;
}

/// `mine`: null if its rows are sent.
void PeerWay::launch(const PeerLayout& layout, const Partial* mine, const CombineOutput& output,
                     Stream stream) {
  if (plan_->shape.rows() == 0) return;
  const CombineBlock block = own();
  const cuda::PeerParams params{
      .to = target_of(layout),
      .call = {.window = window_.view(),
               .rank = window_.rank().value,
               .ranks = window_.ranks(),
               .operation = PeerOperation::kCombine,
               .layer = layer_,
               .run = runs_},
      .tensors = cuda::combine_tensors(mine != nullptr ? *mine : Partial{}, output),
      .own_tokens_begin = static_cast<int>(block.tokens.begin),
      .own_rows = static_cast<int>(block.rows()),
      .by_own_heads = Divisor(static_cast<int>(block.heads.size())),
      .by_cells = by_cells_of(layout),
      .rows_are_sent = mine == nullptr,
      .most_blocks = window_.most_blocks()};
  cuda_memory::use_device(window_.device().index);
  check(cuda::launch_peer_combine(params, native(stream)), "combine: peers");
  ++runs_;
}

}  // namespace

std::unique_ptr<CombineWay> make_peer_way(PeerWindow& window, std::optional<RowForm> form) {
  return std::make_unique<PeerWay>(window, form);
}

}  // namespace kvmesh
