// TCP options from a launcher's variables.
#pragma once

#include "kvmesh/launcher.hpp"
#include "kvmesh/tcp.hpp"

namespace kvmesh {

/// Returns the options with which this process meets the others at `launch.host`. Reads the
/// KVMESH_ variables that a Launch does not hold: the address and the secret.
/// @throws InvalidArgument if the secret cannot be read.
TcpOptions tcp_options_of(const Launch& launch);

}  // namespace kvmesh
