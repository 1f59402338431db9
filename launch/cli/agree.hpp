// Failing together: an error of one rank becomes the same error on all.
#pragma once

#include <functional>
#include <span>
#include <string>

#include "kvmesh/communicator.hpp"

namespace kvmesh::launch {

/// An error that every rank has, with the same message.
class AgreedError : public Error {
 public:
  using Error::Error;
};

/// Collective. Runs `local` (which talks to no one) on every rank; if it throws on any, throws on
/// all an AgreedError with the message of the lowest rank that failed, which it names unless all
/// failed alike. So a file that one node lacks ends the job with one line, and no rank waits for
/// another that has gone.
void agree(Communicator& comm, const std::function<void()>& local);

/// Something that must be the same on all ranks. Values are compared whole and shown cut.
struct Field {
  std::string name;
  std::string value;
};

/// Collective. Compares `fields` over the ranks.
/// @throws AgreedError, on all ranks, that names the lowest rank with another value than rank 0
/// and the first such field; or the first field's, where ranks give other names.
void agree_on(Communicator& comm, std::span<const Field> fields);

}  // namespace kvmesh::launch
