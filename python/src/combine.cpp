// The combine alone, for engines with their own attention kernels.
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include "python/src/bindings.hpp"

namespace kvmesh::python {
namespace {

/// One of the two.
struct AnyCombiner {
  std::optional<Combiner> host;
  std::optional<DeviceCombiner> device;
};

AnyCombiner combiner_on(Mesh& mesh) {
  AnyCombiner made;
  if (mesh.device().kind == DeviceKind::kCpu) {
    made.host.emplace(mesh.kv_comm());
  } else if (NcclGroup* nccl = mesh.device_group().nccl()) {
    made.device.emplace(*nccl);
  } else {
    throw Unsupported("a combiner on GPUs needs an NCCL group, which this mesh does not have");
  }
  return made;
}

/// Merges partials over the mesh's kv axis. Keeps the mesh alive.
class PyCombiner {
 public:
  explicit PyCombiner(PyMesh& mesh)
      : mesh_(mesh),
        ranks_(mesh.get().kv_parallel()),
        device_(mesh.get().device()),
        combiner_(combiner_on(mesh.get()), mesh.gate()) {}

  nb::any run(nb::object o, nb::object lse, std::string_view scatter, std::string_view strategy,
              nb::object out, nb::object out_lse, nb::object stream) {
    const auto mesh = mesh_.use();
    const CombineOptions options{.scatter = scatter_from(scatter),
                                 .strategy = strategy_from(strategy)};
    const Tensor part_o = input(o, "o");
    const Tensor part_lse = input(lse, "lse");
    if (part_o.view.dims != 3) throw InvalidArgument("o is not [tokens, heads, v_dim]");
    std::int64_t tokens = part_o.view.size(0), heads = part_o.view.size(1);
    const int rank = mesh->kv_rank().value;
    if (options.scatter == Scatter::kTokens) {
      tokens = share_of(tokens, rank, mesh->kv_parallel()).size();
    }
    if (options.scatter == Scatter::kHeads) {
      heads = share_of(heads, rank, mesh->kv_parallel()).size();
    }
    const Output output = output_of({tokens, heads, part_o.view.size(2)}, o, out, out_lse);
    const Stream on = stream_of(stream, part_o.view.device);
    {
      const WithoutPythonsLock others_run;
      merge({.o = part_o.view, .lse = part_lse.view}, options, output.views(), on);
    }
    return output.result();
  }

  void close() { combiner_.close(); }
  bool is_closed() const { return combiner_.is_closed(); }

  std::string describe() const {
    if (is_closed()) return "<kvmesh.Combiner: closed>";
    return "<kvmesh.Combiner: of " + std::to_string(ranks_) + " kv ranks, in " +
           kvmesh::describe(device_) + ">";
  }

 private:
  void merge(const Partial& mine, const CombineOptions& options, const CombineOutput& output,
             Stream stream) {
    auto& [host, device] = combiner_.get();
    if (host) return (*host)(mine, options, output);
    device->plan(mine.o.size(0), mine.o.size(1), mine.o.size(2), options, stream);
    device->run(mine, output, stream);
  }

  PyMesh& mesh_;
  int ranks_;
  Device device_;
  Closable<AnyCombiner> combiner_;
};

}  // namespace

void bind_combine(nb::module_& module) {
  nb::class_<PyCombiner> type(module, "Combiner",
                              "Merges the partials (o, lse) of all ranks into the exact output. "
                              "Keeps its buffers: one for all layers.");
  make_closable(type);
  type.def(nb::init<PyMesh&>(), nb::arg("mesh"), nb::keep_alive<1, 2>())
      .def("__call__", &PyCombiner::run, nb::arg("o"), nb::arg("lse"), nb::kw_only(),
           nb::arg("scatter") = "all", nb::arg("strategy") = "auto", nb::arg("out") = nb::none(),
           nb::arg("out_lse") = nb::none(), nb::arg("stream") = nb::none(),
           "o [tokens, heads, v_dim] and lse [tokens, heads], float32, natural logarithm. Returns "
           "the rows that scatter gives this rank; with out_lse (an array or True) also their lse.")
      .def("__repr__", &PyCombiner::describe);
}

}  // namespace kvmesh::python
