#include "core/posix/whole_file.hpp"

#include <gtest/gtest.h>

#include "tests/support/temporary_directory.hpp"

namespace kvmesh {
namespace {

class WholeFile : public testing::Test {
 protected:
  test::TemporaryDirectory directory_;
  const std::filesystem::path path_ = directory_.path() / "file";
  const std::vector<std::byte> old_{1000, std::byte{1}};
  const std::vector<std::byte> new_{300000, std::byte{2}};
};

TEST_F(WholeFile, IsWrittenWhole) {
  EXPECT_FALSE(read_file(path_));
  ASSERT_TRUE(write_file_atomically(path_, old_));
  EXPECT_EQ(read_file(path_), old_);
  ASSERT_TRUE(write_file_atomically(path_, new_));
  EXPECT_EQ(read_file(path_), new_);
  EXPECT_EQ(directory_.files(), 1u);
}

TEST_F(WholeFile, FailsWithoutADirectory) {
  EXPECT_FALSE(write_file_atomically(directory_.path() / "none" / "file", old_));
}

TEST_F(WholeFile, ADirectoryIsNoFile) { EXPECT_FALSE(read_file(directory_.path())); }

}  // namespace
}  // namespace kvmesh
