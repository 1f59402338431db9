// The operations so far, and the digest after each.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "allocator/pages/digest.hpp"
#include "kvmesh/allocator.hpp"

namespace kvmesh {

/// The digest of all operations, and a ring of the last ones. The state is a function of the
/// options and the operations that succeeded, so their hash covers all of it.
class Journal {
 public:
  static constexpr std::size_t kEntries = 256;

  /// An argument of the operation in progress.
  void fold_in(std::uint64_t word) { digest_ = fold(digest_, word); }

  /// Ends an operation.
  void record(std::string_view operation, SequenceId sequence) {
    entries_[operations_ % kEntries] = {operations_, digest_, operation, sequence};
    ++operations_;
  }

  std::uint64_t digest() const { return digest_; }
  /// The number of operations so far.
  std::uint64_t operations() const { return operations_; }
  std::vector<JournalEntry> entries() const;

 private:
  std::uint64_t digest_ = 0;
  std::uint64_t operations_ = 0;
  std::array<JournalEntry, kEntries> entries_;
};

}  // namespace kvmesh
