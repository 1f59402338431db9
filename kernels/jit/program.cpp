#include "kernels/jit/program.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <memory>
#include <new>
#include <string_view>

#include "core/check.hpp"

namespace kvmesh::jit {
namespace {

constexpr std::array kStandardHeaders{SourceFile{"cstdint", R"(#pragma once
namespace std {
using int8_t = signed char;
using int16_t = short;
using int32_t = int;
using int64_t = long long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
using intptr_t = long long;
using uintptr_t = unsigned long long;
}
)"}};

/// A hash of texts that depends on their borders: {"ab", "c"} and {"a", "bc"} differ.
class TextHash {
 public:
  TextHash() : state_(XXH3_createState()) {
    if (state_ == nullptr) throw std::bad_alloc();
    XXH3_128bits_reset(state_.get());
  }

  void add(std::string_view text) {
    const std::uint64_t size = text.size();
    XXH3_128bits_update(state_.get(), &size, sizeof size);
    XXH3_128bits_update(state_.get(), text.data(), text.size());
  }

  ProgramKey result() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_.get());
    return {{hash.high64, hash.low64}};
  }

 private:
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> state_;
};

}  // namespace

std::string translation_unit(const Program& program) {
  const bool is_known = std::any_of(program.files.begin(), program.files.end(),
                                    [&](const auto& file) { return file.name == program.source; });
  require(is_known, "no kernel source is called '{}'", program.source);
  return fmt::format("#line 1 \"constants\"\n{}\n#line 1 \"mods\"\n{}\n#include \"{}\"\n",
                     program.constants.text(), program.mods, program.source);
}

std::vector<std::string> compiler_options(const Program& program) {
  std::vector<std::string> options{
      "--gpu-architecture=" + program.architecture,
      "--std=c++20",
      "--device-as-default-execution-space",
      "--minimal",           // no texture functions, no launches from the device
      "--ptxas-options=-v",  // registers and spills, for resources()
      "--no-cache",          // CubinCache is the cache
      "--brief-diagnostics=true",
  };
  options.insert(options.end(), program.options.begin(), program.options.end());
  return options;
}

std::vector<SourceFile> all_headers(const Program& program) {
  std::vector<SourceFile> headers(kStandardHeaders.begin(), kStandardHeaders.end());
  headers.insert(headers.end(), program.files.begin(), program.files.end());
  return headers;
}

ProgramKey key_of(const Program& program, const std::string& compiler) {
  TextHash hash;
  hash.add(compiler);
  hash.add(translation_unit(program));
  for (const std::string& option : compiler_options(program)) hash.add(option);
  for (const SourceFile& header : all_headers(program)) {
    hash.add(header.name);
    hash.add(header.text);
  }
  return hash.result();
}

std::string to_string(const ProgramKey& key) {
  return fmt::format("{:016x}{:016x}", key.bits[0], key.bits[1]);
}

}  // namespace kvmesh::jit
