// Failing together: an error of one rank becomes the same error on all.
#pragma once

#include <functional>

#include "kvmesh/communicator.hpp"

namespace kvmesh::launch {

/// An error that every rank has, with the same message.
class AgreedError : public Error {
 public:
  using Error::Error;
};

/// Collective. Runs `local` (which talks to no one) on every rank; if it throws on any, throws on
/// all an AgreedError with the message of the lowest rank that failed. So a file that one node
/// lacks ends the job with one line, and no rank waits for another that has gone.
void agree(Communicator& comm, const std::function<void()>& local);

}  // namespace kvmesh::launch
