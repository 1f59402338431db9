/* The part of the C interface that everything else needs: errors, tensors, meshes, masks and
   scores. See kvmesh.h, which includes it, for the rules of all functions. */
#ifndef KVMESH_C_MESH_H
#define KVMESH_C_MESH_H

#include <stddef.h>
#include <stdint.h>

#include "kvmesh/api.h"
#include "kvmesh/version.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Errors and version ---- */

typedef int32_t kvmesh_status_t;

/* One per type of error, as ErrorCode in kvmesh/error.hpp. */
enum {
  KVMESH_OK = 0,
  KVMESH_ERROR = 1, /* mostly of a device or of the system */
  KVMESH_INVALID_ARGUMENT = 2,
  KVMESH_UNSUPPORTED = 3, /* by this build or this machine */
  KVMESH_UNKNOWN_SEQUENCE = 4,
  KVMESH_OUT_OF_PAGES = 5, /* expected in normal service: erase a sequence, and try again */
  KVMESH_OUT_OF_THREADS = 6,
  KVMESH_OUT_OF_MEMORY = 7,
  KVMESH_TIMEOUT = 8,
  KVMESH_PEER_LOST = 9,
  KVMESH_BROKEN_GROUP = 10,
  KVMESH_DIGEST_MISMATCH = 11,
  KVMESH_RENDEZVOUS_ERROR = 12,
  KVMESH_NCCL_ERROR = 13,
  KVMESH_STREAM_ERROR = 14
};

/* The text of this thread's last status that was not KVMESH_OK; until the next one. */
KVMESH_API const char* kvmesh_last_error(void);
/* Receives a line that no call can return, without its end; see kvmesh/log.hpp. */
typedef void (*kvmesh_log_t)(const char* line, void* context);
/* Sends such lines to `function` instead of standard error; NULL: to standard error again. */
KVMESH_API void kvmesh_set_log(kvmesh_log_t function, void* context);
/* The library's version, to be compared with KVMESH_VERSION_NUMBER of the headers. */
KVMESH_API int32_t kvmesh_version(void);

/* The first member of an options struct: kvmesh_cache_options_t options = KVMESH_INIT(options); */
#ifdef __cplusplus
extern "C++" {
/* Becomes any options struct: C++ has no designated initializers before C++20, and compilers warn of
   the members that one leaves out. */
struct kvmesh_init {
  size_t size;
  template <class Options>
  operator Options() const {
    Options options = Options();
    options.size = size;
    return options;
  }
};
}
#define KVMESH_INIT(options) \
  kvmesh_init { sizeof(options) }
#else
#define KVMESH_INIT(options) \
  { .size = sizeof(options) }
#endif

/* ---- Tensors ---- */

/* DLPack's DLTensor: include dlpack.h first to use its name. Else a struct of the same layout. */
#ifdef DLPACK_DLPACK_H_
typedef DLTensor kvmesh_tensor_t;
#else
typedef struct kvmesh_tensor {
  void* data;          /* not NULL, unless there are no elements */
  int32_t device_type; /* 1: host, 2: CUDA */
  int32_t device_id;
  int32_t ndim;      /* at most 4 */
  uint8_t type_code; /* 2: float, 4: bfloat; of a mod's buffers also 0: int, 1 or 6: bool */
  uint8_t type_bits;
  uint16_t type_lanes; /* 1 */
  int64_t* shape;
  int64_t* strides; /* in elements; NULL: row-major */
  uint64_t byte_offset;
} kvmesh_tensor_t;
#endif

/* ---- Mesh ---- */

typedef struct kvmesh_mesh kvmesh_mesh_t;
typedef struct kvmesh_mpi_session kvmesh_mpi_session_t;

enum { KVMESH_DEVICE_CPU = 0, KVMESH_DEVICE_CUDA = 1, KVMESH_DEVICE_AUTO = 2 };

typedef struct kvmesh_mesh_options {
  size_t size;
  int32_t head_parallel; /* ranks with other heads of the same pages; 0: 1 */
  int32_t threads;       /* of the CPU backend; 0: this rank's share of the cores */
  int32_t device;        /* KVMESH_DEVICE_... */
  int32_t no_nccl;       /* 1: the mesh makes no NCCL group (kvmesh_mesh_use_nccl gives it one) */
  int64_t deadline_ms;   /* of every wait for a peer; 0: 60 s, or that of the rendezvous */
} kvmesh_mesh_options_t;

typedef struct kvmesh_tcp_options {
  size_t size;
  int32_t rank;
  int32_t ranks;       /* 0: 1 */
  const char* host;    /* where rank 0 listens; NULL: 127.0.0.1 */
  uint16_t port;       /* REQUIRED if there are several ranks */
  const char* address; /* to listen on; NULL: see TcpOptions in kvmesh/tcp.hpp */
  int64_t deadline_ms; /* of the rendezvous; 0: 60 s */
  const char* secret;  /* of the job; NULL: none, so that only private addresses are allowed */
  const char* job;     /* id of the job; NULL: none */
} kvmesh_tcp_options_t;

