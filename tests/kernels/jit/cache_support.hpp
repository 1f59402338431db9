// For the tests of the cache: made-up machine code.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>

#include "kernels/jit/compiler.hpp"
#include "tests/support/temporary_directory.hpp"

namespace kvmesh::test {

/// The same bytes for the same number.
inline jit::Cubin made_up_cubin(std::uint64_t number, std::size_t size) {
  std::mt19937_64 random(number);
  jit::Cubin cubin{.bytes = std::vector<std::byte>(size),
                   .log = "log " + std::to_string(number) + "\n"};
  for (std::byte& byte : cubin.bytes) byte = static_cast<std::byte>(random());
  return cubin;
}

inline bool same(const jit::Cubin& a, const jit::Cubin& b) {
  return a.bytes == b.bytes && a.log == b.log;
}

}  // namespace kvmesh::test
