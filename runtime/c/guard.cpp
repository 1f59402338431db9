#include "runtime/c/guard.hpp"

#include <new>
#include <string>

#include "kvmesh/error.hpp"
#include "kvmesh/log.hpp"

namespace kvmesh::c {
namespace {

thread_local std::string last_error;

/// True for an error whose code is its status. A code that is missing here is a warning (-Wswitch).
constexpr bool has_status(ErrorCode code) {
  const auto is = [code](kvmesh_status_t status) {
    return status == static_cast<kvmesh_status_t>(code);
  };
  switch (code) {
    case ErrorCode::kError:
      return is(KVMESH_ERROR);
    case ErrorCode::kInvalidArgument:
      return is(KVMESH_INVALID_ARGUMENT);
    case ErrorCode::kUnsupported:
      return is(KVMESH_UNSUPPORTED);
    case ErrorCode::kUnknownSequence:
      return is(KVMESH_UNKNOWN_SEQUENCE);
    case ErrorCode::kOutOfPages:
      return is(KVMESH_OUT_OF_PAGES);
    case ErrorCode::kOutOfThreads:
      return is(KVMESH_OUT_OF_THREADS);
    case ErrorCode::kOutOfMemory:
      return is(KVMESH_OUT_OF_MEMORY);
    case ErrorCode::kTimeout:
      return is(KVMESH_TIMEOUT);
    case ErrorCode::kPeerLost:
      return is(KVMESH_PEER_LOST);
    case ErrorCode::kBrokenGroup:
      return is(KVMESH_BROKEN_GROUP);
    case ErrorCode::kDigestMismatch:
      return is(KVMESH_DIGEST_MISMATCH);
    case ErrorCode::kRendezvous:
      return is(KVMESH_RENDEZVOUS_ERROR);
    case ErrorCode::kNccl:
      return is(KVMESH_NCCL_ERROR);
    case ErrorCode::kStream:
      return is(KVMESH_STREAM_ERROR);
  }
  return false;
}

constexpr bool have_statuses() {
  for (int code = KVMESH_OK + 1; code <= KVMESH_STREAM_ERROR; ++code) {
    if (!has_status(static_cast<ErrorCode>(code))) return false;
  }
  return true;
}
static_assert(have_statuses(), "a status of c/mesh.h is not the code of its error");

kvmesh_status_t keep(kvmesh_status_t status, const char* text) noexcept {
  try {
    last_error = text;
  } catch (...) {  // no memory for the text: the status alone is returned
    last_error.clear();
  }
  return status;
}

}  // namespace

kvmesh_status_t keep_exception() noexcept {
  try {
    throw;
  } catch (const Error& error) {
    return keep(static_cast<kvmesh_status_t>(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return keep(KVMESH_OUT_OF_MEMORY, "the host is out of memory");
  } catch (const std::exception& error) {
    return keep(KVMESH_ERROR, error.what());
  } catch (...) {
    return keep(KVMESH_ERROR, "an exception of another kind");
  }
}

}  // namespace kvmesh::c

const char* kvmesh_last_error(void) { return kvmesh::c::last_error.c_str(); }

void kvmesh_set_log(kvmesh_log_t function, void* context) { kvmesh::set_log(function, context); }

int32_t kvmesh_version(void) { return KVMESH_VERSION_NUMBER; }
