#include "launch/bench/operation.hpp"

#include <algorithm>

#include "launch/bench/exactness.hpp"
#include "launch/bench/exchange_operation.hpp"
#include "launch/bench/planned.hpp"

namespace kvmesh::bench {
namespace {

class Attend : public Planned {
 public:
  Attend(Workload& workload, Machine& machine, const Options& options, Op op, std::int64_t queries)
      : Planned(workload, machine, options, 0, queries),
        queries_(queries),
        output_(options.output),
        quantity_(op == Op::kPrefill ? Quantity::kOperations : Quantity::kBytes),
        seen_{seen_by(workload, options, queries), input_.sinks, score_of(options),
              pool_of(workload.cache(), 0, options.manner)} {
    if (output_ == Output::kFinal) {
      final_ = workload.output(plan_);
    } else {
      partial_ = workload.partial(plan_);
    }
    if (is_by_tables(options.manner)) {
      tables_.emplace(workload, options, queries);
    }
  }

  Repeated repeated() override {
    return {.work = [this](int call, Stream stream) {
      const int layer = workload_.attended_layer(call);
      if (tables_) return by_tables(layer, stream);
      if (output_ == Output::kFinal) {
        plan_.run(layer, input_, final_, stream);  // appends no tokens
      } else {
        plan_.attend_partial(layer, input_.q, partial_, stream, input_.sinks);
      }
    }};
  }
  Quantity quantity() const override { return quantity_; }
  double amount() override {
    if (quantity_ == Quantity::kOperations) return attend_operations(workload_, queries_);
    if (has_lists()) return listed_bytes(workload_, tables_->lists(), queries_, output_);
    return attend_bytes(workload_, queries_, output_, prefix_);
  }
  std::vector<Ceiling> ceilings() override {
    if (quantity_ == Quantity::kOperations) {
      return {machine_.multiply(workload_.shape().model.dtype)};
    }
    if (workload_.shape().model.window > 0) return {machine_.read()};  // layers read other pages
    std::optional<Ceiling> gather =
        has_lists() ? gather_of_lists()
                    : machine_.gather(page_reads(workload_, input_.q, written(), prefix_));
    if (!gather) return {machine_.read()};
    gather->amount = amount();
    return {std::move(*gather), machine_.read()};
  }
  // With several kv ranks each has only its own keys.
  std::optional<double> error() override {
    if (workload_.mesh().kv_parallel() > 1) return std::nullopt;
    Repeated once = repeated();
    once.capturable = false;
    static_cast<void>(machine_.time(once, {}, {}, 1));
    return output_error(workload_, input_.q, written().front(), queries_, seen_);
  }
  bool rotates() const override { return quantity_ == Quantity::kBytes; }

 private:
  bool has_lists() const { return tables_ && !tables_->lists().empty(); }
  /// The gather of the listed tokens alone, where each is in one piece.
  std::optional<Ceiling> gather_of_lists() {
    if (workload_.cache().pool(0).k.size(1) > 1) return std::nullopt;
    std::optional<Ceiling> gather =
        machine_.gather(token_reads(workload_, tables_->lists(), queries_, input_.q, written()));
    if (gather) gather->name = "bare gather of the same tokens";
    return gather;
  }
  void by_tables(int layer, Stream stream) {
    if (output_ == Output::kFinal) {
      tables_->run(layer, input_.q, final_, stream);
    } else {
      tables_->attend_partial(layer, input_.q, partial_, stream);
    }
  }
  std::vector<TensorView> written() const {
    if (output_ == Output::kFinal) return {final_.o};
    return {partial_.o, partial_.lse};
  }

  std::int64_t queries_;
  Output output_;
  Quantity quantity_;
  Partial partial_;
  CombineOutput final_;
  std::optional<Tables> tables_;
  Seen seen_;
};

/// Ceiling: a copy of the same number of bytes, from one buffer into the pools of the same layers.
class Append : public Planned {
 public:
  Append(Workload& workload, Machine& machine, const Options& options, std::int64_t tokens)
      : Planned(workload, machine, options, tokens, 0), bytes_(appended_bytes(workload, tokens)) {}

  Repeated repeated() override {
    return {.work = [this](int call, Stream stream) {
      plan_.append(workload_.attended_layer(call), input_.k, input_.v, stream);
    }};
  }
  /// The bytes written, and the bytes read for them.
  double amount() override {
    const Shape& model = workload_.shape().model;
    const auto row = static_cast<double>(model.row_elements() *
                                         static_cast<std::int64_t>(size_bytes(model.dtype)));
    return bytes_ * (1 + row / static_cast<double>(model.page_row_bytes()));
  }
  std::vector<Ceiling> ceilings() override {
    const TensorView pool = workload_.cache().pool(0).k;
    const Dtype dtype = pool.dtype;
    const auto element = static_cast<std::int64_t>(size_bytes(dtype));
    const std::int64_t elements =
        std::min(pool.elements(), static_cast<std::int64_t>(bytes_) / element);
    const TensorView from = from_.get(workload_.mesh(), machine_, dtype, elements, 1);
    const auto bytes = static_cast<std::size_t>(elements * element);
    return {{.name = "copy of as many bytes",
             .amount = 2 * static_cast<double>(bytes),
             .repeated = {.work =
                              [this, from, bytes](int call, Stream stream) {
                                if (bytes == 0) return;
                                machine_.copy(
                                    workload_.cache().pool(workload_.attended_layer(call)).k.data,
                                    from.data, bytes, stream);
                              }},
             .as_often = true}};
  }
  bool rotates() const override { return true; }

 private:
  double bytes_;
  GrowingTensor from_;
};

}  // namespace

std::unique_ptr<Operation> make_operation(Workload& workload, Machine& machine,
                                          const Options& options, Op op, std::int64_t queries) {
  switch (op) {
    case Op::kAppend:
      return std::make_unique<Append>(workload, machine, options, queries);
    case Op::kCombine:
    case Op::kStep:
    case Op::kGather:
      return make_exchange_operation(workload, machine, options, op, queries);
    case Op::kDecode:
    case Op::kPrefill:
    case Op::kPlan:  // measured otherwise
    case Op::kCompact:
    case Op::kFork:
    case Op::kMove:
    case Op::kStore:
    case Op::kLoad:
      break;
  }
  return std::make_unique<Attend>(workload, machine, options, op, queries);
}

}  // namespace kvmesh::bench
