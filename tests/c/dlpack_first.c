/* An engine that has DLPack's header passes its DLTensors as they are. */
#include "dlpack_like.h"

/* Behind it the library's headers use its name. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "program.h"

static_assert(sizeof(DLTensor) == kTensorBytes, "DLTensor");
static_assert(offsetof(DLTensor, data) == kDataAt, "data");
static_assert(offsetof(DLTensor, device.device_type) == kDeviceTypeAt, "device_type");
static_assert(offsetof(DLTensor, device.device_id) == kDeviceIdAt, "device_id");
static_assert(offsetof(DLTensor, ndim) == kNdimAt, "ndim");
static_assert(offsetof(DLTensor, dtype.code) == kTypeCodeAt, "code");
static_assert(offsetof(DLTensor, dtype.bits) == kTypeBitsAt, "bits");
static_assert(offsetof(DLTensor, dtype.lanes) == kTypeLanesAt, "lanes");
static_assert(offsetof(DLTensor, shape) == kShapeAt, "shape");
static_assert(offsetof(DLTensor, strides) == kStridesAt, "strides");
static_assert(offsetof(DLTensor, byte_offset) == kByteOffsetAt, "byte_offset");

/* A view of float32 numbers in host memory, behind the first `skipped` ones. */
static DLTensor view(float* data, int skipped, int dims, int64_t* shape, int64_t* strides) {
  DLTensor tensor;
  memset(&tensor, 0, sizeof tensor);
  tensor.data = data;
  tensor.device.device_type = 1;
  tensor.ndim = dims;
  tensor.dtype.code = 2;
  tensor.dtype.bits = 32;
  tensor.dtype.lanes = 1;
  tensor.shape = shape;
  tensor.strides = strides;
  tensor.byte_offset = sizeof(float) * (uint64_t)skipped;
  return tensor;
}

/* Equal partials of all ranks are their merged rows. */
void check_dlpack(kvmesh_mesh_t* mesh) {
  float part[] = {NAN, 3, 5, NAN, 7, 9}, lse[] = {0, 0}, o[6];
  int64_t shape[] = {2, 1, 2}, strides[] = {3, 3, 1}, lse_strides[] = {1, 1};
  const kvmesh_tensor_t part_of = view(part, 1, 3, shape, strides);
  const DLTensor lse_of = view(lse, 0, 2, shape, lse_strides);
  const DLTensor o_of = view(o, 1, 3, shape, strides);
  kvmesh_combiner_t* combiner = NULL;
  for (int i = 0; i < 6; ++i) o[i] = NAN;
  CHECK_OK(kvmesh_combiner_create(mesh, &combiner));
  CHECK_OK(kvmesh_combiner_run(combiner, &part_of, &lse_of, NULL, &o_of, NULL, NULL));
  for (int i = 0; i < 6; ++i) {
    CHECK(i % 3 == 0 ? isnan(o[i]) : fabsf(o[i] - part[i]) < 1e-5f);
  }
  kvmesh_combiner_destroy(combiner);
}
