// Ranks of two hosts that agree on a table, each with a folder of its own.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "comm/combine/choice/agreed_table.hpp"
#include "comm/combine/choice/table_text.hpp"
#include "core/posix/whole_file.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/temporary_directory.hpp"

namespace kvmesh::test {

inline std::string text_of(const std::filesystem::path& path) {
  const auto bytes = read_file(path).value_or(std::vector<std::byte>());
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline void write_text(const std::filesystem::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}

/// The second line of a table's text.
inline std::string key_in(const std::string& text) {
  const std::size_t begin = text.find('\n') + 1;
  return text.substr(begin, text.find('\n', begin) - begin);
}

/// A table in which the flat way takes `microseconds`, and the other a tenth.
inline WayTable made_up_table(double microseconds) {
  WayTable table;
  for (const Scatter scatter : {Scatter::kHeads, Scatter::kAll}) {
    for (const double bytes : {100.0, 100000.0}) {
      table.add({WayKind::kHost, CombineStrategy::kAllToAll}, scatter, {bytes, microseconds});
      table.add({WayKind::kHierarchical, CombineStrategy::kAllToAll}, scatter,
                {bytes, microseconds / 10});
    }
  }
  return table;
}

/// One of the ranks, an even number of at least 4.
class RankWithFolder {
 public:
  explicit RankWithFolder(Communicator& comm)
      : comm_(comm), group_(std::shared_ptr<Communicator>(&comm, [](Communicator*) {}), Device{}) {
    group_.set_hosts({.hosts = 2, .per_host = comm.size() / 2});
  }
  std::shared_ptr<const WayTable> agree(TableUse use) {
    return agreed_way_table(group_, use, folder_.path());
  }
  bool is_first() const { return comm_.rank() == Rank{0}; }
  bool has_file() const { return folder_.files() > 0; }
  /// REQUIRES: there is one.
  std::filesystem::path file() const {
    return std::filesystem::directory_iterator(folder_.path())->path();
  }
  const std::filesystem::path& folder() const { return folder_.path(); }
  DeviceGroup& group() { return group_; }
  Communicator& comm() { return comm_; }

  /// Whether all ranks have the same table. Collective.
  bool is_same_on_all(const WayTable& table) {
    std::string text = to_text("", table);
    std::uint64_t size = text.size();
    broadcast_value(comm_, Rank{0}, size);
    std::string first = is_first() ? text : std::string(size, ' ');
    broadcast(comm_, Rank{0}, std::as_writable_bytes(std::span(first)));
    return first == text;
  }

 private:
  Communicator& comm_;
  DeviceGroup group_;
  TemporaryDirectory folder_;
};

/// Every rank has a file for this group, each with other times: rank 0's counts.
inline void expect_rank_0_decides(Communicator& comm) {
  RankWithFolder rank(comm);
  rank.agree(TableUse::kOn);
  EXPECT_EQ(rank.has_file(), rank.is_first());
  std::string name = rank.is_first() ? rank.file().filename().string() : "";
  std::string key = rank.is_first() ? key_in(text_of(rank.file())) : "";
  for (std::string* text : {&name, &key}) {
    std::uint64_t size = text->size();
    broadcast_value(comm, Rank{0}, size);
    text->resize(size);
    broadcast(comm, Rank{0}, std::as_writable_bytes(std::span(*text)));
  }
  write_text(rank.folder() / name, to_text(key, made_up_table(100 + comm.rank().value)));
  const auto table = rank.agree(TableUse::kOn);
  ASSERT_TRUE(table);
  EXPECT_EQ(*table, made_up_table(100));
  if (!rank.is_first()) write_text(rank.folder() / name, "nothing good");
  EXPECT_EQ(*rank.agree(TableUse::kOn), made_up_table(100));
}

}  // namespace kvmesh::test
