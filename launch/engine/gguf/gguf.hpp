// A GGUF file: typed metadata and a directory of tensors, checked once when it is opened.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "launch/engine/gguf/mapped_file.hpp"
#include "launch/engine/gguf/weight_type.hpp"

namespace kvmesh::engine {

/// A metadata value. Integers of every width arrive as int64, both float widths as double; text
/// points into the file.
using GgufValue =
    std::variant<bool, std::int64_t, double, std::string_view, std::vector<std::int64_t>,
                 std::vector<double>, std::vector<std::string_view>>;

/// The place of a tensor in the file. `shape[0]` is the contiguous dimension: a matrix
/// W[rows][cols] has shape {cols, rows}.
struct GgufTensor {
  std::string_view name;
  WeightType type = WeightType::kF32;
  int dims = 0;
  std::array<std::int64_t, 4> shape{1, 1, 1, 1};
  std::uint64_t offset_bytes = 0;  ///< From the start of the file.
  std::uint64_t size_bytes = 0;
};

/// Versions 2 and 3, little-endian. Everything that the accessors return lies within the file,
/// which stays mapped as long as this object lives. Safe to read from many threads.
class GgufFile {
 public:
  /// @throws ModelError if the file is missing, truncated, damaged or not GGUF.
  explicit GgufFile(const std::string& path);

  const std::string& path() const { return path_; }
  std::uint32_t version() const { return version_; }
  /// The whole file.
  std::span<const std::byte> bytes() const { return file_.bytes(); }
  const std::map<std::string_view, GgufValue>& metadata() const { return metadata_; }
  const std::map<std::string_view, GgufTensor>& tensors() const { return tensors_; }

  /// Returns the value of `key` as a `Value`, one of GgufValue's types; null if the key is missing.
  /// @throws ModelError if it has another type.
  template <class Value>
  const Value* find(std::string_view key) const;

  /// As find, for a required key. @throws ModelError also if it is missing.
  template <class Value>
  const Value& get(std::string_view key) const;

  bool has_tensor(std::string_view name) const { return tensors_.contains(name); }
  /// @throws ModelError if it is missing.
  const GgufTensor& tensor(std::string_view name) const;
  /// The tensor's bytes.
  std::span<const std::byte> data(const GgufTensor& tensor) const;

 private:
  class Parser;
  [[noreturn]] void missing(std::string_view what, std::string_view name) const;
  [[noreturn]] void wrong_type(std::string_view key) const;

  std::string path_;
  MappedFile file_;
  std::uint32_t version_ = 0;
  std::map<std::string_view, GgufValue> metadata_;
  std::map<std::string_view, GgufTensor> tensors_;
};

template <class Value>
const Value* GgufFile::find(std::string_view key) const {
  const auto entry = metadata_.find(key);
  if (entry == metadata_.end()) return nullptr;
  const auto* value = std::get_if<Value>(&entry->second);
  if (value == nullptr) wrong_type(key);
  return value;
}

template <class Value>
const Value& GgufFile::get(std::string_view key) const {
  const Value* value = find<Value>(key);
  if (value == nullptr) missing("key", key);
  return *value;
}

/// Returns a name from a file, which may be damaged, in a form for a one-line message.
std::string printable(std::string_view name);

}  // namespace kvmesh::engine
