/* Runs the C interface on the ranks of a launcher, or on two threads. */
#include "program.h"

#include <string.h>

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

static kvmesh_status_t check_all(kvmesh_mesh_t* mesh, void* context) {
  kvmesh_mesh_info_t info = KVMESH_INIT(info);
  (void)context;
  CHECK_OK(kvmesh_mesh_get_info(mesh, &info));
  CHECK(info.kv_parallel == info.ranks && info.head_parallel == 1 && info.device_type == 1);
  check_attention(mesh);
  check_combine(mesh);
  check_errors(mesh);
  check_external(mesh);
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
  kvmesh_mpi_session_t* session = NULL;
  kvmesh_mesh_t* mesh = NULL;
  kvmesh_mesh_options_t options = KVMESH_INIT(options);
  options.threads = 1;
  CHECK_OK(kvmesh_mpi_session_create(&session));
  CHECK_OK(kvmesh_mesh_from_launcher(&options, &mesh));
  check_all(mesh, NULL);
  kvmesh_mesh_destroy(mesh);
  kvmesh_mpi_session_destroy(session);
  return 0;
}
