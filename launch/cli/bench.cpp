#include "launch/cli/bench.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <optional>

#include "launch/bench/measure.hpp"
#include "launch/bench/plan_time.hpp"
#include "launch/bench/report.hpp"
#include "launch/cli/agree.hpp"
#include "launch/cli/host_memory.hpp"
#include "launch/cli/report.hpp"

namespace kvmesh::launch {
namespace {

using namespace bench;

constexpr std::int64_t kMostLayers = 256;

/// Reports rows as they come; rank 0 alone prints and writes.
class Report {
 public:
  Report(Mesh& mesh, Setting setting, std::string json, Output& out)
      : setting_(std::move(setting)),
        json_(std::move(json)),
        out_(out),
        speaks_(mesh.rank().value == 0) {
    agree(mesh.world(), [&] {
      write();
      show(heading(setting_));
    });
  }

  void add(const Row& row) {
    rows_.push_back(row);
    show(line_of(row, setting_.ranks));
    write();
  }
  void add(const Skipped& skipped) {
    skipped_.push_back(skipped);
    show(line_of(skipped, setting_.ranks));
    write();
  }
  void finish() {
    show(footing(rows_));
    if (speaks_ && json_ == "-") out_.write(json_, to_json(setting_, rows_, skipped_));
  }

 private:
  void show(const std::string& text) {
    if (speaks_ && json_ != "-") out_.put(text);
  }
  void write() {
    if (!speaks_ || json_.empty() || json_ == "-") return;
    out_.write(json_, to_json(setting_, rows_, skipped_));
  }

  Setting setting_;
  std::string json_;
  Output& out_;
  bool speaks_;
  std::vector<Row> rows_;
  std::vector<Skipped> skipped_;
};

Setting setting_of(const Mesh& mesh, const Options& options, const Machine& machine,
                   const std::string& command) {
  return {.command = command,
          .date = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr))),
          .program_version = KVMESH_VERSION,
          .machine = machine.info(),
          .ranks = mesh.size(),
          .kv_parallel = mesh.kv_parallel(),
          .head_parallel = mesh.head_parallel(),
          .shape = options.shape,
          .scatter = options.scatter,
          .strategy = options.strategy,
          .travels_as = options.travels_as,
          .output = options.output};
}

// The least over all ranks.
std::int64_t common_memory(Mesh& mesh, const Options& options, const Machine& machine) {
  auto most = -static_cast<double>(options.memory_bytes > 0 ? options.memory_bytes
                                                            : machine.memory_bytes());
  all_reduce_max(mesh.world(), std::span(&most, 1), "bench: memory");
  return static_cast<std::int64_t>(-most);
}

// The most over all ranks: all rotate the same number of layers.
std::int64_t common_rotation(Mesh& mesh, const Machine& machine) {
  auto most = static_cast<double>(machine.rotate_bytes());
  all_reduce_max(mesh.world(), std::span(&most, 1), "bench: caches");
  return static_cast<std::int64_t>(most);
}

// Takes all measurements of one batch.
class Cases {
 public:
  Cases(Mesh& mesh, Machine& machine, const Options& options, Report& report)
      : mesh_(mesh),
        machine_(machine),
        options_(options),
        report_(report),
        memory_(common_memory(mesh, options, machine)),
        rotate_bytes_(common_rotation(mesh, machine)) {}

  void run(const WorkloadShape& shape) {
    const std::vector<std::int64_t> lengths = lengths_of(shape);
    for (const Op op : options_.ops) {
      for (const std::int64_t queries : queries_of(options_, op)) {
        const std::int64_t needed =
            bytes_of_kinds(has_states(op) ? shape : without_states(shape), mesh_) +
            tensor_bytes(shape, mesh_, op, queries);
        if (has_too_few(shape, lengths, op, queries)) {
          skip(shape, op, queries, "more queries than the sequences have tokens");
        } else if (needed > memory_) {
          skip(shape, op, queries,
               fmt::format("needs {} a rank of {}", human_bytes(static_cast<double>(needed)),
                           human_bytes(static_cast<double>(memory_))));
        } else {
          for (const auto& [way, options] : rows_of(options_, op, queries)) {
            Workload& workload = workload_of(shape_of_row(shape, options, op, queries));
            report_.add(measure(workload, machine_, options, op, queries, way));
          }
        }
      }
    }
    leave_workload();
  }

 private:
  void skip(const WorkloadShape& shape, Op op, std::int64_t queries, std::string reason) {
    report_.add(Skipped{case_of(shape, op, queries), std::move(reason)});
  }

