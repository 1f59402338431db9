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

// A field's value in the form that is compared and shown.
struct Value {
  std::uint64_t hash = 0;
  std::uint64_t size = 0;
  Text<48> text{};

  bool operator==(const Value& other) const { return hash == other.hash && size == other.size; }
};

Value value_of(const std::string& text) { return {hash_of(text), text.size(), cut<48>(text)}; }

std::string shown(const Value& value) {
  return fmt::format("'{}{}'", value.text.data(), value.size >= value.text.size() ? "..." : "");
}

// Throws if a rank's `mine` differ from rank 0's; `name_of(i)` names the i-th.
void compare(Communicator& comm, std::span<const Value> mine,
             const std::function<std::string(std::size_t)>& name_of) {
  const std::vector<Value> all = all_gather_values(comm, mine, "agree");
  for (std::size_t i = mine.size(); i < all.size(); ++i) {
    const std::size_t field = i % mine.size();
    if (all[i] == all[field]) continue;
    throw AgreedError(fmt::format("rank {} has {} {}, rank 0 has {}: give all ranks the same",
                                  i / mine.size(), name_of(field), shown(all[i]),
                                  shown(all[field])));
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
  compare(comm, std::span(&names, 1), [&](std::size_t) { return fields[0].name; });
  std::vector<Value> values;
  for (const Field& field : fields) values.push_back(value_of(field.value));
  compare(comm, values, [&](std::size_t i) { return fields[i].name; });
}

}  // namespace kvmesh::launch
