/* Meshes that need no launcher, and what a mesh without GPUs refuses. */
#define _POSIX_C_SOURCE 200809L
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "program.h"

void check_mesh(kvmesh_mesh_t* mesh) {
  uint8_t id[128] = {0};
  CHECK_OK(kvmesh_mesh_wait(mesh, NULL, "a step"));
  CHECK_OK(kvmesh_mesh_wait(mesh, NULL, NULL));
  CHECK(kvmesh_mesh_wait(NULL, NULL, "a step") == KVMESH_INVALID_ARGUMENT);
  CHECK(kvmesh_mesh_make_nccl(mesh, id) == KVMESH_INVALID_ARGUMENT);
  CHECK(strstr(kvmesh_last_error(), "GPU") != NULL);
  CHECK(kvmesh_mesh_make_nccl(mesh, NULL) == KVMESH_INVALID_ARGUMENT);
  CHECK(kvmesh_mesh_use_nccl(mesh, NULL) != KVMESH_OK); /* a build without NCCL has no group */
  CHECK(kvmesh_nccl_make_id(NULL) == KVMESH_INVALID_ARGUMENT);
}

/* One of two ranks that meet at a port of this machine. */
static void be_rank(int rank, uint16_t port) {
  kvmesh_mesh_t* mesh = NULL;
  kvmesh_tcp_options_t tcp = KVMESH_INIT(tcp);
  kvmesh_mesh_options_t options = KVMESH_INIT(options);
  kvmesh_mesh_info_t info = KVMESH_INIT(info);
  tcp.rank = rank;
  tcp.ranks = 2;
  tcp.port = port;
  tcp.deadline_ms = 20000;
  tcp.secret = "of this test";
  tcp.job = "c_program";
  options.threads = 1;
  CHECK(kvmesh_mesh_from_tcp(NULL, &options, &mesh) == KVMESH_INVALID_ARGUMENT);
  CHECK(kvmesh_mesh_from_tcp(&tcp, &options, NULL) == KVMESH_INVALID_ARGUMENT);
  CHECK(mesh == NULL);
  CHECK_OK(kvmesh_mesh_from_tcp(&tcp, &options, &mesh));
  CHECK_OK(kvmesh_mesh_get_info(mesh, &info));
  CHECK(info.rank == rank && info.ranks == 2 && info.kv_rank == rank);
  check_all(mesh, NULL);
  kvmesh_mesh_destroy(mesh);
}

void check_tcp(void) {
  const uint16_t port = (uint16_t)(20000 + getpid() % 20000);
  int status = 0;
  const pid_t child = fork(); /* the library has no threads yet */
  CHECK(child >= 0);
  be_rank(child == 0, port);
  if (child == 0) exit(0);
  CHECK(waitpid(child, &status, 0) == child && status == 0);
}
