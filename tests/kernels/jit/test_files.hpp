// The kernels of these tests.
#pragma once

#include <span>

#include "kernels/jit/source_file.hpp"

namespace kvmesh {

std::span<const jit::SourceFile> jit_test_files();

}  // namespace kvmesh
