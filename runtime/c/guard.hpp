// The base of every C function: no exception leaves it, and it reads options of any version.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

#include "core/check.hpp"
#include "kvmesh/c/kvmesh.h"

namespace kvmesh::c {

/// Keeps the current exception's text for kvmesh_last_error and returns its status.
kvmesh_status_t keep_exception() noexcept;

template <class Body>
kvmesh_status_t guarded(const Body& body) noexcept {
  try {
    body();
    return KVMESH_OK;
  } catch (...) {
    return keep_exception();
  }
}

/// Call it before the work whose result it takes: `checked(out, "out") = work()` works first.
/// @throws InvalidArgument.
template <class T>
T& checked(T* pointer, const char* what) {
  require(pointer != nullptr, "{} is NULL", what);
  return *pointer;
}

/// The one of `all` that an enumeration's `number` stands for, counted from `first`.
/// @throws InvalidArgument.
template <class Enum>
Enum choice(std::initializer_list<Enum> all, std::int32_t number, const char* what,
            std::int32_t first = 0) {
  require(number >= first && number - first < static_cast<std::int32_t>(all.size()),
          "{} {} is not valid", what, number);
  return all.begin()[number - first];
}

inline std::string text_or_empty(const char* text) { return text == nullptr ? "" : text; }

/// Returns the caller's options as this library knows them: members that an older caller lacks are
/// 0. Members that a newer caller has beyond them must be 0.
/// @throws InvalidArgument.
template <class Options>
Options known(const Options* given) {
  static_assert(std::is_trivially_copyable_v<Options>);
  Options options{};
  if (given == nullptr) return options;
  require(given->size >= sizeof(given->size), "options of size {}: set `size` to sizeof the struct",
          given->size);
  const std::size_t common = std::min(given->size, sizeof(Options));
  std::memcpy(&options, given, common);
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  require(std::all_of(bytes + common, bytes + given->size, [](unsigned char b) { return b == 0; }),
          "options of size {}, of which this library knows {}, ask for more than it can",
          given->size, sizeof(Options));
  return options;
}

/// Calls `body` with each of `count` structs, which lie as far apart as the first says.
/// @throws InvalidArgument.
template <class Options, class Body>
void for_each_known(const Options* given, std::size_t count, const char* what, const Body& body) {
  const auto* at = reinterpret_cast<const std::byte*>(given);
  for (std::size_t i = 0; i < count; ++i, at += given->size) {
    body(known(&checked(reinterpret_cast<const Options*>(at), what)));
  }
}

/// @throws InvalidArgument.
inline std::vector<int> layers_of(const std::int32_t* layers, std::size_t count) {
  require(count == 0 || layers != nullptr, "layers is NULL");
  return {layers, layers + count};
}

/// Fills the caller's struct, as much of it as both know.
/// @throws InvalidArgument.
template <class Info>
void fill(Info* out, Info info) {
  const std::size_t size = checked(out, "info").size;
  require(size >= sizeof(size), "an info of size {}: set `size` to sizeof the struct", size);
  info.size = size;
  std::memcpy(out, &info, std::min(size, sizeof(Info)));
}

}  // namespace kvmesh::c
