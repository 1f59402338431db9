#include "kernels/jit/constants.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/check.hpp"

namespace kvmesh::jit {
namespace {

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool is_identifier(std::string_view name) {
  return !name.empty() && is_letter(name.front()) &&
         std::all_of(name.begin(), name.end(), [](char c) { return is_letter(c) || is_digit(c); });
}

}  // namespace

Constants& Constants::add(std::string_view type, std::string_view name, std::string_view value) {
  require(is_identifier(name), "'{}' cannot name a kernel's constant", name);
  text_ += fmt::format("namespace kvmesh {{ inline constexpr {} {} = {}; }}\n", type, name, value);
  return *this;
}

Constants& Constants::add_int(std::string_view name, int value) {
  // The lowest int has no literal: the digits after a minus must fit by themselves.
  return add("int", name, fmt::format("int({}ll)", value));
}

Constants& Constants::add_float(std::string_view name, float value) {
  require(std::isfinite(value), "a kernel's constant {} cannot be {}", name, value);
  return add("float", name, fmt::format("{:a}f", value));  // hexadecimal: exact
}

Constants& Constants::add_dtype(std::string_view name, Dtype value) {
  // The constants come before all includes: the type is declared there, but its enumerators are
  // not.
  text_ += "namespace kvmesh { enum class Dtype : unsigned char; }\n";
  return add("Dtype", name, fmt::format("Dtype({})", static_cast<int>(value)));
}

}  // namespace kvmesh::jit
