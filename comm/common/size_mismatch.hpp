// The error of a message that has another size than its receiver expects.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <string>
#include <utility>

#include "kvmesh/error.hpp"

namespace kvmesh {

/// Thrown by the communicators of this folder. A combine turns it into the error of plans that
/// differ.
class SizeMismatch : public Error {
 public:
  struct Message {
    std::string operation;
    Rank receiver;
    std::size_t expected_bytes;
    Rank sender;
    std::size_t sent_bytes;
  };
  explicit SizeMismatch(Message message)
      : Error(fmt::format("{}: rank {} expects {} bytes from rank {}, which sends {}",
                          message.operation, message.receiver.value, message.expected_bytes,
                          message.sender.value, message.sent_bytes)),
        message_(std::move(message)) {}
  const Message& message() const { return message_; }

 private:
  Message message_;
};

}  // namespace kvmesh
