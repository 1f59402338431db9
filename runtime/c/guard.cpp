#include "runtime/c/guard.hpp"

#include <new>
#include <string>

#include "kvmesh/error.hpp"
#include "kvmesh/log.hpp"

namespace kvmesh::c {
namespace {

thread_local std::string last_error;

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
