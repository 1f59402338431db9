// Sequences whose steps verify trees of drafts in one captured graph, and keep what is accepted:
// each output against float64.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "kvmesh/draft_trees.hpp"
#include "kvmesh/kv_cache.hpp"
#include "launch/verify/findings.hpp"
#include "launch/verify/host_tensor.hpp"
#include "launch/verify/random.hpp"
#include "launch/verify/reference.hpp"
#include "tests/gpu/gpu_support.hpp"
#include "tests/gpu/graph.hpp"

namespace kvmesh::test {

class Drafting {
 public:
  explicit Drafting(Mesh& mesh) : mesh_(mesh), cache_(mesh, options()) {
    for (int layer = 0; layer < options().layers; ++layer) {
      tensors_.emplace_back(mesh.device(), kMostRows);
    }
    step_ = cache_.plan(
        {}, {.mask = trees_.mask(),
             .limits = StepLimits{.sequences = kMostSequences, .query_tokens = kMostDrafts}});
    run(step_, tensors_);  // nothing yet: loads the kernels
    mesh_.wait({stream_}, "test");
    generation_ = step_.generation();
    graph_.emplace(stream_, [&] { run(step_, tensors_); });
    for (std::int64_t tokens : {5, 130}) prompt(tokens);
    const SequenceId forked = cache_.fork(living_.back().id);
    living_.push_back({forked, living_.back().layers});
  }

  /// Drafts, verifies in a replay, and keeps a random path of each tree; or, `as_chains`, drafts
  /// chains and keeps the beginning of each.
  void step(bool as_chains) {
    std::vector<Drafts> drafted;
    std::ranges::rotate(living_, living_.begin() + 1);
    for (Living& sequence : living_) {
      if (!random_.one_in(6)) drafted.push_back(draw(sequence, as_chains));
    }
    replay(drafted);
    if (as_chains) return truncate(drafted);
    compact(drafted);
  }

  const verify::Findings& findings() const { return findings_; }

 private:
  static constexpr int kMostSequences = 3, kMostDrafts = 7,
                       kMostRows = kMostSequences * kMostDrafts;
  static constexpr int kQueryHeads = 8, kPoolHeads = 2, kHeadDim = 64;

  static CacheOptions options() {
    return {.layers = 2,
            .q_heads = kQueryHeads,
            .kv_heads = kPoolHeads,
            .k_dim = kHeadDim,
            .page_size = 8,
            .pages_per_rank = 300,
            .dtype = Dtype::kBFloat16,
            .home_threshold_tokens = 16};
  }

  /// A layer's inputs and outputs, at one address for all replays.
  struct Tensors {
    Tensors(Device device, std::int64_t rows)
        : q(Dtype::kBFloat16, rows, kQueryHeads, kHeadDim, device),
          k(Dtype::kBFloat16, rows, kPoolHeads, kHeadDim, device),
          v(Dtype::kBFloat16, rows, kPoolHeads, kHeadDim, device),
          o(Dtype::kFloat32, rows, kQueryHeads, kHeadDim, device),
          lse(Dtype::kFloat32, rows, kQueryHeads, 1, device),
          input{.q = q.on_device(), .k = k.on_device(), .v = v.on_device()},
          output{.o = o.on_device(), .lse = lse.matrix_on_device()} {}
    verify::HostTensor q, k, v, o, lse;
    LayerInput input;
    CombineOutput output;
  };
  struct Living {
    SequenceId id;
    std::vector<verify::DenseSequence> layers;
  };
  struct Drafts {
    Living* sequence;
    std::int64_t first;
    std::vector<std::int32_t> parents;

    bool sees(std::int64_t row, std::int64_t position) const {
      if (position < first) return true;
      for (auto i = static_cast<std::int32_t>(row); i >= 0; i = parents[std::size_t(i)]) {
        if (position == first + i) return true;
      }
      return false;
    }
  };

