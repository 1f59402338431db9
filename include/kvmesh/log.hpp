// Lines that no call can return as an error.
#pragma once

#include "kvmesh/api.h"

namespace KVMESH_API kvmesh {

/// Receives one line, without its end. Any thread may call it, one at a time. It must not throw and
/// must not call kvmesh.
using LogFunction = void (*)(const char* line, void* context);

/// Sends kvmesh's lines to `function` instead of standard error, with `context`; null: to standard
/// error again. They are why a wait in MPI ends this process, and which kernels KVMESH_DUMP could
/// not write. Holds for the whole process. When it returns, nothing calls the earlier function.
void set_log(LogFunction function, void* context = nullptr) noexcept;

}  // namespace kvmesh
