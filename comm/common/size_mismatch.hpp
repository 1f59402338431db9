// The error of a message that has another size than its receiver expects.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <string_view>

#include "kvmesh/error.hpp"

namespace kvmesh {

/// Thrown by the communicators of this folder. A combine turns it into the error of plans that
/// differ.
class SizeMismatch : public Error {
 public:
  SizeMismatch(std::string_view operation, Rank receiver, std::size_t expected, Rank sender,
               std::size_t sent)
      : Error(fmt::format("{}: rank {} expects {} bytes from rank {}, which sends {}", operation,
                          receiver.value, expected, sender.value, sent)),
        sender_(sender) {}
  Rank sender() const { return sender_; }

 private:
  Rank sender_;
};

}  // namespace kvmesh
