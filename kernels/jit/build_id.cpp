#include "kernels/jit/build_id.hpp"

#include <elf.h>
#include <fmt/format.h>
#include <link.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

namespace kvmesh::jit {
namespace {

struct Search {
  std::uintptr_t address;
  std::string build_id;
};

std::span<const std::byte> segment(const dl_phdr_info& object, const ElfW(Phdr) & header) {
  return {reinterpret_cast<const std::byte*>(object.dlpi_addr + header.p_vaddr), header.p_memsz};
}

bool contains(const dl_phdr_info& object, std::uintptr_t address) {
  return std::any_of(
      object.dlpi_phdr, object.dlpi_phdr + object.dlpi_phnum, [&](const ElfW(Phdr) & header) {
        const std::uintptr_t begin = object.dlpi_addr + header.p_vaddr;
        return header.p_type == PT_LOAD && address >= begin && address - begin < header.p_memsz;
      });
}

/// A note is a header, a name and a description, each padded to the segment's alignment.
std::string build_id_in(std::span<const std::byte> notes, std::size_t alignment) {
  const auto padded = [&](std::size_t size) { return (size + alignment - 1) & ~(alignment - 1); };
  while (notes.size() >= sizeof(ElfW(Nhdr))) {
    ElfW(Nhdr) header;
    std::memcpy(&header, notes.data(), sizeof header);
    const std::size_t begin = padded(sizeof header + header.n_namesz);
    const std::size_t end = begin + header.n_descsz;
    if (end > notes.size()) break;
    const auto* name = reinterpret_cast<const char*>(notes.data() + sizeof header);
    if (header.n_type == NT_GNU_BUILD_ID &&
        std::string_view(name, header.n_namesz) == std::string_view(ELF_NOTE_GNU, 4)) {
      std::string digits;
      for (const std::byte byte : notes.subspan(begin, header.n_descsz)) {
        digits += fmt::format("{:02x}", static_cast<unsigned>(byte));
      }
      return digits;
    }
    notes = notes.subspan(std::min(padded(end), notes.size()));
  }
  return {};
}

int look(dl_phdr_info* object, std::size_t /*size*/, void* data) {
  auto& search = *static_cast<Search*>(data);
  if (!contains(*object, search.address)) return 0;
  for (const ElfW(Phdr) & header : std::span(object->dlpi_phdr, object->dlpi_phnum)) {
    if (header.p_type != PT_NOTE || !search.build_id.empty()) continue;
    search.build_id = build_id_in(segment(*object, header), header.p_align == 8 ? 8 : 4);
  }
  return 1;
}

}  // namespace

std::string build_id_of(const void* address) {
  Search search{reinterpret_cast<std::uintptr_t>(address), {}};
  dl_iterate_phdr(look, &search);
  return search.build_id;
}

}  // namespace kvmesh::jit
