// The combine alone, in the C interface.
#include <memory>

#include "runtime/c/guard.hpp"
#include "runtime/c/handles.hpp"
#include "runtime/c/tensors.hpp"

using namespace kvmesh;
using namespace kvmesh::c;

namespace {

bool is_base_two(std::int32_t base) {
  require(base == KVMESH_LSE_NATURAL || base == KVMESH_LSE_BASE_TWO, "lse_base {} is not valid",
          base);
  return base == KVMESH_LSE_BASE_TWO;
}

}  // namespace

kvmesh_status_t kvmesh_combiner_create(kvmesh_mesh_t* mesh, kvmesh_combiner_t** combiner) {
  return guarded([&] {
    kvmesh_combiner_t*& made = checked(combiner, "combiner");
    Mesh& of = checked(mesh, "mesh").mesh;
    NcclGroup* nccl = of.device_group().nccl();
    const bool on_host = of.device().kind == DeviceKind::kCpu;
    if (!on_host && nccl == nullptr) {
      throw Unsupported("a combiner on GPUs needs an NCCL group, which this mesh does not have");
    }
    auto handle = std::make_unique<kvmesh_combiner>();
    if (on_host) handle->host.emplace(of.kv_comm());
    if (!on_host) handle->device.emplace(*nccl);
    made = handle.release();
  });
}

void kvmesh_combiner_destroy(kvmesh_combiner_t* combiner) { delete combiner; }

kvmesh_status_t kvmesh_combiner_run(kvmesh_combiner_t* combiner, const kvmesh_tensor_t* partial_o,
                                    const kvmesh_tensor_t* partial_lse,
                                    const kvmesh_combine_options_t* options,
                                    const kvmesh_tensor_t* o, const kvmesh_tensor_t* lse,
                                    void* stream) {
  return guarded([&] {
    kvmesh_combiner_t& with = checked(combiner, "combiner");
    const kvmesh_combine_options_t known_options = known(options);
    const CombineOptions combine{.scatter = scatter_of(known_options.scatter),
                                 .strategy = strategy_of(known_options.strategy)};
    const CombineOutput output{.o = view(o, "o"), .lse = view_or_empty(lse, "lse")};
    const Partial mine = partial(partial_o, partial_lse);
    const Base2Partial in_base_two{mine.o, mine.lse};
    const bool converts = is_base_two(known_options.lse_base);
    if (with.host) {
      (*with.host)(converts ? to_natural(in_base_two) : mine, combine, output);
    } else {
      const Stream on{stream};
      require(mine.o.dims == 3, "partial_o is not [tokens, heads, v_dim]");
      with.device->plan(mine.o.size(0), mine.o.size(1), mine.o.size(2), combine, on);
      with.device->run(converts ? to_natural(in_base_two, on) : mine, output, on);
    }
  });
}
