// The CUDA text of mods in a shared library: the host's compiler compiles it together with
// definitions of CUDA's few functions.
#pragma once

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/mods/emit_cuda.hpp"
#include "kvmesh/mods.hpp"

namespace kvmesh::test {

/// CUDA functions that the host lacks.
inline constexpr std::string_view kHostPrelude = R"(
#include <math.h>
#include <bit>
namespace kvmesh::mod_ops {
inline float near_power_of_two(float a) { return exp2f(a); }
inline float near_reciprocal(float a) { return 1.0f / a; }
}
#define __device__
#define __forceinline__ inline
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline int __float2int_rz(float a) {
  if (a != a) return 0;
  if (a >= 0x1p31f) return 0x7fffffff;
  return a < -0x1p31f ? int(0x80000000u) : static_cast<int>(a);
}
)";

struct EmittedMods {
  ScoreMod score;
  MaskMod mask;
};

/// The functions of case i are called score_i and mask_i.
inline std::string source_of(const std::vector<EmittedMods>& cases) {
  std::string text(kHostPrelude);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const std::string number = std::to_string(i);
    for (const char* name : {"kvmesh_score_mod", "kvmesh_mask_mod", "kHasScoreMod", "kHasMaskMod",
                             "kModBuffers", "kCapDivisor", "kCapFactor"}) {
      text +=
          std::string("#undef ") + name + "\n#define " + name + " " + name + "_" + number + "\n";
    }
    text += emit_cuda(cases[i].score.graph(), cases[i].mask.graph()).text;
    text += "extern \"C\" float score_" + number +
            "(float s, int b, int h, int q, int kv, const kvmesh::ModBuffers& buffers) {"
            " return kvmesh::kvmesh_score_mod<kvmesh::mod_ops::RoundedMath>(s, b, h, q, kv, "
            "buffers); }\n"
            "extern \"C\" float near_score_" +
            number +
            "(float s, int b, int h, int q, int kv, const kvmesh::ModBuffers& buffers) {"
            " return kvmesh::kvmesh_score_mod<kvmesh::mod_ops::NearMath>(s, b, h, q, kv, buffers); "
            "}\n";
    text += "extern \"C\" bool mask_" + number +
            "(int b, int h, int q, int kv, const kvmesh::ModBuffers& buffers) {"
            " return kvmesh::kvmesh_mask_mod(b, h, q, kv, buffers); }\n";
  }
  return text;
}

/// A shared library compiled from a text and loaded. Leaves no file behind.
class HostLibrary {
 public:
  explicit HostLibrary(const std::string& source) {
    const std::filesystem::path stem =
        std::filesystem::temp_directory_path() / ("kvmesh_emit_cuda_" + std::to_string(::getpid()));
    const std::string text = stem.string() + ".cpp";
    const std::string library = stem.string() + ".so";
    std::ofstream(text) << source;
    const std::string command = std::string(KVMESH_CXX_COMPILER) +
                                " -std=c++20 -O2 -ffp-contract=off -shared -fPIC -I" +
                                KVMESH_SOURCE_DIR + " -o " + library + " " + text;
    if (std::system(command.c_str()) == 0) handle_.reset(::dlopen(library.c_str(), RTLD_NOW));
    std::filesystem::remove(text);
    std::filesystem::remove(library);
  }

  bool is_loaded() const { return handle_ != nullptr; }
  template <class Function>
  Function* function(const std::string& name) const {
    return reinterpret_cast<Function*>(::dlsym(handle_.get(), name.c_str()));
  }

 private:
  struct Close {
    void operator()(void* handle) const { ::dlclose(handle); }
  };
  std::unique_ptr<void, Close> handle_;
};

using ScoreFunction = float(float, int, int, int, int, const ModBuffers&);
using MaskFunction = bool(int, int, int, int, const ModBuffers&);

inline bool has_compiler() {
  return std::system((std::string(KVMESH_CXX_COMPILER) + " --version >/dev/null 2>&1").c_str()) ==
         0;
}

inline std::string text_of(const ScoreMod& score, const MaskMod& mask) {
  return emit_cuda(score.graph(), mask.graph()).text;
}
inline bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

}  // namespace kvmesh::test
