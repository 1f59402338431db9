// A batch whose pages an engine owns: page tables and memory of one rank, and the float64 answer.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "launch/verify/findings.hpp"
#include "launch/verify/random.hpp"
#include "launch/verify/reference.hpp"
#include "tests/contracts/engine_pool.hpp"

namespace kvmesh::test {

struct ExternalSequence {
  std::int64_t length = 0;
  std::int64_t queries = 1;
  std::int64_t appended = 0;  ///< the newest tokens, which kvmesh writes
};

struct ExternalForm {
  ContractShape shape{};
  PoolOrder order = PoolOrder::kHnd;
  std::int64_t interleave = 0;
  bool listed = false;       ///< any page on any rank, by PageTables::logical
  bool block_table = false;  ///< rows of one length
};

struct ExternalStep {
  PlanOptions plan{};
  std::optional<MaskMod> visible{};  ///< what queries see, if that is not the plan's mask
  bool sinks = false;
  bool in_parts = false;
  bool lse = true;
};

class ExternalCase {
 public:
  ExternalCase(Mesh& mesh, const ExternalForm& form, std::uint64_t seed)
      : mesh_(mesh),
        form_(form),
        random_(seed),
        pages_random_(seed + 1 + static_cast<std::uint64_t>(mesh.kv_rank().value)),
        memory_(form.shape, form.order, kPages, mesh.device()),
        pool_(mesh, memory_.on_device(),
              {.q_heads = form.shape.q_heads, .interleave = form.interleave}) {}

  /// Another batch, in pages drawn anew: the engine has written all but the appended tokens.
  void batch(const std::vector<ExternalSequence>& sequences) {
    sequences_ = sequences;
    memory_.clear();
    dense_.clear();
    fresh_k_.clear();
    fresh_v_.clear();
    q_indptr_ = indptr_ = {0};
    kv_lens_.clear();
    appended_.clear();
    indices_.clear();
    logical_.clear();
    lists_.clear();
    list_length_ = 0;
    free_pages_.resize(kPages);
    std::iota(free_pages_.begin(), free_pages_.end(), 0);
    for (const ExternalSequence& sequence : sequences) add(sequence);
    if (form_.block_table) pad_rows();
  }

  /// Gives each query a list of up to `length` positions, with padding anywhere and a repetition.
  /// Returns what the queries see. REQUIRES: sequences of up to kListed tokens.
  MaskMod draw_lists(std::int64_t length) {
    list_length_ = length;
    lists_.clear();
    std::vector<bool> seen(sequences_.size() * kListed * kListed);
    for (std::size_t b = 0; b < sequences_.size(); ++b) {
      const ExternalSequence& sequence = sequences_[b];
      for (std::int64_t i = 0; i < sequence.queries; ++i) {
        const std::size_t q = index(sequence.length - sequence.queries + i);
        for (std::int64_t j = 0; j < length; ++j) {
          const bool empty = sequence.length == 0 || random_.one_in(3);
          const std::int64_t drawn = empty ? -1 : random_.integer(0, sequence.length - 1);
          lists_.push_back(static_cast<std::int32_t>(drawn));
          if (drawn >= 0) seen[(b * kListed + q) * kListed + index(drawn)] = true;
        }
      }
    }
    constexpr auto kRow = static_cast<std::int32_t>(kListed);
    return MaskMod([buffer = Buffer<bool>(seen, kRow)](auto b, auto, auto q, auto kv) {
      return buffer.at(b * kRow + q, kv);
    });
  }

  PageTables tables() const {
    PageTables tables{.q_indptr = q_indptr_,
                      .kv_lens = kv_lens_,
                      .indptr = indptr_,
                      .indices = indices_,
                      .appended = appended_,
                      .token_lists = lists_,
                      .list_length = list_length_};
    if (form_.block_table) tables.row_length = kRowLength;
    if (form_.block_table) tables.indptr = {};
    if (form_.listed) tables.logical = logical_;
    return tables;
  }

  /// The same in memory of the mesh's device, but for `q_indptr`. Good until the next call.
  PageTables tables_on_device() {
    PageTables there = tables();
    there.device = mesh_.device();
    tables_there_.clear();
    const auto move = [&](std::span<const std::int32_t>& array) {
      DeviceMemory& copy = tables_there_.emplace_back(mesh_.device(), array.size_bytes());
      copy_bytes(copy.data(), array.data(), array.size_bytes());
      array = {static_cast<const std::int32_t*>(copy.data()), array.size()};
    };
    for (auto* array :
         {&there.kv_lens, &there.indptr, &there.indices, &there.appended, &there.token_lists}) {
      move(*array);
    }
    if (there.logical) move(*there.logical);
    return there;
  }

