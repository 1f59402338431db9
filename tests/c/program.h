/* What the parts of the program share. */
#ifndef KVMESH_TESTS_C_PROGRAM_H
#define KVMESH_TESTS_C_PROGRAM_H

#include <kvmesh/c/kvmesh.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

/* Ends the program, with the library's words, unless the condition holds. */
#define CHECK(condition)                                                                      \
  do {                                                                                        \
    if (!(condition)) {                                                                       \
      fprintf(stderr, "%s:%d: not so: %s (last error: %s)\n", __FILE__, __LINE__, #condition, \
              kvmesh_last_error());                                                           \
      exit(1);                                                                                \
    }                                                                                         \
  } while (0)
#define CHECK_OK(call) CHECK((call) == KVMESH_OK)

/* A float32 tensor in host memory; `shape` stays the caller's. */
kvmesh_tensor_t floats(float* data, int dims, int64_t* shape);

/* What a mesh's kv rank gets of `count` heads or tokens: [begin, end). */
typedef struct {
  int begin, end;
} share_t;
share_t share_of(int count, const kvmesh_mesh_info_t* info);

/* Where DLPack's ABI has the members of a tensor, in bytes. */
enum {
  kDataAt = 0,
  kDeviceTypeAt = 8,
  kDeviceIdAt = 12,
  kNdimAt = 16,
  kTypeCodeAt = 20,
  kTypeBitsAt = 21,
  kTypeLanesAt = 22,
  kShapeAt = 24,
  kStridesAt = 32,
  kByteOffsetAt = 40,
  kTensorBytes = 48
};

/* All checks that follow, on one mesh. */
kvmesh_status_t check_all(kvmesh_mesh_t* mesh, void* context);
void check_attention(kvmesh_mesh_t* mesh);
void check_combine(kvmesh_mesh_t* mesh);
void check_dlpack(kvmesh_mesh_t* mesh);
void check_errors(kvmesh_mesh_t* mesh);
void check_external(kvmesh_mesh_t* mesh);
void check_mesh(kvmesh_mesh_t* mesh);
void check_mods(kvmesh_mesh_t* mesh);
void check_pages(kvmesh_mesh_t* mesh);

/* Meets a child process over TCP, and runs all checks. REQUIRES: no mesh before. */
void check_tcp(void);

#endif
