/* What the parts of the program share. */
#ifndef KVMESH_TESTS_C_PROGRAM_H
#define KVMESH_TESTS_C_PROGRAM_H

#include <kvmesh/c/kvmesh.h>
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

void check_attention(kvmesh_mesh_t* mesh);
void check_combine(kvmesh_mesh_t* mesh);
void check_errors(kvmesh_mesh_t* mesh);
void check_external(kvmesh_mesh_t* mesh);
void check_pages(kvmesh_mesh_t* mesh);

#endif