  void run(const ExternalStep& step) {
    ExternalPlan plan = pool_.plan(tables(), step.plan);
    run(plan, step);
  }
  void run(ExternalPlan& plan, const ExternalStep& step) {
    Tensors tensors = tensors_of(plan);
    fill(tensors);
    const Arguments given = upload(tensors, plan, step);
    if (step.in_parts) run_in_parts(plan, given);
    if (!step.in_parts) plan.run(given.pool, given.input, given.output);
    mesh_.wait({}, "run");
    compare(tensors, plan, step);
  }

  /// The arguments and results of a run. With limits the tensors are those of every batch of a
  /// plan, and so the arguments of a captured run.
  struct Tensors {
    verify::HostTensor q, k, v, sinks, o, lse;
  };
  struct Arguments {
    KvPool pool;
    LayerInput input;
    CombineOutput output;
  };

  Tensors tensors_of(const ExternalPlan& plan) const {
    const ContractShape& shape = form_.shape;
    const auto tensor = [&](std::int64_t rows, std::int64_t heads, std::int64_t dim,
                            Dtype dtype = Dtype::kFloat32) {
      return verify::HostTensor(dtype, rows, heads, dim, mesh_.device());
    };
    const std::int64_t appended = plan.append_tokens();
    const IndexRange tokens = plan.tokens_of_output(), heads = plan.heads_of_output();
    const Dtype queries = info_of(shape.dtype).has_scales ? Dtype::kBFloat16 : shape.dtype;
    return {.q = tensor(plan.query_tokens(), shape.q_heads, shape.k_dim, queries),
            .k = tensor(appended, shape.kv_heads, shape.k_dim),
            .v = tensor(appended, shape.kv_heads, shape.v_dim),
            .sinks = tensor(1, 1, shape.q_heads),
            .o = tensor(tokens.size(), heads.size(), shape.v_dim),
            .lse = tensor(tokens.size(), heads.size(), 1)};
  }

  /// Gives the batch's rows numbers, and all other rows and the outputs NaN.
  void fill(Tensors& tensors) {
    const std::int64_t queries = q_indptr_.back();
    set_each(tensors.q, [&](std::int64_t row) { return row < queries ? random_.real() : kNan; });
    set_each(tensors.sinks, [&](std::int64_t) { return random_.real(); });
    for (auto [tensor, values] :
         {std::pair(&tensors.k, &fresh_k_), std::pair(&tensors.v, &fresh_v_)}) {
      std::size_t next = 0;
      set_each(*tensor,
               [&](std::int64_t) { return next < values->size() ? (*values)[next++] : kNan; });
    }
    for (verify::HostTensor* output : {&tensors.o, &tensors.lse}) {
      set_each(*output, [](std::int64_t) { return kNan; });
    }
  }

  /// The tensors and pages in memory of the device, with what the host's have now.
  Arguments upload(Tensors& tensors, const ExternalPlan& plan, const ExternalStep& step) {
    Arguments given{.pool = memory_.on_device(),
                    .input = {.q = tensors.q.on_device()},
                    .output = {.o = tensors.o.on_device()}};
    if (plan.append_tokens() > 0) {
      given.input.k = tensors.k.on_device();
      if (form_.shape.kind == PageKind::kKv) given.input.v = tensors.v.on_device();
    }
    if (step.sinks) {
      const TensorView row = tensors.sinks.on_device();
      given.input.sinks = {row.data, row.dtype, {form_.shape.q_heads}, row.device};
    }
    if (step.lse) given.output.lse = tensors.lse.matrix_on_device();
    return given;
  }

  /// REQUIRES: the device has done the run.
  void compare(Tensors& tensors, const ExternalPlan& plan, const ExternalStep& step) {
    tensors.o.fetch();
    tensors.lse.fetch();
    const IndexRange tokens = plan.tokens_of_output(), heads = plan.heads_of_output();
    const std::int64_t end = std::min<std::int64_t>(tokens.end, q_indptr_.back());
    for (std::int64_t token = tokens.begin; token < end; ++token) {
      const Rank me = mesh_.kv_rank();
      if ((step.plan.scatter == Scatter::kAll && token % mesh_.kv_parallel() != me.value) ||
          (step.plan.scatter == Scatter::kOwner && plan.participation().owner(token) != me)) {
        continue;  // another rank's turn, or row
      }
      for (std::int64_t h = 0; h < heads.size(); ++h) {
        const std::int64_t row = token - tokens.begin;
        compare_row(step, tensors, token, heads.begin + h, tensors.o.elements(row, h),
                    step.lse ? tensors.lse.get(row, h, 0) : 0);
      }
    }
  }

