// How long a test goes on.
#pragma once

#include <cstdlib>

namespace kvmesh::test {

/// `steps`, or KVMESH_STEPS: a sanitizer takes its time.
inline int steps_or(int steps) {
  const char* text = std::getenv("KVMESH_STEPS");
  return text ? std::atoi(text) : steps;
}

}  // namespace kvmesh::test
