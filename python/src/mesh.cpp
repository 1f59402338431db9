// Meshes: of a launcher, of an MPI communicator, of a TCP rendezvous, of threads.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <chrono>
#include <memory>

#include "python/src/bindings.hpp"

namespace kvmesh::python {
namespace {

// Never destroyed: kvmesh/__init__.py calls finish_mpi at exit, unless an error ends the program.
// MPI would wait for the other ranks then, which wait for this one.
struct Session {
  MpiSession mpi;
  Gate gate{};
};
std::unique_ptr<Session>& session() {
  static auto& held = *new std::unique_ptr<Session>;
  return held;
}

void start_mpi_if_launched() {
  if (session()) return session()->gate.check();
  if (tcp_options_from_environment() || !MpiSession::launched_by_mpirun()) return;
  int argc = 0;
  char** argv = nullptr;
  session().reset(new Session{.mpi = MpiSession(argc, argv)});
}

void finish_mpi() {
  if (!session() || session()->gate.is_inherited()) return;  // of the parent, after fork()
  const nb::gil_scoped_release release;
  session().reset();
}

std::chrono::milliseconds from_seconds(double seconds) {
  constexpr double kMost = 1e12;  // so that milliseconds fit; no deadline is longer than ten years
  if (!(seconds >= 0 && seconds <= kMost)) {
    throw InvalidArgument("a deadline of " + nb::cast<std::string>(nb::repr(nb::float_(seconds))) +
                          " seconds");
  }
  return std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
}

MeshOptions mesh_options(std::string_view device, int head_parallel, int threads,
                         std::optional<double> deadline) {
  MeshOptions options{
      .head_parallel = head_parallel, .threads = threads, .device = device_choice_from(device)};
  if (deadline) options.deadline = from_seconds(*deadline);
  return options;
}

Mesh over_mpi(std::uintptr_t address, const MeshOptions& options) {
  return Mesh(make_mpi_communicator(reinterpret_cast<const void*>(address)), options);
}

Mesh over_tcp(int rank, int size, const std::string& host, std::uint16_t port,
              const std::string& secret, const MeshOptions& options) {
  TcpOptions tcp{.rank = rank, .size = size, .host = host, .port = port};
  tcp.secret = secret;
  tcp.deadline = options.deadline.value_or(tcp.deadline);
  return Mesh(make_tcp_communicator(tcp), options);
}

/// Each thread of a rank holds Python's lock while it runs Python.
void on_threads(int ranks, nb::callable body, const MeshOptions& options) {
  const nb::gil_scoped_release release;
  run_on_threads(
      ranks,
      [&](Mesh& mesh) {
        const nb::gil_scoped_acquire acquire;
        const nb::object held = nb::cast(PyMesh(std::move(mesh)), nb::rv_policy::move);
        const auto end = [&] { nb::cast<PyMesh&>(held).close(); };
        try {
          body(held);
        } catch (...) {
          end();
          throw;
        }
        end();
      },
      options);
}

std::string describe_mesh(PyMesh& self) {
  if (self.is_closed()) return "<kvmesh.Mesh: closed>";
  Mesh& mesh = self.peek();
  return "<kvmesh.Mesh: rank " + std::to_string(mesh.rank().value) + " of " +
         std::to_string(mesh.size()) + " (" + std::string(mesh.world().kind()) + "), " +
         std::to_string(mesh.kv_parallel()) + " kv x " + std::to_string(mesh.head_parallel()) +
         " head, in " + describe(mesh.device()) + ">";
}

}  // namespace

void bind_mesh(nb::module_& module) {
  nb::class_<PyMesh> mesh(module, "Mesh");
  make_closable(mesh);
  mesh.def_prop_ro("rank", [](PyMesh& self) { return self.peek().rank().value; })
      .def_prop_ro("size", [](PyMesh& self) { return self.peek().size(); })
      .def_prop_ro("kv_rank", [](PyMesh& self) { return self.peek().kv_rank().value; })
      .def_prop_ro("kv_parallel", [](PyMesh& self) { return self.peek().kv_parallel(); })
      .def_prop_ro("head_rank", [](PyMesh& self) { return self.peek().head_rank(); })
      .def_prop_ro("head_parallel", [](PyMesh& self) { return self.peek().head_parallel(); })
      .def_prop_ro("communicator",
                   [](PyMesh& self) { return std::string(self.peek().world().kind()); })
      .def_prop_ro("device",
                   [](PyMesh& self) {
                     const Device device = self.peek().device();
                     return device.kind == DeviceKind::kCpu
                                ? std::string("cpu")
                                : "cuda:" + std::to_string(device.index);
                   })
      .def_prop_ro("sent_bytes", [](PyMesh& self) { return self.get().world().sent_bytes(); })
      .def(
          "barrier",
          [](PyMesh& self) {
            const auto of = self.use();
            const nb::gil_scoped_release release;
            barrier(of->world());
          },
          "Waits until every rank has called it.")
      .def(
          "wait",
          [](PyMesh& self, nb::object stream, const std::string& operation) {
            const auto of = self.use();
            const Stream on = stream_of(stream, of->device());
            const nb::gil_scoped_release release;
            of->wait(on, operation);
          },
          nb::arg("stream") = nb::none(), nb::arg("operation") = "wait",
          "Blocks until the device has done the work on a stream, at most for the deadline.")
      .def("__repr__", &describe_mesh);

  nb::class_<MeshOptions>(module, "MeshOptions")
      .def(
          "__init__",
          [](MeshOptions* self, std::string_view device, int head_parallel, int threads,
             std::optional<double> deadline) {
            new (self) MeshOptions(mesh_options(device, head_parallel, threads, deadline));
          },
          nb::arg("device"), nb::arg("head_parallel"), nb::arg("threads"),
          nb::arg("deadline") = nb::none());
  module.def("mesh_from_launcher", [](const MeshOptions& options) {
    const nb::gil_scoped_release release;
    start_mpi_if_launched();
    return PyMesh(Mesh::from_launcher(options));
  });
  module.def("mesh_over_mpi", [](std::uintptr_t address, const MeshOptions& options) {
    const nb::gil_scoped_release release;
    return PyMesh(over_mpi(address, options));
  });
  module.def("mesh_over_tcp", [](int rank, int size, const std::string& host, std::uint16_t port,
                                 const std::string& secret, const MeshOptions& options) {
    const nb::gil_scoped_release release;
    return PyMesh(over_tcp(rank, size, host, port, secret, options));
  });
  module.def("run_on_threads", &on_threads);
  module.def("finish_mpi", &finish_mpi);
}

}  // namespace kvmesh::python