typedef struct kvmesh_mesh_info {
  size_t size;
  int32_t rank, ranks;
  int32_t kv_rank, kv_parallel;
  int32_t head_rank, head_parallel;
  int32_t device_type, device_id; /* as in kvmesh_tensor_t */
} kvmesh_mesh_info_t;

/* Starts MPI, unless the program has; for kvmesh_mesh_from_launcher under mpirun. Ending the
   session waits for all ranks. */
KVMESH_API kvmesh_status_t kvmesh_mpi_session_create(kvmesh_mpi_session_t** session);
KVMESH_API void kvmesh_mpi_session_destroy(kvmesh_mpi_session_t* session);

/* The ranks that a launcher has started (kvmesh/launcher.hpp), else this process alone. Collective,
   as all that make a mesh. */
KVMESH_API kvmesh_status_t kvmesh_mesh_from_launcher(const kvmesh_mesh_options_t* options,
                                                     kvmesh_mesh_t** mesh);
/* The ranks of an MPI communicator, which is duplicated: `mpi_comm` points to an MPI_Comm. */
KVMESH_API kvmesh_status_t kvmesh_mesh_from_mpi(const void* mpi_comm,
                                                const kvmesh_mesh_options_t* options,
                                                kvmesh_mesh_t** mesh);
KVMESH_API kvmesh_status_t kvmesh_mesh_from_tcp(const kvmesh_tcp_options_t* tcp,
                                                const kvmesh_mesh_options_t* options,
                                                kvmesh_mesh_t** mesh);
KVMESH_API void kvmesh_mesh_destroy(kvmesh_mesh_t* mesh);

/* Runs `body` on `ranks` threads of this process, each with a mesh that ends with the call. A
   status other than KVMESH_OK ends the waits of the other ranks and is returned. */
KVMESH_API kvmesh_status_t
kvmesh_run_on_threads(int32_t ranks, kvmesh_status_t (*body)(kvmesh_mesh_t* mesh, void* context),
                      void* context, const kvmesh_mesh_options_t* options);

KVMESH_API kvmesh_status_t kvmesh_mesh_get_info(const kvmesh_mesh_t* mesh,
                                                kvmesh_mesh_info_t* info);
/* Blocks until the device has done the work on `stream`. `operation` is named in errors. */
KVMESH_API kvmesh_status_t kvmesh_mesh_wait(kvmesh_mesh_t* mesh, void* stream,
                                            const char* operation);

/* An NCCL group of the kv ranks' GPUs for a mesh that was made with `no_nccl` and has no cache yet:
   over the engine's own ncclComm_t, which stays the engine's; or made from an id that one rank made
   and the engine has given to all (collective). */
KVMESH_API kvmesh_status_t kvmesh_mesh_use_nccl(kvmesh_mesh_t* mesh, void* nccl_comm);
KVMESH_API kvmesh_status_t kvmesh_nccl_make_id(uint8_t id[128]);
KVMESH_API kvmesh_status_t kvmesh_mesh_make_nccl(kvmesh_mesh_t* mesh, const uint8_t id[128]);

/* ---- Masks and scores ---- */

typedef struct kvmesh_mask kvmesh_mask_t;
typedef struct kvmesh_score kvmesh_score_t;

/* Reads a mask (or score) modification from text, one operation per line (kvmesh/mod_text.hpp):

     %0 = q : int32
     %1 = kv : int32
     %2 = <= %1 %0 : bool

   `buffers` are what the text calls buffer0, buffer1, ...: contiguous one-dimensional tensors of
   float32, int32 or bool in host memory, which are copied. */
KVMESH_API kvmesh_status_t kvmesh_mask_parse(const char* text,
                                             const kvmesh_tensor_t* const* buffers,
                                             size_t buffer_count, kvmesh_mask_t** mask);
KVMESH_API kvmesh_status_t kvmesh_score_parse(const char* text,
                                              const kvmesh_tensor_t* const* buffers,
                                              size_t buffer_count, kvmesh_score_t** score);
/* The text, valid as long as the handle. */
KVMESH_API const char* kvmesh_mask_text(const kvmesh_mask_t* mask);
KVMESH_API const char* kvmesh_score_text(const kvmesh_score_t* score);
KVMESH_API void kvmesh_mask_destroy(kvmesh_mask_t* mask);
KVMESH_API void kvmesh_score_destroy(kvmesh_score_t* score);

#ifdef __cplusplus
}
#endif

#endif