  void run(StepPlan& plan, const std::vector<Tensors>& tensors) {
    for (int layer = 0; layer < options().layers; ++layer) {
      const Tensors& of = tensors[static_cast<std::size_t>(layer)];
      plan.run(layer, of.input, of.output, {stream_});
    }
  }

  /// New numbers in the first `rows` rows, none in the others, nor in the outputs.
  void fill(Tensors& tensors, std::int64_t rows) {
    const auto set_all = [&](verify::HostTensor& tensor, std::int64_t filled) {
      for (std::int64_t row = 0; row < tensor.rows(); ++row) {
        for (std::int64_t head = 0; head < tensor.heads(); ++head) {
          for (std::int64_t d = 0; d < tensor.dim(); ++d) {
            tensor.set(row, head, d, row < filled ? random_.real() : kNan);
          }
        }
      }
      static_cast<void>(tensor.on_device());
    };
    for (verify::HostTensor* input : {&tensors.q, &tensors.k, &tensors.v}) set_all(*input, rows);
    for (verify::HostTensor* output : {&tensors.o, &tensors.lse}) set_all(*output, 0);
  }

  /// Remembers `count` rows of new keys and values from `begin` on.
  static void remember(verify::DenseSequence& dense, const Tensors& tensors, std::int64_t begin,
                       std::int64_t count) {
    for (std::int64_t row = begin; row < begin + count; ++row) {
      for (std::int64_t head = 0; head < kPoolHeads; ++head) {
        const std::vector<float> k = tensors.k.elements(row, head);
        const std::vector<float> v = tensors.v.elements(row, head);
        dense.k.insert(dense.k.end(), k.begin(), k.end());
        dense.v.insert(dense.v.end(), v.begin(), v.end());
      }
    }
  }

  void prompt(std::int64_t tokens) {
    const verify::DenseSequence none{kPoolHeads, kHeadDim, kHeadDim, {}, {}};
    living_.push_back({cache_.create(), {none, none}});
    std::vector<Tensors> tensors;
    for (verify::DenseSequence& dense : living_.back().layers) {
      tensors.emplace_back(mesh_.device(), tokens);
      fill(tensors.back(), tokens);
      remember(dense, tensors.back(), 0, tokens);
    }
    StepPlan plan = cache_.plan({{living_.back().id, tokens}});
    run(plan, tensors);
    mesh_.wait({stream_}, "test");
  }

  Drafts draw(Living& sequence, bool as_chain) {
    Drafts drafts{&sequence, cache_.length(sequence.id), {}};
    const std::int64_t count = random_.integer(1, kMostDrafts);
    for (std::int64_t i = 0; i < count; ++i) {
      drafts.parents.push_back(
          static_cast<std::int32_t>(as_chain ? i - 1 : random_.integer(-1, i - 1)));
    }
    return drafts;
  }

  void replay(const std::vector<Drafts>& drafted) {
    std::vector<BatchEntry> batch;
    std::int64_t rows = 0;
    for (const Drafts& drafts : drafted) {
      const int row = static_cast<int>(batch.size());
      // A tree of one token is causal: such rows have none, so that others' old data is cleared.
      if (drafts.parents.size() == 1) trees_.clear(row);
      if (drafts.parents.size() > 1) trees_.set(row, drafts.first, drafts.parents);
      batch.push_back({drafts.sequence->id, std::ssize(drafts.parents)});
      rows += batch.back().append_tokens;
    }
    for (Tensors& tensors : tensors_) fill(tensors, rows);
    cache_.replan(step_, batch, {stream_});
    if (step_.generation() != generation_) findings_.fail("a replan made the graph invalid");
    graph_->launch(stream_);
    mesh_.wait({stream_}, "test");
    for (std::size_t layer = 0; layer < tensors_.size(); ++layer) compare(drafted, layer);
  }

