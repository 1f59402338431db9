// Meshes: of a launcher, of an MPI communicator, of a TCP rendezvous, of threads.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>

#include <chrono>
#include <memory>
#include <tuple>

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
  const WithoutPythonsLock others_run;
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

nb::object from_groups(const char* name) {
  return nb::module_::import_("kvmesh._groups").attr(name);
}

Mesh over_mpi(nb::handle comm, const MeshOptions& options) {
  const auto address = nb::cast<std::uintptr_t>(call(from_groups("address_of"), comm));
  const WithoutPythonsLock others_run;
  return Mesh(make_mpi_communicator(reinterpret_cast<const void*>(address)), options);
}

/// Where ranks meet over TCP.
struct Meeting {
  std::optional<int> rank, size;
  std::optional<std::string> rendezvous;
  std::string secret;
};

Mesh over_tcp(const Meeting& meeting, const MeshOptions& options) {
  if (!meeting.rank || !meeting.size) {
    throw InvalidArgument("a rendezvous takes rank and size, too");
  }
  const auto [host, port] = nb::cast<std::pair<std::string, std::uint16_t>>(
      call(from_groups("host_and_port"), *meeting.rendezvous));
  TcpOptions tcp{.rank = *meeting.rank, .size = *meeting.size, .host = host, .port = port};
  tcp.secret = meeting.secret;
  tcp.deadline = options.deadline.value_or(tcp.deadline);
  const WithoutPythonsLock others_run;
  return Mesh(make_tcp_communicator(tcp), options);
}

Mesh from_launcher(const MeshOptions& options) {
  const WithoutPythonsLock others_run;
  start_mpi_if_launched();
  return Mesh::from_launcher(options);
}

/// @throws InvalidArgument for arguments that no mesh would use.
void check_sources(nb::handle comm, nb::handle group, const Meeting& meeting) {
  if (!comm.is_none() + !group.is_none() + meeting.rendezvous.has_value() > 1) {
    throw InvalidArgument("a mesh takes one of comm, group and rendezvous");
  }
  if (!meeting.rendezvous && (meeting.rank || meeting.size || !meeting.secret.empty())) {
    throw InvalidArgument("rank, size and secret are for a rendezvous, which is not given");
  }
}

Mesh make_mesh(nb::handle comm, nb::handle group, Meeting meeting, const MeshOptions& options) {
  check_sources(comm, group, meeting);
  if (!comm.is_none()) return over_mpi(comm, options);
  if (!group.is_none()) {
    std::tie(meeting.rank, meeting.size, meeting.rendezvous, meeting.secret) =
        nb::cast<std::tuple<int, int, std::string, std::string>>(
            call(from_groups("meeting_of"), group));
  }
  return meeting.rendezvous ? over_tcp(meeting, options) : from_launcher(options);
}

/// Each thread of a rank holds Python's lock while it runs Python.
void on_threads(int ranks, nb::callable body, std::string_view device, int head_parallel,
                int threads, std::optional<double> deadline) {
  const MeshOptions options = mesh_options(device, head_parallel, threads, deadline);
  const WithoutPythonsLock others_run;
  run_on_threads(
      ranks,
      [&](Mesh& mesh) {
        const WithPythonsLock with_lock;
        const nb::object held = nb::cast(PyMesh(std::move(mesh)), nb::rv_policy::move);
        const auto end = [&] { nb::cast<PyMesh&>(held).close(); };
        try {
          call(body, held);
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

void bind_constructor(nb::class_<PyMesh>& type) {
  type.def(
      "__init__",
      [](PyMesh* self, std::string_view device, int head_parallel, int threads,
         std::optional<double> deadline, nb::object comm, nb::object group, std::optional<int> rank,
         std::optional<int> size, std::optional<std::string> rendezvous, std::string secret) {
        const MeshOptions options = mesh_options(device, head_parallel, threads, deadline);
        new (self) PyMesh(make_mesh(
            comm, group, {rank, size, std::move(rendezvous), std::move(secret)}, options));
      },
      nb::kw_only(), nb::arg("device") = "cpu", nb::arg("head_parallel") = 1,
      nb::arg("threads") = 0, nb::arg("deadline") = nb::none(), nb::arg("comm") = nb::none(),
      nb::arg("group") = nb::none(), nb::arg("rank") = nb::none(), nb::arg("size") = nb::none(),
      nb::arg("rendezvous") = nb::none(), nb::arg("secret") = "",
      "Without arguments: the ranks that a launcher has started (docs/launching.md), else this "
      "process alone. comm: an mpi4py communicator. group: a process group of torch.distributed, "
      "whose ranks then meet over TCP. rank, size and rendezvous ('host:port', where rank 0 "
      "listens): a meeting over TCP; without a secret only at private addresses. device: 'cpu', "
      "'cuda' or 'auto'. deadline: seconds that any wait for a peer may take. Collective.");
}

}  // namespace

void bind_mesh(nb::module_& module) {
  nb::class_<PyMesh> mesh(module, "Mesh", "The ranks of a job, kv_parallel x head_parallel.");
  make_closable(mesh);
  bind_constructor(mesh);
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
            const WithoutPythonsLock others_run;
            barrier(of->world());
          },
          "Waits until every rank has called it.")
      .def(
          "wait",
          [](PyMesh& self, nb::object stream, const std::string& operation) {
            const auto of = self.use();
            const Stream on = stream_of(stream, of->device());
            const WithoutPythonsLock others_run;
            of->wait(on, operation);
          },
          nb::arg("stream") = nb::none(), nb::arg("operation") = "wait",
          "Blocks until the device has done the work on a stream, at most for the deadline.")
      .def("__repr__", &describe_mesh);

  module.def("run_on_threads", &on_threads, nb::arg("ranks"), nb::arg("body"), nb::kw_only(),
             nb::arg("device") = "cpu", nb::arg("head_parallel") = 1, nb::arg("threads") = 1,
             nb::arg("deadline") = nb::none(),
             nb::sig("def run_on_threads(ranks: int, body: typing.Callable[[Mesh], object], *, "
                     "device: str = 'cpu', head_parallel: int = 1, threads: int = 1, "
                     "deadline: float | None = None) -> None"),
             "Calls body(mesh) on `ranks` threads, each with its own mesh, which is closed at the "
             "end. The first error is raised here, and ends the others' waits.");
  module.def("finish_mpi", &finish_mpi);
}

}  // namespace kvmesh::python
