#include "launch/cli/info.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "kvmesh/attention.hpp"
#include "kvmesh/communicator.hpp"
#include "kvmesh/device_memory.hpp"
#include "kvmesh/nccl.hpp"
#include "launch/cli/agree.hpp"
#include "launch/cli/report.hpp"

namespace kvmesh::launch {
namespace {

std::uint64_t memory_bytes() {
  return static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

std::string as_text(Mesh& mesh) {
  return fmt::format(
      "kvmesh {}\n"
      "devices        cpu, {} GPUs\n"
      "cpu kernels    {}\n"
      "communicators  loopback, tcp, mpi ({})\n"
      "nccl           {}\n"
      "this job       {} {} ({}), {} threads each\n"
      "this machine   {} cores, {} of memory\n",
      KVMESH_VERSION, cuda_device_count(), cpu_instruction_set(),
      mpi_library().empty() ? "not in this build" : mpi_library(),
      nccl_version().empty() ? "not in this build" : nccl_version(), mesh.size(),
      mesh.size() == 1 ? "rank" : "ranks", mesh.world().kind(), mesh.threads().threads(),
      std::thread::hardware_concurrency(), human_bytes(static_cast<double>(memory_bytes())));
}

std::string as_json(Mesh& mesh) {
  const nlohmann::ordered_json json{{"program", "kvmesh info"},
                                    {"version", KVMESH_VERSION},
                                    {"gpus", cuda_device_count()},
                                    {"cpu_kernels", cpu_instruction_set()},
                                    {"mpi", mpi_library()},
                                    {"nccl", nccl_version()},
                                    {"ranks", mesh.size()},
                                    {"communicator", mesh.world().kind()},
                                    {"threads", mesh.threads().threads()},
                                    {"cores", std::thread::hardware_concurrency()},
                                    {"memory_bytes", memory_bytes()}};
  return json.dump(1) + "\n";
}

}  // namespace

int run_info(Mesh& mesh, const std::string& json, Output& out) {
  agree(mesh.world(), [&] {
    if (mesh.rank().value != 0) return;
    if (json != "-") out.put(as_text(mesh));
    if (!json.empty()) out.write(json, as_json(mesh));
  });
  return 0;
}

}  // namespace kvmesh::launch
