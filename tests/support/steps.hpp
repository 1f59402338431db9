// The length of a random test.
#pragma once

#include <cstdlib>

namespace kvmesh::test {

/// `steps`, or KVMESH_STEPS: a sanitizer is slow.
inline int steps_or(int steps) {
  const char* text = std::getenv("KVMESH_STEPS");
  return text ? std::atoi(text) : steps;
}

}  // namespace kvmesh::test
