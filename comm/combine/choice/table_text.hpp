// A table of ways as text: what its file holds, and what rank 0 sends to the others.
//
//   kvmesh combine table 2
//   kvmesh 1.0.0; 2 ranks on 1 host over mpi; ...    the key
//   read 4100.00                                     GB/s of a GPU's memory, if measured
//   nccl all_to_all heads 16512:13.10 264192:13.88   way, strategy, scatter, bytes:microseconds
//   crc32c 1a2b3c4d                                  of all lines before
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "comm/combine/choice/way_table.hpp"

namespace kvmesh {

/// Rounds times to 0.01 us, and the rate to 0.01 GB/s. REQUIRES: `key` is one line.
std::string to_text(std::string_view key, const WayTable& table);

/// Returns the table, or nothing if a byte was changed or is missing, or the key is another one.
std::optional<WayTable> table_from(std::string_view key, std::string_view text);

}  // namespace kvmesh
