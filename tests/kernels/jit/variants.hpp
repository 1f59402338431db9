// Kernels that must compile well for every chip they support.
#pragma once

#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "kernels/jit/compiler.hpp"
#include "kernels/jit/dump.hpp"

namespace kvmesh::test {

/// One kernel, compiled for one case.
struct Variant {
  std::string name;  ///< letters, digits and underscores
  jit::Program program;
  int local_bytes = 0;  ///< local memory that a thread may take: none in a hot kernel
};

inline void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }

/// Compiles without a warning; its kernels keep everything in registers, or nearly so where that is
/// allowed. Dumps it to $KVMESH_DUMP if that is set.
inline void expect_compiles_without_spill(const Variant& variant) {
  const jit::Cubin cubin = jit::compile(variant.program);
  jit::Dump().write(variant.program, jit::key_of(variant.program, jit::compiler_version()), cubin);
  EXPECT_EQ(cubin.log.find("warning"), std::string::npos) << cubin.log;
  EXPECT_FALSE(cubin.resources().empty()) << "no kernel: " << cubin.log;
  for (const jit::KernelResources& kernel : cubin.resources()) {
    if (variant.local_bytes == 0) {
      EXPECT_TRUE(kernel.stays_in_registers()) << to_string(kernel);
    } else {
      EXPECT_LE(kernel.stack_bytes, variant.local_bytes) << to_string(kernel);
    }
  }
}

/// The variant once per architecture, which becomes a part of its name.
inline std::vector<Variant> for_each_architecture(const Variant& variant,
                                                  const std::vector<std::string>& architectures) {
  std::vector<Variant> each;
  for (const std::string& architecture : architectures) {
    each.push_back(variant);
    each.back().name += "_" + architecture;
    each.back().program.architecture = architecture;
  }
  return each;
}

}  // namespace kvmesh::test
