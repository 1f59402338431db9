#include "kernels/jit/disassemble.hpp"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include "core/owners/unique_handle.hpp"

namespace kvmesh::jit {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

struct Tool {
  const char* name;
  const char* option;
};
constexpr std::array kTools{Tool{"nvdisasm", "-c"}, Tool{"cuobjdump", "-sass"}};

std::vector<fs::path> folders() {
  std::vector<fs::path> all;
  const char* path = std::getenv("PATH");
  std::string_view rest = path ? path : "";
  while (!rest.empty()) {
    const std::string_view folder = rest.substr(0, rest.find(':'));
    rest.remove_prefix(std::min(rest.size(), folder.size() + 1));
    if (!folder.empty()) all.emplace_back(folder);
  }
  const char* home = std::getenv("CUDA_HOME");
  if (home != nullptr && *home != '\0') all.push_back(fs::path(home) / "bin");
  return all;
}

/// Returns the path of a tool, or nothing if it is not found.
fs::path find(const char* name) {
  for (const fs::path& folder : folders()) {
    std::error_code failed;
    const fs::path program = folder / name;
    if (fs::is_regular_file(program, failed) && ::access(program.c_str(), X_OK) == 0) {
      return program;
    }
  }
  return {};
}

/// Starts a program with its output in a file and no input. Returns -1 on failure.
pid_t start(const fs::path& program, const char* option, const fs::path& argument, int output) {
  std::string text[] = {program.string(), option, argument.string()};
  char* arguments[] = {text[0].data(), text[1].data(), text[2].data(), nullptr};
  posix_spawn_file_actions_t files;
  if (posix_spawn_file_actions_init(&files) != 0) return -1;
  pid_t child = -1;
  // The output goes first: its own descriptor is 0 or 2 if this process has closed those.
  const bool is_started =
      posix_spawn_file_actions_adddup2(&files, output, STDOUT_FILENO) == 0 &&
      posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0) == 0 &&
      posix_spawn_file_actions_addopen(&files, STDERR_FILENO, "/dev/null", O_WRONLY, 0) == 0 &&
      posix_spawn(&child, program.c_str(), &files, nullptr, arguments, environ) == 0;
  posix_spawn_file_actions_destroy(&files);
  return is_started ? child : -1;
}

/// Waits for a child to end and kills it at the deadline. Returns true if the child succeeded.
bool ends_well(pid_t child, Clock::time_point deadline) {
  int status = 0;
  while (true) {
    const pid_t ended = ::waitpid(child, &status, WNOHANG);
    if (ended == child) return WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (ended < 0 && errno != EINTR) return false;
    if (Clock::now() > deadline) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  ::kill(child, SIGKILL);
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return false;
}

std::string contents(std::FILE* file) {
  std::string text;
  std::rewind(file);
  std::array<char, 65536> part;
  while (const std::size_t size = std::fread(part.data(), 1, part.size(), file)) {
    text.append(part.data(), size);
  }
  return text;
}

int close_file(std::FILE* file) { return std::fclose(file); }

}  // namespace

std::optional<std::string> disassemble(const fs::path& cubin, std::chrono::milliseconds deadline) {
  for (const Tool& tool : kTools) {
    const fs::path program = find(tool.name);
    if (program.empty()) continue;
    const int memory = ::memfd_create("sass", MFD_CLOEXEC);
    if (memory < 0) return std::nullopt;
    const UniqueHandle<std::FILE*, close_file> output(::fdopen(memory, "r"));
    if (!output) {
      ::close(memory);
      return std::nullopt;
    }
    const pid_t child = start(program, tool.option, cubin, memory);
    if (child > 0 && ends_well(child, Clock::now() + deadline)) return contents(output.get());
  }
  return std::nullopt;
}

}  // namespace kvmesh::jit
