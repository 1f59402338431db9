// Any bytes as a trace: read, or refused as TraceError.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>

#include "launch/replay/trace.hpp"
#include "tests/fuzz/target.hpp"

namespace {

void check(const kvmesh::replay::Trace& trace) {
  if (!std::ranges::is_sorted(trace.requests, {}, &kvmesh::replay::Request::arrival_s)) abort();
  for (const kvmesh::replay::Request& request : trace.requests) {
    if (request.prompt_tokens < 0 || request.answer_tokens < 0) abort();
    if (request.prompt_tokens > 1 << 14) continue;
    if (std::ssize(kvmesh::replay::prompt_of(request)) != request.prompt_tokens) abort();
  }
}

}  // namespace

bool reads(std::span<const std::uint8_t> data) {
  static const std::string path = "/tmp/kvmesh_trace_fuzz." + std::to_string(getpid());
  const auto size = static_cast<std::streamsize>(data.size());
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data.data()), size);
  bool accepted = true;
  try {
    check(kvmesh::replay::read_trace(path));
  } catch (const kvmesh::replay::TraceError&) {
    accepted = false;
  }
  unlink(path.c_str());
  return accepted;
}
