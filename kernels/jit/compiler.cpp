#include "kernels/jit/compiler.hpp"

#include <fmt/format.h>
#include <nvrtc.h>

#include <utility>

#include "core/owners/unique_handle.hpp"
#include "kernels/jit/build_id.hpp"

namespace kvmesh::jit {
namespace {

void check(nvrtcResult status, const char* operation) {
  if (status != NVRTC_SUCCESS) {
    throw Error(fmt::format("{}: {}", operation, nvrtcGetErrorString(status)));
  }
}

nvrtcResult destroy(nvrtcProgram program) { return nvrtcDestroyProgram(&program); }
using UniqueProgram = UniqueHandle<nvrtcProgram, destroy>;

UniqueProgram create(const Program& program) {
  const std::string unit = translation_unit(program);
  // NVRTC needs strings that end in a zero, which views may lack.
  std::vector<std::string> names;
  std::vector<std::string> texts;
  for (const SourceFile& header : all_headers(program)) {
    names.emplace_back(header.name);
    texts.emplace_back(header.text);
  }
  std::vector<const char*> name_pointers;
  std::vector<const char*> text_pointers;
  for (const std::string& name : names) name_pointers.push_back(name.c_str());
  for (const std::string& text : texts) text_pointers.push_back(text.c_str());

  nvrtcProgram created = nullptr;
  check(nvrtcCreateProgram(&created, unit.c_str(), "kvmesh.cu", static_cast<int>(names.size()),
                           text_pointers.data(), name_pointers.data()),
        "nvrtcCreateProgram");
  return UniqueProgram(created);
}

std::string log_of(nvrtcProgram program) {
  std::size_t size = 0;
  check(nvrtcGetProgramLogSize(program, &size), "nvrtcGetProgramLogSize");
  std::string log(size, '\0');
  check(nvrtcGetProgramLog(program, log.data()), "nvrtcGetProgramLog");
  while (!log.empty() && log.back() == '\0') log.pop_back();
  return log;
}

std::vector<std::byte> machine_code_of(nvrtcProgram program) {
  std::size_t size = 0;
  check(nvrtcGetCUBINSize(program, &size), "nvrtcGetCUBINSize");
  std::vector<std::byte> bytes(size);
  check(nvrtcGetCUBIN(program, reinterpret_cast<char*>(bytes.data())), "nvrtcGetCUBIN");
  return bytes;
}

struct Compiled {
  UniqueProgram program;
  std::string log;
};

Compiled run_compiler(const Program& program) {
  UniqueProgram created = create(program);
  const std::vector<std::string> options = compiler_options(program);
  std::vector<const char*> option_pointers;
  for (const std::string& option : options) option_pointers.push_back(option.c_str());

  const nvrtcResult status = nvrtcCompileProgram(
      created.get(), static_cast<int>(option_pointers.size()), option_pointers.data());
  std::string log = log_of(created.get());
  if (status != NVRTC_SUCCESS) {
    throw CompileError(program.source, nvrtcGetErrorString(status), std::move(log));
  }
  return {std::move(created), std::move(log)};
}

}  // namespace

CompileError::CompileError(const std::string& source, const std::string& reason, std::string log)
    : Error(fmt::format("cannot compile {}: {}\n{}", source, reason, log)), log_(std::move(log)) {}

std::string compiler_version() {
  int major = 0;
  int minor = 0;
  check(nvrtcVersion(&major, &minor), "nvrtcVersion");
  return fmt::format("NVRTC {}.{}, build {}", major, minor,
                     build_id_of(reinterpret_cast<const void*>(&nvrtcVersion)));
}

Cubin compile(const Program& program) {
  const Compiled compiled = run_compiler(program);
  return {machine_code_of(compiled.program.get()), compiled.log};
}

std::string ptx_of(const Program& program) {
  Program portable = program;
  portable.architecture.replace(0, 2, "compute");  // sm_90a: compute_90a
  const Compiled compiled = run_compiler(portable);
  std::size_t size = 0;
  check(nvrtcGetPTXSize(compiled.program.get(), &size), "nvrtcGetPTXSize");
  std::string text(size, '\0');
  check(nvrtcGetPTX(compiled.program.get(), text.data()), "nvrtcGetPTX");
  while (!text.empty() && text.back() == '\0') text.pop_back();
  return text;
}

}  // namespace kvmesh::jit
