// Meshes of the C interface.
#include <chrono>
#include <string>

#include "kvmesh/tcp.hpp"
#include "runtime/c/guard.hpp"
#include "runtime/c/handles.hpp"

using namespace kvmesh;
using namespace kvmesh::c;

struct kvmesh_mpi_session {
  int argc = 0;
  char** argv = nullptr;
  MpiSession session{argc, argv};
};

namespace {

/// Carries a status of the caller's own out of run_on_threads.
struct BodyFailed : Error {
  explicit BodyFailed(kvmesh_status_t status)
      : Error(fmt::format("the body returned status {}", status)), status(status) {}
  ErrorCode code() const noexcept override { return static_cast<ErrorCode>(status); }
  kvmesh_status_t status;
};

MeshOptions mesh_options(const kvmesh_mesh_options_t* given) {
  const kvmesh_mesh_options_t known_options = known(given);
  require(known_options.device >= 0 && known_options.device <= KVMESH_DEVICE_AUTO,
          "device {} is not valid", known_options.device);
  constexpr DeviceChoice kChoices[] = {DeviceChoice::kCpu, DeviceChoice::kCuda,
                                       DeviceChoice::kAuto};
  MeshOptions options;
  if (known_options.head_parallel != 0) options.head_parallel = known_options.head_parallel;
  options.threads = known_options.threads;
  options.device = kChoices[known_options.device];
  options.makes_nccl = known_options.no_nccl == 0;
  if (known_options.deadline_ms != 0) {
    options.deadline = std::chrono::milliseconds(known_options.deadline_ms);
  }
  return options;
}

TcpOptions tcp_options(const kvmesh_tcp_options_t* given) {
  const kvmesh_tcp_options_t known_options = known(&checked(given, "tcp"));
  TcpOptions options;
  options.rank = known_options.rank;
  if (known_options.ranks != 0) options.size = known_options.ranks;
  if (known_options.host != nullptr) options.host = known_options.host;
  options.port = known_options.port;
  if (known_options.address != nullptr) options.address = known_options.address;
  if (known_options.deadline_ms != 0) {
    options.deadline = std::chrono::milliseconds(known_options.deadline_ms);
  }
  if (known_options.secret != nullptr) options.secret = known_options.secret;
  if (known_options.job != nullptr) options.job = known_options.job;
  return options;
}

/// Stores the mesh that `make` returns as a handle in `out`.
template <class Make>
kvmesh_status_t make_mesh(kvmesh_mesh_t** out, const Make& make) {
  return guarded([&] {
    kvmesh_mesh_t*& made = checked(out, "mesh");
    made = new kvmesh_mesh{make()};
  });
}

}  // namespace

kvmesh_status_t kvmesh_mpi_session_create(kvmesh_mpi_session_t** session) {
  return guarded([&] {
    kvmesh_mpi_session_t*& made = checked(session, "session");
    made = new kvmesh_mpi_session;
  });
}

void kvmesh_mpi_session_destroy(kvmesh_mpi_session_t* session) { delete session; }

kvmesh_status_t kvmesh_mesh_from_launcher(const kvmesh_mesh_options_t* options,
                                          kvmesh_mesh_t** mesh) {
  return make_mesh(mesh, [&] { return Mesh::from_launcher(mesh_options(options)); });
}

kvmesh_status_t kvmesh_mesh_from_mpi(const void* mpi_comm, const kvmesh_mesh_options_t* options,
                                     kvmesh_mesh_t** mesh) {
  return make_mesh(mesh, [&] {
    const MeshOptions mesh_of = mesh_options(options);
    return Mesh(make_mpi_communicator(mpi_comm), mesh_of);
  });
}

kvmesh_status_t kvmesh_mesh_from_tcp(const kvmesh_tcp_options_t* tcp,
                                     const kvmesh_mesh_options_t* options, kvmesh_mesh_t** mesh) {
  return make_mesh(mesh, [&] {
    const MeshOptions mesh_of = mesh_options(options);
    return Mesh(make_tcp_communicator(tcp_options(tcp)), mesh_of);
  });
}

void kvmesh_mesh_destroy(kvmesh_mesh_t* mesh) { delete mesh; }

kvmesh_status_t kvmesh_run_on_threads(int32_t ranks, kvmesh_status_t (*body)(kvmesh_mesh_t*, void*),
                                      void* context, const kvmesh_mesh_options_t* options) {
  return guarded([&] {
    require(body != nullptr, "body is NULL");
    run_on_threads(
        ranks,
        [&](Mesh& mesh) {
          kvmesh_mesh handle{std::move(mesh)};
          if (const auto status = body(&handle, context)) throw BodyFailed(status);
        },
        mesh_options(options));
  });
}

kvmesh_status_t kvmesh_mesh_get_info(const kvmesh_mesh_t* mesh, kvmesh_mesh_info_t* info) {
  return guarded([&] {
    const Mesh& of = checked(mesh, "mesh").mesh;
    fill(info, {.size = 0,
                .rank = of.rank().value,
                .ranks = of.size(),
                .kv_rank = of.kv_rank().value,
                .kv_parallel = of.kv_parallel(),
                .head_rank = of.head_rank(),
                .head_parallel = of.head_parallel(),
                .device_type = of.device().kind == DeviceKind::kCpu ? 1 : 2,
                .device_id = of.device().index});
  });
}

kvmesh_status_t kvmesh_mesh_wait(kvmesh_mesh_t* mesh, void* stream, const char* operation) {
  return guarded(
      [&] { checked(mesh, "mesh").mesh.wait(Stream{stream}, operation ? operation : "wait"); });
}

kvmesh_status_t kvmesh_mesh_use_nccl(kvmesh_mesh_t* mesh, void* nccl_comm) {
  return guarded([&] {
    Mesh& of = checked(mesh, "mesh").mesh;
    of.device_group().use_nccl(NcclGroup::borrow(nccl_comm, of.kv_comm().deadline()));
  });
}

kvmesh_status_t kvmesh_nccl_make_id(uint8_t id[128]) {
  return guarded([&] {
    std::uint8_t& first = checked(id, "id");
    const NcclUniqueId made = make_nccl_unique_id();
    std::memcpy(&first, made.bytes.data(), made.bytes.size());
  });
}

kvmesh_status_t kvmesh_mesh_make_nccl(kvmesh_mesh_t* mesh, const uint8_t id[128]) {
  return guarded([&] {
    Mesh& of = checked(mesh, "mesh").mesh;
    NcclUniqueId shared;
    std::memcpy(shared.bytes.data(), &checked(id, "id"), shared.bytes.size());
    require(of.device().kind == DeviceKind::kCuda, "an NCCL group is for a mesh on GPUs");
    of.device_group().use_nccl(NcclGroup(shared, of.kv_rank(), of.kv_parallel(), of.device().index,
                                         of.kv_comm().deadline()));
  });
}
