// Changes of an input, drawn by a generator that gives the same numbers everywhere.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace kvmesh::test {

using Input = std::vector<std::uint8_t>;

/// Changes `input` in one to four ways, some of which take bytes from one of `others`. The result
/// has at most `most` bytes. REQUIRES: others is not empty.
void mutate(Input& input, std::span<const Input> others, std::size_t most, std::mt19937_64& random);

}  // namespace kvmesh::test
