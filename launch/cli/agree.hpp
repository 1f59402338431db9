// Agreement of the ranks: an error of one rank becomes the same error on all.
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

/// Runs `local` on every rank. `local` sends no messages. So a file that one node lacks ends the
/// job with one line, and no rank waits for another that has ended.
/// @throws AgreedError on all ranks if `local` throws on any, with the message of the lowest rank
/// that failed. The message names that rank unless all ranks failed with the same message.
/// Collective.
void agree(Communicator& comm, const std::function<void()>& local);

/// A value that must be the same on all ranks. Messages show its first characters, or of long ones
/// those where they differ.
struct Field {
  std::string name;
  std::string value;
};

/// Compares `fields` over the ranks.
/// @throws AgreedError on all ranks. It names the lowest rank whose value differs from rank 0's,
/// and the first such field; if the fields' names differ, the first field. Collective.
void agree_on(Communicator& comm, std::span<const Field> fields);

}  // namespace kvmesh::launch