  void compare(const std::vector<Drafts>& drafted, std::size_t layer) {
    Tensors& tensors = tensors_[layer];
    tensors.o.fetch();
    tensors.lse.fetch();
    std::int64_t row = 0;
    for (std::size_t b = 0; b < drafted.size(); ++b) {
      verify::DenseSequence& dense = drafted[b].sequence->layers[layer];
      const std::int64_t count = std::ssize(drafted[b].parents);
      remember(dense, tensors, row, count);
      for (std::int64_t i = 0; i < count; ++i, ++row) {
        for (std::int64_t head = 0; head < kQueryHeads; ++head) {
          compare_row(drafted[b], dense, tensors, i, row, head);
        }
      }
    }
    findings_.add_rows(row * kQueryHeads);
  }

  void compare_row(const Drafts& drafts, const verify::DenseSequence& dense, const Tensors& tensors,
                   std::int64_t draft, std::int64_t row, std::int64_t head) {
    const std::vector<float> query = tensors.q.elements(row, head);
    const auto visible = [&](int, int, int, std::int64_t position) {
      return drafts.sees(draft, position);
    };
    const verify::ReferenceRow want = verify::reference_row(
        dense, query.data(), 1 / std::sqrt(double{kHeadDim}), visible, ScoreMod{}, 0,
        static_cast<std::int32_t>(head), kQueryHeads / kPoolHeads, 0);
    const verify::Tolerances tolerances =
        verify::arithmetic_tolerances(mesh_.device(), Dtype::kBFloat16);
    const auto where = [&] { return fmt::format("draft {}, row {}, head {}", draft, row, head); };
    const std::vector<float> o = tensors.o.elements(row, head);
    for (std::size_t d = 0; d < o.size(); ++d) {
      findings_.compare(o[d], want.o[d], {.tolerance = tolerances.o}, where);
    }
    findings_.compare(tensors.lse.get(row, head, 0), want.lse, {.tolerance = tolerances.lse},
                      where);
  }

  /// Keeps each sequence's tokens before `begin` and those at `kept`, in the reference.
  static void keep(Living& sequence, std::int64_t begin, const std::vector<std::int64_t>& kept) {
    for (verify::DenseSequence& dense : sequence.layers) {
      for (std::vector<float>* rows : {&dense.k, &dense.v}) {
        constexpr std::int64_t kRow = kPoolHeads * kHeadDim;
        auto to = rows->begin() + begin * kRow;
        for (std::int64_t position : kept) {
          to = std::copy_n(rows->begin() + position * kRow, kRow, to);
        }
        rows->erase(to, rows->end());
      }
    }
  }

  void compact(const std::vector<Drafts>& drafted) {
    std::vector<KeptTokens> accepted;
    for (const Drafts& drafts : drafted) {
      accepted.push_back({.sequence = drafts.sequence->id, .begin = drafts.first});
      std::vector<std::int64_t>& kept = accepted.back().kept;
      const std::int64_t last = random_.integer(-1, std::ssize(drafts.parents) - 1);
      for (std::int64_t i = 0; i <= last; ++i) {
        if (drafts.sees(last, drafts.first + i)) kept.push_back(drafts.first + i);
      }
      keep(*drafts.sequence, drafts.first, kept);
    }
    cache_.compact(accepted, {stream_});
  }

  void truncate(const std::vector<Drafts>& drafted) {
    for (const Drafts& drafts : drafted) {
      const std::int64_t kept = drafts.first + random_.integer(0, std::ssize(drafts.parents));
      cache_.truncate(drafts.sequence->id, kept);
      keep(*drafts.sequence, kept, {});
    }
  }

  static constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

  Mesh& mesh_;
  KvCache cache_;
  Stream stream_;
  verify::Random random_{9};  // the same on all ranks
  mods::DraftTrees trees_{kMostSequences, kMostDrafts};
  std::vector<Tensors> tensors_;  // of each layer of the captured step
  StepPlan step_;
  std::uint64_t generation_ = 0;
  std::optional<Graph> graph_;
  std::vector<Living> living_;
  verify::Findings findings_;
};

}  // namespace kvmesh::test
