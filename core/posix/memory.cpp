#include "core/posix/memory.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <random>
#include <string>
#include <utility>

#include "core/posix/descriptor.hpp"

namespace kvmesh::posix_memory {
namespace {

std::string new_label() {
  std::random_device random;
  return fmt::format("kvmesh-{:08x}{:08x}{:08x}", random(), random(), random());
}

// Owner and reader request huge pages, as AlignedBuffer does; most systems grant them only if
// /sys/kernel/mm/transparent_hugepage/shmem_enabled is "advise" or more.
void* map_all(int fd, std::size_t size_bytes) {
  void* data = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return nullptr;
  madvise(data, size_bytes, MADV_HUGEPAGE);
  return data;
}

// The target of the link /proc/PID/fd/FD names the file: "/memfd:LABEL (deleted)".
bool is_labelled(const std::string& path, const char* label) {
  std::array<char, 128> target{};
  if (readlink(path.c_str(), target.data(), target.size() - 1) < 0) return false;
  return std::string(target.data()) == fmt::format("/memfd:{} (deleted)", label);
}

}  // namespace

std::optional<Block> allocate(std::size_t size_bytes) {
  const std::string label = new_label();
  const auto file =
      std::make_shared<Descriptor>(memfd_create(label.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (file->get() < 0 || ftruncate(file->get(), static_cast<off_t>(size_bytes)) != 0) return {};
  // Processes that map the file rely on its size: seal it against shrinking.
  if (fcntl(file->get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) return {};
  void* data = map_all(file->get(), size_bytes);
  if (data == nullptr) return {};
  Block block{{data, [size_bytes, file](void* p) { munmap(p, size_bytes); }},
              {.pid = getpid(), .fd = file->get()}};
  std::copy(label.begin(), label.end(), block.ticket.label.begin());
  return block;
}

std::shared_ptr<void> map(const Ticket& ticket, std::size_t size_bytes) {
  if (ticket.fd < 0) return nullptr;
  const std::string path = fmt::format("/proc/{}/fd/{}", ticket.pid, ticket.fd);
  const Descriptor file(open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (file.get() < 0) return nullptr;
  struct stat status {};
  if (!is_labelled(fmt::format("/proc/self/fd/{}", file.get()), ticket.label.data()) ||
      fstat(file.get(), &status) != 0 || std::cmp_less(status.st_size, size_bytes)) {
    return nullptr;
  }
  void* data = map_all(file.get(), size_bytes);
  if (data == nullptr) return nullptr;
  return {data, [size_bytes](void* p) { munmap(p, size_bytes); }};
}

}  // namespace kvmesh::posix_memory
