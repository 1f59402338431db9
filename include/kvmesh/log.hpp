// The lines that kvmesh would write to standard error, because no call can return them.
#pragma once

#include "kvmesh/api.h"

namespace KVMESH_API kvmesh {

/// Receives one line, without its end. Any thread may call it, one at a time. It must not throw and
/// must not call kvmesh.
using LogFunction = void (*)(const char* line, void* context);

/// Sends kvmesh's lines to `function` instead of standard error, with `context`; null: to standard
/// error again. A line gives the reason for which a wait in MPI ends this process, or a kernel that
/// KVMESH_DUMP could not write. Holds for the whole process. Blocks while another thread is in the
/// earlier function, which is not called after the return.
void set_log(LogFunction function, void* context = nullptr) noexcept;

}  // namespace kvmesh
