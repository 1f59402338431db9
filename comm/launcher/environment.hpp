// TCP options from a launcher's variables.
#pragma once

#include "kvmesh/launcher.hpp"
#include "kvmesh/tcp.hpp"

namespace kvmesh {

/// Returns the options with which this process meets the others at `launch.host`. Reads the
/// KVMESH_ variables that a Launch does not hold: the address and the secret.
/// @throws InvalidArgument if the secret cannot be read.
TcpOptions tcp_options_of(const Launch& launch);

/// Returns the name of the host that this process is on: KVMESH_HOST, else what the system says.
/// Ranks of one host have the same name and those of different hosts different ones.
std::string host_name();

}  // namespace kvmesh
