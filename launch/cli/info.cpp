#include "launch/cli/info.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <thread>

#include "kvmesh/attention.hpp"
#include "kvmesh/communicator.hpp"
#include "kvmesh/device_memory.hpp"
#include "kvmesh/nccl.hpp"
#include "launch/cli/report.hpp"

namespace kvmesh::launch {
namespace {

std::uint64_t memory_bytes() {
  return static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

std::string build_and_machine_info(Mesh& mesh) {
  return fmt::format(
      "kvmesh {}\n"
      "devices        cpu, {} GPUs\n"
      "cpu kernels    {}\n"
      "communicators  loopback, tcp, mpi ({})\n"
      "nccl           {}\n"
      "this job       {} {} ({}), {} threads each\n"
      "this machine   {} cores, {} of memory\n",
      KVMESH_VERSION, cuda_device_count(), cpu_instruction_set(), mpi_library(),
      nccl_version().empty() ? "not in this build" : nccl_version(), mesh.size(),
      mesh.size() == 1 ? "rank" : "ranks", mesh.world().kind(), mesh.threads().threads(),
      std::thread::hardware_concurrency(), human_bytes(memory_bytes()));
}

}  // namespace kvmesh::launch
