#include "kernels/jit/dump.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "core/log.hpp"
#include "core/posix/whole_file.hpp"
#include "kernels/jit/cubin_file.hpp"
#include "kernels/jit/disassemble.hpp"

namespace kvmesh::jit {
namespace {

namespace fs = std::filesystem;

/// The paths of the files of one program.
class Files {
 public:
  Files(const fs::path& directory, const Program& program, const ProgramKey& key)
      : stem_(directory / fmt::format("{}-{}", fs::path(program.source).stem().string(),
                                      jit::to_string(key))) {}

  fs::path path(std::string_view suffix) const { return fs::path(stem_).concat(suffix); }
  std::string name(std::string_view suffix) const { return path(suffix).filename().string(); }

  void write(std::string_view suffix, std::span<const std::byte> bytes) const {
    if (!write_file_atomically(path(suffix), bytes)) {
      throw Error(fmt::format("cannot write {}", name(suffix)));
    }
  }
  void write(std::string_view suffix, std::string_view text) const {
    write(suffix, std::as_bytes(std::span(text)));
  }

 private:
  fs::path stem_;
};

/// Writes the PTX. Returns a line about it.
std::string write_ptx(const Files& files, const Program& program) {
  try {
    files.write(".ptx", ptx_of(program));
  } catch (const CompileError& failed) {
    return fmt::format("PTX: none: {}", failed.what());
  }
  return "PTX: " + files.name(".ptx");
}

/// Writes the instructions of the .cubin file. Returns a line about it.
std::string write_sass(const Files& files) {
  const std::optional<std::string> sass = disassemble(files.path(kCubinSuffix));
  if (sass) {
    files.write(".sass", *sass);
    return "SASS: " + files.name(".sass");
  }
  return fmt::format(
      "SASS: none: no nvdisasm or cuobjdump that works in PATH or CUDA_HOME/bin. With one of "
      "them:\n"
      "  nvdisasm -c {0} > {1}\n"
      "  cuobjdump -sass {0} > {1}",
      files.name(kCubinSuffix), files.name(".sass"));
}

std::string head_of(const Program& program, const Cubin& cubin) {
  std::string text =
      fmt::format("{} for {}, by {}\n\n", program.source, program.architecture, compiler_version());
  for (const KernelResources& kernel : cubin.resources()) text += to_string(kernel) + "\n";
  text += "\noptions:";
  for (const std::string& option : compiler_options(program)) text += " " + option;
  return text + "\n";
}

void write_files(const fs::path& directory, const Program& program, const ProgramKey& key,
                 const Cubin& cubin) {
  fs::create_directories(directory);
  const Files files(directory, program, key);
  files.write(".cu", translation_unit(program));
  files.write(kCubinSuffix, cubin.bytes);
  const std::string ptx = write_ptx(files, program);
  const std::string sass = write_sass(files);
  files.write(".txt", fmt::format("{}\n{}\n{}\n\nthe compiler's log:\n{}\n",
                                  head_of(program, cubin), ptx, sass, cubin.log));
}

}  // namespace

fs::path default_dump_directory() {
  const char* value = std::getenv("KVMESH_DUMP");
  return fs::path(value ? value : "");
}

Dump::Dump(fs::path directory) : directory_(std::move(directory)) {}

void Dump::write(const Program& program, const ProgramKey& key, const Cubin& cubin) noexcept {
  if (directory_.empty()) return;
  try {
    write_files(directory_, program, key, cubin);
  } catch (const std::exception& failed) {
    if (has_warned_.test_and_set()) return;
    const std::size_t line = std::strcspn(failed.what(), "\n");
    log_line(fmt::format("cannot dump kernels into '{}' (KVMESH_DUMP): {}", directory_.string(),
                         std::string_view(failed.what(), line)));
  }
}

}  // namespace kvmesh::jit
