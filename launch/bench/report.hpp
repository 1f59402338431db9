// The table, and the file for other programs.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "launch/bench/measure.hpp"

namespace kvmesh::bench {

/// The machine, the command and the time of a measurement.
struct Setting {
  std::string command;
  std::string date;  ///< UTC, ISO 8601
  std::string program_version;
  MachineInfo machine;
  int ranks = 1;
  int kv_parallel = 1;
  int head_parallel = 1;
  Shape shape;
  Scatter scatter{};
  CombineStrategy strategy{};
  Dtype travels_as{};
  Output output{};
};

struct Skipped {
  Case what{};
  std::string reason;
};

std::string heading(const Setting& setting);
std::string line_of(const Row& row, int ranks);
std::string line_of(const Skipped& skipped, int ranks);
/// Explains the columns, and the ceilings of these rows.
std::string footing(std::span<const Row> rows);

std::string to_json(const Setting& setting, std::span<const Row> rows,
                    std::span<const Skipped> skipped);

}  // namespace kvmesh::bench