  ExternalPool& pool() { return pool_; }
  EnginePool& memory() { return memory_; }
  verify::Random& random() { return random_; }
  const verify::Findings& findings() const { return findings_; }

  static constexpr std::int64_t kPages = 96;
  static constexpr std::size_t kListed = 256;

 private:
  static constexpr std::int64_t kRowLength = 24;
  static constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

  using Floats = std::vector<float>;

  static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

  /// The rank and page of the rank that hold a position, and the token's place in that page.
  struct Slot {
    std::int32_t rank;
    std::int64_t entry, offset;
  };
  Slot slot_of(std::int64_t position, const std::vector<std::int32_t>& owners) const {
    const std::int64_t page = form_.shape.page_size, ranks = mesh_.kv_parallel();
    if (form_.listed) {
      const auto logical = static_cast<std::size_t>(position / page);
      const std::int32_t rank = owners[logical];
      const auto before = owners.begin() + static_cast<std::ptrdiff_t>(logical);
      return {rank, std::count(owners.begin(), before, rank), position % page};
    }
    const std::int64_t turn = form_.interleave == 0 ? page : form_.interleave;
    const std::int64_t local = position / (turn * ranks) * turn + position % turn;
    return {static_cast<std::int32_t>(position / turn % ranks), local / page, local % page};
  }

  std::int32_t take_page() {
    const std::int64_t at = pages_random_.integer(0, std::ssize(free_pages_) - 1);
    std::swap(free_pages_[static_cast<std::size_t>(at)], free_pages_.back());
    const std::int32_t page = free_pages_.back();
    free_pages_.pop_back();
    return page;
  }

  void add(const ExternalSequence& sequence) {
    const ContractShape& shape = form_.shape;
    const std::int64_t page_size = shape.page_size;
    std::vector<std::int32_t> owners;
    for (std::int64_t i = 0; i * page_size < sequence.length; ++i) {
      owners.push_back(static_cast<std::int32_t>(random_.integer(0, mesh_.kv_parallel() - 1)));
    }
    verify::DenseSequence dense{
        .kv_heads = shape.kv_heads, .k_dim = shape.k_dim, .v_dim = shape.v_dim, .k = {}, .v = {}};
    std::vector<std::int32_t> pages;  // this rank's entries
    for (std::int64_t p = 0; p < sequence.length; ++p) {
      const Slot slot = slot_of(p, owners);
      const bool mine = slot.rank == mesh_.kv_rank().value;
      if (mine && slot.entry == std::ssize(pages)) {
        pages.push_back(take_page());
        logical_.push_back(static_cast<std::int32_t>(p / page_size));
      }
      const bool appended = p >= sequence.length - sequence.appended;
      for (int h = 0; h < shape.kv_heads; ++h) {
        Floats k = random_.reals(shape.k_dim), v = random_.reals(shape.v_dim);
        if (shape.kind == PageKind::kLatent) {
          std::copy_n(k.begin(), shape.v_dim, v.begin());
        }
        if (appended) {
          fresh_k_.insert(fresh_k_.end(), k.begin(), k.end());
          fresh_v_.insert(fresh_v_.end(), v.begin(), v.end());
        } else if (mine) {
          memory_.write(pages[static_cast<std::size_t>(slot.entry)], slot.offset, h, k, v);
        }
        const KvScales scales = memory_.scales_of(h);
        const Floats stored_k = verify::stored_row(k, shape.dtype, scales, scales.k);
        const Floats stored_v = shape.kind == PageKind::kLatent
                                    ? Floats(stored_k.begin(), stored_k.begin() + shape.v_dim)
                                    : verify::stored_row(v, shape.dtype, scales, scales.v);
        dense.k.insert(dense.k.end(), stored_k.begin(), stored_k.end());
        dense.v.insert(dense.v.end(), stored_v.begin(), stored_v.end());
      }
    }
    indices_.insert(indices_.end(), pages.begin(), pages.end());
    indptr_.push_back(static_cast<std::int32_t>(indices_.size()));
    q_indptr_.push_back(q_indptr_.back() + static_cast<std::int32_t>(sequence.queries));
    kv_lens_.push_back(static_cast<std::int32_t>(sequence.length));
    appended_.push_back(static_cast<std::int32_t>(sequence.appended));
    dense_.push_back(std::move(dense));
  }

