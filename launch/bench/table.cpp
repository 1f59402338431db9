#include <fmt/format.h>

#include <set>

#include "launch/bench/report.hpp"

namespace kvmesh::bench {
namespace {

constexpr const char* kColumns =
    "{:<8} {:>5} {:>6} {:>8} {:>7} {:>11} {:>21} {:>9} {:>9} {:<8} {:>7}{}\n";

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

std::string note(Timing timing) {
  return timing == Timing::kStream ? "  not captured: the host's launches count" : "";
}

}  // namespace

std::string heading(const Setting& setting) {
  const Shape& shape = setting.shape;
  std::string text = fmt::format(
      "{}{}\n{}\n{} ranks ({} kv x {} head), {}/{} heads, dim {}/{}, {}, pages of {}, scatter {}, "
      "strategy {}\n\n",
      setting.machine.device,
      setting.machine.driver.empty() ? "" : ", driver " + setting.machine.driver,
      setting.machine.versions, setting.ranks, setting.kv_parallel, setting.head_parallel,
      shape.q_heads, shape.kv_heads, shape.k_dim, shape.v_dim, name(shape.dtype), shape.page_size,
      name(setting.scatter), name(setting.strategy));
  return text + fmt::format(kColumns, "op", "ranks", "batch", "context", "queries", "us, median",
                            "p10 - p90", "rate", "ceiling", "", "share", "");
}

std::string line_of(const Row& row, int ranks) {
  const Summary& time = row.operation.seconds;
  const Unit unit = unit_of(row);
  return fmt::format(
      kColumns, name(row.op), ranks, row.batch, row.context, row.queries, digits(1e6 * time.median),
      digits(1e6 * time.p10) + " - " + digits(1e6 * time.p90),
      row.operation.amount > 0 ? digits(unit.scale * row.operation.rate()) : "-",
      row.ceiling ? digits(unit.scale * row.ceiling->measured.rate()) : "-", unit.name,
      row.ceiling ? fmt::format("{:.1f} %", 100 * row.share()) : "-", note(row.timing));
}

std::string footing(std::span<const Row> rows) {
  std::set<std::string> ceilings;
  for (const Row& row : rows) {
    if (row.ceiling) ceilings.insert(fmt::format("  {}: {}\n", name(row.op), row.ceiling->name));
  }
  std::string text =
      "\nTimes of one layer (plan: of the host, for a step of any number of layers), the slowest "
      "rank's; rates of all ranks together. Ceilings, measured "
      "turn by turn with the operation:\n";
  for (const std::string& line : ceilings) text += line;
  return text;
}

}  // namespace kvmesh::bench