  // Planning lengthens every sequence a few times, and drafts begin somewhere in a page; for other
  // operations a short sequence has fewer queries.
  static bool has_too_few(const WorkloadShape& shape, std::span<const std::int64_t> lengths, Op op,
                          std::int64_t queries) {
    const auto [shortest, longest] = std::ranges::minmax(lengths);
    if (op == Op::kCompact) return queries + shape.model.page_size > shortest;
    return op == Op::kPlan ? 4 * queries > shortest : queries > longest;
  }

  static WorkloadShape without_states(WorkloadShape shape) {
    shape.model.state_bytes = 0;
    return shape;
  }

  // The rows of fork have caches of their own, all of as many layers.
  WorkloadShape shape_of_row(WorkloadShape shape, const Options& row, Op op,
                             std::int64_t queries) const {
    if (op != Op::kFork) shape.model.state_bytes = row.shape.state_bytes;
    shape.layers = layers_of(shape);
    if (op == Op::kFork) shape = without_states(shape);
    if (shape.model.window > 0) {
      shape.again =
          op == Op::kPlan ? tokens_of_plans(lengths_of(shape), options_, queries) : queries;
    }
    return shape;
  }

  // Enough layers of each kind to exceed the caches, but no more than fit beside the tensors of all
  // operations.
  int layers_of(const WorkloadShape& shape) const {
    const int kinds = shape.model.layer_kinds();
    const std::int64_t bytes = bytes_of_kinds(shape, mesh_);
    std::int64_t tensors = 0;
    for (const Op op : options_.ops) {
      for (const std::int64_t queries : queries_of(options_, op)) {
        const std::int64_t of_op = tensor_bytes(shape, mesh_, op, queries);
        if (bytes + of_op <= memory_) tensors = std::max(tensors, of_op);
      }
    }
    const std::int64_t attended = bytes_of_kinds(without_states(shape), mesh_);
    const std::int64_t wanted =
        options_.layers > 0 ? options_.layers / kinds : (rotate_bytes_ + attended - 1) / attended;
    return kinds * static_cast<int>(std::clamp<std::int64_t>(
                       std::min(wanted, (memory_ - tensors) / bytes), 1, kMostLayers / kinds));
  }

  // One cache for all rows of a batch that can have the same.
  Workload& workload_of(const WorkloadShape& shape) {
    const auto differs = [&](const WorkloadShape& other) {
      return other.layers != shape.layers || other.again != shape.again ||
             other.model.state_bytes != shape.model.state_bytes;
    };
    if (workload_ && differs(workload_->shape())) leave_workload();
    if (!workload_) {
      const std::int64_t kinds = shape.layers / shape.model.layer_kinds();
      check_host_memory(mesh_, static_cast<double>(bytes_of_kinds(shape, mesh_) * kinds));
      workload_.emplace(mesh_, machine_, shape);
    }
    return *workload_;
  }

  void leave_workload() {
    if (!workload_) return;
    const std::int64_t bytes = workload_->cache().pool_bytes();
    workload_.reset();
    machine_.cool_down(bytes);
  }

  Mesh& mesh_;
  Machine& machine_;
  const Options& options_;
  Report& report_;
  std::int64_t memory_;
  std::int64_t rotate_bytes_;
  std::optional<Workload> workload_;  // of the batch that run() is at
};

// The batches, in order. Those of listed lengths, which have no other batch or context, come last.
std::vector<WorkloadShape> shapes_of(const Options& options) {
  std::vector<WorkloadShape> shapes;
  for (const std::int64_t batch : options.batches) {
    for (const std::int64_t context : options.contexts) {
      for (const Lengths lengths : options.lengths) {
        shapes.push_back({.model = options.shape,
                          .batch = batch,
                          .context = context,
                          .lengths = lengths,
                          .shared_prefix = options.shared_prefix});
      }
    }
  }
  for (const auto& listed : options.listed) shapes.push_back(listed_shape(options.shape, listed));
  return shapes;
}

}  // namespace

int run_bench(Mesh& mesh, const Flags& flags, const std::string& command, const std::string& json,
              Output& out) {
  const Options options = resolve(flags, mesh);
  const std::unique_ptr<Machine> machine = make_machine(mesh, options.rotate_bytes);
  Report report(mesh, setting_of(mesh, options, *machine, command), json, out);
  static_cast<void>(machine->read());  // takes its memory, which the cases then do not count on
  Cases cases(mesh, *machine, options, report);
  for (const WorkloadShape& shape : shapes_of(options)) cases.run(shape);
  agree(mesh.world(), [&] { report.finish(); });
  return 0;
}

}  // namespace kvmesh::launch
