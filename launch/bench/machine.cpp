#include "launch/bench/machine.hpp"

namespace kvmesh::bench {

std::string_view name(Timing timing) {
  switch (timing) {
    case Timing::kGraph:
      return "graph";
    case Timing::kStream:
      return "stream";
    case Timing::kHost:
      return "host";
  }
  return "unknown";
}

std::unique_ptr<Machine> make_machine(Mesh& mesh, std::int64_t rotate_bytes) {
  return mesh.device().kind == DeviceKind::kCuda ? make_gpu_machine(mesh, rotate_bytes)
                                                 : make_cpu_machine(mesh, rotate_bytes);
}

}  // namespace kvmesh::bench