  /// Entries that no token is in are an engine's leftovers: no page at all.
  void pad_rows() {
    std::vector<std::int32_t> rows, logical;
    for (std::size_t b = 0; b + 1 < indptr_.size(); ++b) {
      for (std::int64_t i = 0; i < kRowLength; ++i) {
        const std::int64_t at = indptr_[b] + i;
        rows.push_back(at < indptr_[b + 1] ? indices_[static_cast<std::size_t>(at)] : -7);
        logical.push_back(at < indptr_[b + 1] ? logical_[static_cast<std::size_t>(at)]
                                              : 1000 + static_cast<std::int32_t>(i));
      }
    }
    indices_ = rows;
    logical_ = logical;
  }

  /// `value(row)` is called for each element in turn.
  template <class Value>
  static void set_each(verify::HostTensor& tensor, const Value& value) {
    for (std::int64_t row = 0; row < tensor.rows(); ++row) {
      for (std::int64_t head = 0; head < tensor.heads(); ++head) {
        for (std::int64_t d = 0; d < tensor.dim(); ++d) tensor.set(row, head, d, value(row));
      }
    }
  }

  void run_in_parts(ExternalPlan& plan, const Arguments& given) {
    const ContractShape& shape = form_.shape;
    const std::int64_t tokens = plan.query_tokens();
    const Device device = mesh_.device();
    verify::HostTensor o(Dtype::kFloat32, tokens, shape.q_heads, shape.v_dim, device);
    verify::HostTensor lse(Dtype::kFloat32, tokens, shape.q_heads, 1, device);
    const Partial partial{o.on_device(), lse.matrix_on_device()};
    plan.append(given.pool, given.input.k, given.input.v);
    plan.attend_partial(given.pool, given.input.q, partial, {}, given.input.sinks);
    plan.combine(partial, given.output);
    mesh_.wait({}, "run in parts");
  }

  void compare_row(const ExternalStep& step, const Tensors& tensors, std::int64_t token,
                   std::int64_t head, const Floats& o, float lse) {
    const auto b = static_cast<std::size_t>(
        std::ranges::upper_bound(q_indptr_, static_cast<std::int32_t>(token)) - q_indptr_.begin() -
        1);
    const ExternalSequence& sequence = sequences_[b];
    const std::vector<std::int64_t>& positions = step.plan.q_positions;
    const std::int64_t position = positions.empty()
                                      ? sequence.length - sequence.queries + token - q_indptr_[b]
                                      : positions[static_cast<std::size_t>(token)];
    const double scale =
        step.plan.scale.value_or(1.0f / std::sqrt(static_cast<float>(form_.shape.k_dim)));
    const Floats query = tensors.q.elements(token, head);
    verify::ReferenceRow want = verify::reference_row(
        dense_[b], query.data(), scale, step.visible.value_or(step.plan.mask), step.plan.score,
        static_cast<std::int32_t>(b), static_cast<std::int32_t>(head),
        form_.shape.q_heads / form_.shape.kv_heads, static_cast<std::int32_t>(position));
    if (step.sinks) want = verify::with_sink(want, tensors.sinks.get(0, 0, head));
    const verify::Tolerances tolerances =
        verify::arithmetic_tolerances(mesh_.device(), form_.shape.dtype);
    const auto where = [&](const std::string& what) {
      return fmt::format("query {} of sequence {} at position {}, head {}: {}", token, b, position,
                         head, what);
    };
    for (std::size_t d = 0; d < o.size(); ++d) {
      findings_.compare(o[d], want.o[d], {.tolerance = tolerances.o},
                        [&] { return where(fmt::format("o[{}]", d)); });
    }
    if (step.lse) {
      findings_.compare(lse, want.lse, {.tolerance = tolerances.lse}, [&] { return where("lse"); });
    }
    findings_.add_rows(1);
  }

  Mesh& mesh_;
  ExternalForm form_;
  verify::Random random_;        // the same on all ranks
  verify::Random pages_random_;  // this rank's own
  EnginePool memory_;
  ExternalPool pool_;
  std::vector<ExternalSequence> sequences_;
  std::vector<verify::DenseSequence> dense_;
  Floats fresh_k_, fresh_v_;  // of the appended tokens
  std::vector<std::int32_t> q_indptr_, indptr_, kv_lens_, appended_, indices_, logical_, lists_;
  std::int64_t list_length_ = 0;
  std::vector<DeviceMemory> tables_there_;
  std::vector<std::int32_t> free_pages_;
  verify::Findings findings_;
};

}  // namespace kvmesh::test
