#include "tests/fuzz/mutate.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>

namespace kvmesh::test {
namespace {

/// In [0, count), 0 if there is nothing. The library's distributions differ between compilers.
std::size_t below(std::size_t count, std::mt19937_64& random) {
  return count == 0 ? 0 : random() % count;
}

void flip_bit(Input& input, std::mt19937_64& random) {
  if (!input.empty()) input[below(input.size(), random)] ^= 1 << below(8, random);
}

/// Digits and separators, for texts.
void set_character(Input& input, std::mt19937_64& random) {
  using std::string_view_literals::operator""sv;
  constexpr std::string_view kCharacters = "0123456789-+.e,:[]{}\"\n \0"sv;
  if (input.empty()) return;
  const char character = kCharacters[below(kCharacters.size(), random)];
  input[below(input.size(), random)] = static_cast<std::uint8_t>(character);
}

/// A number at which sums overflow, or one near the old one, over 1 to 8 bytes: little-endian, as
/// formats have them.
void set_number(Input& input, std::mt19937_64& random) {
  constexpr std::array<std::uint64_t, 8> kNumbers = {
      0, 1, 0x7f, 0xff, 0x7fffffff, 0xffffffff, 0x7fffffffffffffff, 0xffffffffffffffff};
  const std::size_t size = std::size_t{1} << below(4, random);
  if (input.size() < size) return;
  std::uint8_t* place = input.data() + below(input.size() - size + 1, random);
  std::uint64_t number = 0;
  std::memcpy(&number, place, size);
  const std::size_t choice = below(kNumbers.size() + 4, random);
  number = choice < kNumbers.size() ? kNumbers[choice] : number + choice - kNumbers.size() - 2;
  std::memcpy(place, &number, size);
}

void erase_range(Input& input, std::mt19937_64& random) {
  const std::size_t from = below(input.size(), random);
  const std::size_t count = below(std::min<std::size_t>(input.size() - from, 64) + 1, random);
  input.erase(input.begin() + from, input.begin() + from + count);
}

void insert_range(Input& input, const Input& source, std::mt19937_64& random) {
  const std::size_t from = below(source.size(), random);
  const std::size_t count = below(std::min<std::size_t>(source.size() - from, 64) + 1, random);
  const Input range(source.begin() + from, source.begin() + from + count);
  input.insert(input.begin() + below(input.size() + 1, random), range.begin(), range.end());
}

/// The beginning of the one and the end of the other.
void join(Input& input, const Input& other, std::mt19937_64& random) {
  input.resize(below(input.size() + 1, random));
  input.insert(input.end(), other.begin() + below(other.size() + 1, random), other.end());
}

}  // namespace

void mutate(Input& input, std::span<const Input> others, std::size_t most,
            std::mt19937_64& random) {
  for (std::size_t left = 1 + below(4, random); left > 0; --left) {
    const Input& other = others[below(others.size(), random)];
    switch (below(7, random)) {
      case 0:
        flip_bit(input, random);
        break;
      case 1:
        set_character(input, random);
        break;
      case 2:
      case 3:
        set_number(input, random);
        break;
      case 4:
        erase_range(input, random);
        break;
      case 5:
        insert_range(input, other, random);
        break;
      default:
        join(input, other, random);
    }
  }
  input.resize(std::min(input.size(), most));
}

}  // namespace kvmesh::test
