// The float64 attention of `kvmesh verify`, for the tests.
#pragma once

#include "launch/verify/reference.hpp"

namespace kvmesh::test {

using verify::DenseSequence;
using verify::reference_row;
using verify::ReferenceRow;

}  // namespace kvmesh::test
