#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "launch/bench/report.hpp"

namespace kvmesh::bench {
namespace {

constexpr const char* kCase = "{:<20} {:>5} {:>6} {:>8} {:>7} {:>7} ";
constexpr const char* kNumbers = "{:>11} {:>21} {:>9} {:>9} {:>9} {:<8} {:>7}{}\n";

// 1 -> "1.000", 1234.5 -> "1235": four digits that count.
std::string digits(double value) {
  const int decimals = value >= 1000 ? 0 : value >= 100 ? 1 : value >= 10 ? 2 : 3;
  return fmt::format("{:.{}f}", value, decimals);
}

struct Unit {
  const char* name;
  double scale;
};
Unit unit_of(const Row& row) {
  if (row.operation.amount == 0) return {"", 0};
  if (row.quantity == Quantity::kBytes) return {"GB/s", 1e-9};
  const bool large = row.ceiling && row.ceiling->measured.rate() >= 1e13;
  return large ? Unit{"TFLOP/s", 1e-12} : Unit{"GFLOP/s", 1e-9};
}

// Rounding to 16 bits is some thousandths.
constexpr double kLargestError = 0.02;

std::string launches(const Row& row) {
  return row.timing == Timing::kStream ? "  not captured: the host's launches count" : "";
}

std::string between_hosts(const HostTraffic& bytes) {
  const auto kilobytes = [](std::int64_t count) {
    return digits(1e-3 * static_cast<double>(count)) + " kB";
  };
  std::string text = "  to other hosts " + kilobytes(bytes.flat);
  if (bytes.hierarchical) text += ", merged within hosts first " + kilobytes(*bytes.hierarchical);
  return text;
}

std::string note(const Row& row) {
  if (row.error && !(*row.error <= kLargestError)) {
    return fmt::format("  WRONG: off by {:.2g} of the largest number", *row.error);
  }
  if (row.between_hosts) return between_hosts(*row.between_hosts) + launches(row);
  if (row.on_device) {
    return fmt::format("  on the device after {} us", digits(1e6 * row.on_device->median));
  }
  return launches(row);
}

std::string begin_of_line(const Case& what, int ranks) {
  const std::string op =
      fmt::format("{}{}{}", name(what.op), what.way.empty() ? "" : "/", what.way);
  return fmt::format(kCase, op, ranks, what.batch, what.context, name(what.lengths), what.queries);
}

}  // namespace

std::string heading(const Setting& setting) {
  const Shape& shape = setting.shape;
  std::string text = fmt::format(
      "{}{}\n{}\n{} ranks ({} kv x {} head), {}/{} heads, dim {}/{}, {}, {} {} pages of {}, "
      "scatter "
      "{}, strategy {}, peers send {}, {} output{}\n\n",
      setting.machine.device,
      setting.machine.driver.empty() ? "" : ", driver " + setting.machine.driver,
      setting.machine.versions, setting.ranks, setting.kv_parallel, setting.head_parallel,
      shape.q_heads, shape.kv_heads, shape.k_dim, shape.v_dim, name(shape.dtype),
      name(shape.page_dtype()), name(shape.page_kind), shape.page_size, name(setting.scatter),
      name(setting.strategy), name(setting.travels_as), name(setting.output),
      shape.window > 0
          ? fmt::format(", a window of {} in every second layer: times are means", shape.window)
          : "");
  return text + fmt::format(kCase, "op", "ranks", "batch", "context", "lengths", "queries") +
         fmt::format(kNumbers, "us, median", "p10 - p90", "rate", "ceiling", "read", "", "share",
                     "");
}

std::string line_of(const Row& row, int ranks) {
  const Summary& time = row.operation.seconds;
  const Unit unit = unit_of(row);
  return begin_of_line(row.what, ranks) +
         fmt::format(kNumbers, digits(1e6 * time.median),
                     digits(1e6 * time.p10) + " - " + digits(1e6 * time.p90),
                     row.operation.amount > 0 ? digits(unit.scale * row.operation.rate()) : "-",
                     row.ceiling ? digits(unit.scale * row.ceiling->measured.rate()) : "-",
                     row.read ? digits(unit.scale * row.read->measured.rate()) : "-", unit.name,
                     row.ceiling ? fmt::format("{:.1f} %", 100 * row.share()) : "-", note(row));
}

std::string line_of(const Skipped& skipped, int ranks) {
  return begin_of_line(skipped.what, ranks) + " " + skipped.reason + "\n";
}

std::string footing(std::span<const Row> rows) {
  std::set<std::string> ceilings;
  for (const Row& row : rows) {
    if (row.ceiling)
      ceilings.insert(fmt::format("  {}: {}\n", name(row.what.op), row.ceiling->name));
  }
  std::string text =
      "\nTimes of one layer (plan: of the host, for a step of any number of layers; compact, fork, "
      "move, "
      "store, load: of all layers), the slowest rank's; rates of all ranks together. Ceilings, "
      "measured "
      "turn by turn with the operation (read: a streaming read, where the ceiling is another):\n";
  for (const std::string& line : ceilings) text += line;
  const auto crosses = [](const Row& row) { return row.between_hosts.has_value(); };
  if (std::ranges::any_of(rows, crosses)) {
    text +=
        "To other hosts: the bytes of all ranks together, counted from the plan as all-to-alls of "
        "float32 rows send them.\n";
  }
  return text;
}

}  // namespace kvmesh::bench
