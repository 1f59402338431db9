#include "launch/cli/agree.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <exception>
#include <vector>

namespace kvmesh::launch {
namespace {

// Text of a fixed size for messages, ended by a zero. Longer text is cut.
template <std::size_t Size>
using Text = std::array<char, Size>;

template <std::size_t Size>
Text<Size> cut(std::string_view text) {
  Text<Size> result{};
  std::copy_n(text.begin(), std::min(text.size(), Size - 1), result.begin());
  return result;
}

// A failed rank's error message; empty if the rank succeeded.
using Message = Text<1024>;

Message message_of(const std::function<void()>& local) {
  try {
    local();
  } catch (const std::exception& error) {
    return cut<1024>(*error.what() ? error.what() : "unknown error");
  }
  return {};
}

// FNV-1a with 64 bits: not against forgery.
std::uint64_t hash_of(std::string_view text) {
  std::uint64_t hash = 0xcbf2'9ce4'8422'2325;
  for (const char c : text) hash = (hash ^ static_cast<std::uint8_t>(c)) * 0x100'0000'01b3;
  return hash;
}

// A field's value in the form that is compared.
struct Value {
  std::uint64_t hash = 0;
  std::uint64_t size = 0;

  bool operator==(const Value&) const = default;
};

Value value_of(const std::string& text) { return {hash_of(text), text.size()}; }

// Rank 0's text, on all ranks. Collective.
std::string of_rank_0(Communicator& comm, std::string text) {
  std::uint64_t size = text.size();
  broadcast_value(comm, {0}, size, "agree");
  text.resize(size);
  broadcast(comm, {0}, std::as_writable_bytes(std::span(text)), "agree");
  return text;
}

// The part of a text that a message shows.
struct Shown {
  bool begins = false, ends = false;  // at the text's beginning, at its end
  Text<48> part{};
};

Shown part_of(const std::string& text, std::size_t first) {
  const std::string part = text.substr(std::min(first, text.size()));
  return {.begins = first == 0, .ends = part.size() < Text<48>{}.size(), .part = cut<48>(part)};
}

std::string text_of(const Shown& shown) {
  return fmt::format("'{}{}{}'", shown.begins ? "" : "...", shown.part.data(),
                     shown.ends ? "" : "...");
}

// Throws an error that shows where the field `name` of `other` differs from rank 0's; `mine` is
// this rank's value. Collective.
[[noreturn]] void refuse(Communicator& comm, Rank other, const Field& mine) {
  constexpr std::size_t kBefore = 16;  // characters shown before the first that differs
  const std::string right = of_rank_0(comm, mine.value);
  const auto differ = std::ranges::mismatch(mine.value, right).in1 - mine.value.begin();
  std::uint64_t at = static_cast<std::uint64_t>(differ);
  broadcast_value(comm, other, at, "agree");
  const std::size_t first = at < Text<48>{}.size() - kBefore ? 0 : at - kBefore;
  Shown wrong = part_of(mine.value, first);
  broadcast_value(comm, other, wrong, "agree");
  throw AgreedError(fmt::format("rank {} has {} {}, rank 0 has {}: give all ranks the same",
                                other.value, mine.name, text_of(wrong),
                                text_of(part_of(right, first))));
}

// Throws if a rank's `mine` differ from rank 0's; the error shows the field of `fields` that is at
// the same place. Collective.
void compare(Communicator& comm, std::span<const Value> mine, std::span<const Field> fields) {
  const std::vector<Value> all = all_gather_values(comm, mine, "agree");
  for (std::size_t i = mine.size(); i < all.size(); ++i) {
    const std::size_t field = i % mine.size();
    if (all[i] == all[field]) continue;
    refuse(comm, Rank{static_cast<int>(i / mine.size())}, fields[field]);
  }
}

}  // namespace

void agree(Communicator& comm, const std::function<void()>& local) {
  const std::vector<Message> all = all_gather_value(comm, message_of(local), "agree");
  const auto failed = std::ranges::find_if(all, [](const Message& m) { return m[0] != '\0'; });
  if (failed == all.end()) return;
  const bool alike = std::ranges::count(all, *failed) == std::ssize(all);
  throw AgreedError(alike ? std::string(failed->data())
                          : fmt::format("rank {}: {}", failed - all.begin(), failed->data()));
}

void agree_on(Communicator& comm, std::span<const Field> fields) {
  // Ranks of different commands have different numbers of fields, so the names are compared first.
  Value names = value_of(fields[0].value);
  std::string all_names;
  for (const Field& field : fields) all_names += field.name + '\n';
  names.hash ^= hash_of(all_names);
  compare(comm, std::span(&names, 1), fields);
  std::vector<Value> values;
  for (const Field& field : fields) values.push_back(value_of(field.value));
  compare(comm, values, fields);
}

}  // namespace kvmesh::launch
