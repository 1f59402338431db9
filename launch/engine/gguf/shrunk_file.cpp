#include "launch/engine/gguf/shrunk_file.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <mutex>

namespace kvmesh::engine {
namespace {

// A mapping and its message, ready to be written: a handler may not allocate.
struct Watched {
  std::atomic<std::uintptr_t> begin{0};  // 0: free
  std::atomic<std::uintptr_t> end{0};
  std::array<char, 1024> message{};
};

// A handler finds static memory alone.
std::array<Watched, 8> watched;
std::mutex changes;

void on_bus_error(int signal, siginfo_t* info, void*) {
  const auto at = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (const Watched& file : watched) {
    if (at < file.begin || at >= file.end) continue;
    static_cast<void>(
        !::write(STDERR_FILENO, file.message.data(), std::strlen(file.message.data())));
    ::_exit(2);
  }
  std::signal(signal, SIG_DFL);  // the read is tried again when this returns
}

}  // namespace

void watch_for_shrinking(std::span<const std::byte> bytes, const std::string& path) {
  const std::lock_guard lock(changes);
  const auto place =
      std::ranges::find_if(watched, [](const Watched& file) { return file.begin == 0; });
  if (place == watched.end()) return;
  const std::string text =
      fmt::format("\nkvmesh: {}: the file was cut short while it was read; copy it again\n", path);
  place->message.fill('\0');
  std::copy_n(text.begin(), std::min(text.size(), place->message.size() - 1),
              place->message.begin());
  const auto begin = reinterpret_cast<std::uintptr_t>(bytes.data());
  place->end = begin + bytes.size();
  place->begin = begin;
  struct sigaction action {};
  action.sa_sigaction = &on_bus_error;
  action.sa_flags = SA_SIGINFO;
  ::sigaction(SIGBUS, &action, nullptr);
}

void stop_watching(std::span<const std::byte> bytes) {
  const std::lock_guard lock(changes);
  for (Watched& file : watched) {
    if (file.begin == reinterpret_cast<std::uintptr_t>(bytes.data())) file.begin = file.end = 0;
  }
}

}  // namespace kvmesh::engine
