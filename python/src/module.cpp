// The extension module kvmesh._kvmesh. The package beside it exports its names.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include "python/src/bindings.hpp"

namespace kvmesh::python {

Scatter scatter_from(std::string_view text) {
  return named(text, {Scatter::kAll, Scatter::kHeads, Scatter::kTokens, Scatter::kOwner},
               "scatter");
}

CombineStrategy strategy_from(std::string_view text) {
  return named(text,
               {CombineStrategy::kAuto, CombineStrategy::kReduceScatter, CombineStrategy::kAllToAll,
                CombineStrategy::kAllReduce},
               "strategy");
}

namespace {
constexpr std::initializer_list<WayKind> kWays = {WayKind::kHost, WayKind::kStaged, WayKind::kNccl,
                                                  WayKind::kPeer, WayKind::kHierarchical};
static_assert(kWays.size() == kWayKinds);
}  // namespace

std::optional<WayKind> way_from(std::optional<std::string_view> text) {
  if (!text) return std::nullopt;
  return named(*text, kWays, "way");
}

}  // namespace kvmesh::python

NB_MODULE(_kvmesh, module) {
  using namespace kvmesh::python;
  // What daemon threads hold lives until the process ends, which is no fault.
  nb::set_leak_warnings(false);
  module.doc() = "Exact attention over a KV cache that is spread in pages over many ranks.";
  module.attr("version") =
      nb::make_tuple(KVMESH_VERSION_MAJOR, KVMESH_VERSION_MINOR, KVMESH_VERSION_PATCH);
  module.def("cuda_device_count", &kvmesh::cuda_device_count);
  module.def("nccl_version", &kvmesh::nccl_version, "Empty if this build has no NCCL.");
  module.def("mpi_library", &kvmesh::mpi_library, "Empty if this build has no MPI.");
  module.def("cpu_instruction_set", &kvmesh::cpu_instruction_set);
  bind_errors(module);
  bind_mods(module);
  bind_allocator(module);
  bind_mesh(module);
  bind_plan(module);
  bind_cache(module);
  bind_external(module);
  bind_combine(module);
  bind_paged(module);
}
