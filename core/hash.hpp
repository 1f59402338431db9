// A hash of words, to compare what ranks were given. Not for tables, nor against an adversary.
#pragma once

#include <cstdint>
#include <iterator>

namespace kvmesh {

/// Folds words into 64 bits. Multiplying by an odd constant carries a difference up, the shift
/// brings it down again.
class Hash {
 public:
  template <class T>
  Hash& add(T word) {
    value_ = (value_ ^ static_cast<std::uint64_t>(word)) * 0x9E37'79B9'7F4A'7C15u;
    value_ ^= value_ >> 32;
    return *this;
  }
  template <class T>
  Hash& add_all(const T& words) {
    add(std::size(words));
    for (const auto& word : words) add(word);
    return *this;
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xCBF2'9CE4'8422'2325u;
};

}  // namespace kvmesh
