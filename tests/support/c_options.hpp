// Options of the C functions in tests in C++.
#pragma once

namespace kvmesh::test {

/// KVMESH_INIT of C++.
template <class Options>
Options sized() {
  Options options{};
  options.size = sizeof(options);
  return options;
}

}  // namespace kvmesh::test
