// The contract of every communicator. A new implementation costs a type with `name` and `run`, as
// in tests/support/ranks.hpp, and one INSTANTIATE_TEST_SUITE_P.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/ranks.hpp"

namespace kvmesh::test {

using Bytes = std::vector<std::byte>;

inline constexpr std::byte kPoison{0xA5};

/// The bytes that `from` sends to `to` in round `round`: no two messages are alike.
inline Bytes message(int from, int to, int round, std::size_t size) {
  Bytes bytes(size);
  const unsigned seed = static_cast<unsigned>(from * 31 + to * 7 + round * 131 + 1);
  for (std::size_t i = 0; i < size; ++i) {
    bytes[i] = static_cast<std::byte>((seed * 2654435761u + i * 97) >> 5);
  }
  return bytes;
}

inline void expect_says(const Error& error, const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    EXPECT_NE(std::string_view(error.what()).find(word), std::string_view::npos)
        << '"' << error.what() << "\" does not say " << word;
  }
}

/// The tests are in communicator_contract.cpp, compiled once for all programs that instantiate
/// them.
class CommunicatorContract : public testing::TestWithParam<RankKind> {};

}  // namespace kvmesh::test
