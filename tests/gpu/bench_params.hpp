// Shared by the benchmark's host and device code.
#pragma once

namespace kvmesh::test {

struct alignas(16) BenchUnit {
  unsigned x, y, z, w;
};

struct BenchParams {
  BenchUnit* data;
  long long units;
  unsigned seed;
};

}  // namespace kvmesh::test
