// For the tests of the cache: a directory of their own, made-up machine code.
#pragma once

#include <stdlib.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <random>
#include <stdexcept>
#include <string>
#include <system_error>

#include "kernels/jit/compiler.hpp"

namespace kvmesh::test {

/// Removed at the end.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "kvmesh_test_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary directory");
    path_ = name;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::size_t files() const {
    std::filesystem::directory_iterator begin(path_), end;
    return static_cast<std::size_t>(std::distance(begin, end));
  }

 private:
  std::filesystem::path path_;
};

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
