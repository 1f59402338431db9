// A file's bytes, read through the page cache: ranks of one node share a single copy of the
// weights.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "kvmesh/error.hpp"

namespace kvmesh::engine {

/// The model file cannot be used. The message is one line: the file, the error, and what to do.
class ModelError : public Error {
 public:
  using Error::Error;
};

/// Maps a whole file read-only; unmaps on destruction. Move-only. Reading past the end of a file
/// that was cut short while it is mapped ends the process, with a message (see shrunk_file.hpp).
class MappedFile {
 public:
  /// @throws ModelError if the file is missing, unreadable, not a regular file or empty.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace kvmesh::engine
