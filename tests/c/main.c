/* Runs the C interface on the ranks of a launcher, on two threads (threads), or on two processes that
   meet over TCP (tcp). */
#include "program.h"

#include <assert.h>
#include <string.h>

static_assert(sizeof(kvmesh_tensor_t) == kTensorBytes, "kvmesh_tensor_t");
static_assert(offsetof(kvmesh_tensor_t, data) == kDataAt, "data");
static_assert(offsetof(kvmesh_tensor_t, device_type) == kDeviceTypeAt, "device_type");
static_assert(offsetof(kvmesh_tensor_t, device_id) == kDeviceIdAt, "device_id");
static_assert(offsetof(kvmesh_tensor_t, ndim) == kNdimAt, "ndim");
static_assert(offsetof(kvmesh_tensor_t, type_code) == kTypeCodeAt, "type_code");
static_assert(offsetof(kvmesh_tensor_t, type_bits) == kTypeBitsAt, "type_bits");
static_assert(offsetof(kvmesh_tensor_t, type_lanes) == kTypeLanesAt, "type_lanes");
static_assert(offsetof(kvmesh_tensor_t, shape) == kShapeAt, "shape");
static_assert(offsetof(kvmesh_tensor_t, strides) == kStridesAt, "strides");
static_assert(offsetof(kvmesh_tensor_t, byte_offset) == kByteOffsetAt, "byte_offset");

kvmesh_tensor_t floats(float* data, int dims, int64_t* shape) {
  kvmesh_tensor_t tensor;
  memset(&tensor, 0, sizeof tensor);
  tensor.data = data;
  tensor.device_type = 1;
  tensor.ndim = dims;
  tensor.type_code = 2;
  tensor.type_bits = 32;
  tensor.type_lanes = 1;
  tensor.shape = shape;
  return tensor;
}

share_t share_of(int count, const kvmesh_mesh_info_t* info) {
  const int each = count / info->kv_parallel, more = count % info->kv_parallel;
  const int rank = info->kv_rank, begin = rank * each + (rank < more ? rank : more);
  const share_t mine = {begin, begin + each + (rank < more)};
  return mine;
}

kvmesh_status_t check_all(kvmesh_mesh_t* mesh, void* context) {
  kvmesh_mesh_info_t info = KVMESH_INIT(info);
  (void)context;
  CHECK_OK(kvmesh_mesh_get_info(mesh, &info));
  CHECK(info.kv_parallel == info.ranks && info.head_parallel == 1 && info.device_type == 1);
  check_attention(mesh);
  check_combine(mesh);
  check_dlpack(mesh);
  check_errors(mesh);
  check_external(mesh);
  check_mesh(mesh);
  check_mods(mesh);
  check_pages(mesh);
  printf("rank %d of %d: all right\n", info.rank, info.ranks);
  return KVMESH_OK;
}

int main(int argc, char** argv) {
  CHECK(kvmesh_version() == KVMESH_VERSION_NUMBER);
  if (argc > 1 && strcmp(argv[1], "threads") == 0) {
    CHECK_OK(kvmesh_run_on_threads(2, check_all, NULL, NULL));
    return 0;
  }
  if (argc > 1 && strcmp(argv[1], "tcp") == 0) {
    check_tcp();
    return 0;
  }
  kvmesh_mpi_session_t* session = NULL;
  kvmesh_mesh_t* mesh = NULL;
  kvmesh_mesh_options_t options = KVMESH_INIT(options);
  options.threads = 1;
  CHECK(kvmesh_mpi_session_create(NULL) == KVMESH_INVALID_ARGUMENT);
  CHECK_OK(kvmesh_mpi_session_create(&session));
  CHECK_OK(kvmesh_mesh_from_launcher(&options, &mesh));
  check_all(mesh, NULL);
  kvmesh_mesh_destroy(mesh);
  kvmesh_mpi_session_destroy(session);
  return 0;
}
