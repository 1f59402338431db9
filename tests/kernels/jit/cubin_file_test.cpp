// One file of the cache: any damage is noticed, and a killed write leaves nothing half done.
#include "kernels/jit/cubin_file.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "core/posix/whole_file.hpp"
#include "kernels/jit/cache_folder.hpp"
#include "tests/kernels/jit/cache_support.hpp"

namespace kvmesh::jit {
namespace {

namespace fs = std::filesystem;
using test::made_up_cubin;
using test::same;
using test::TemporaryDirectory;

constexpr ProgramKey kKey{{1, 2}};

TEST(CubinFile, RoundTrips) {
  for (const std::size_t size : {0u, 1u, 100000u}) {
    const Cubin cubin = made_up_cubin(size, size);
    const std::optional<Cubin> read = unpack(kKey, pack(kKey, cubin));
    ASSERT_TRUE(read);
    EXPECT_TRUE(same(*read, cubin));
  }
}

TEST(CubinFile, IsForOneKey) {
  EXPECT_FALSE(unpack(ProgramKey{{1, 3}}, pack(kKey, made_up_cubin(1, 10))));
}

TEST(CubinFile, DetectsChangeOfAnyByte) {
  const std::vector<std::byte> file = pack(kKey, made_up_cubin(1, 50));
  for (std::size_t i = 0; i < file.size(); ++i) {
    std::vector<std::byte> damaged = file;
    damaged[i] ^= std::byte{0x10};
    EXPECT_FALSE(unpack(kKey, damaged)) << "byte " << i;
  }
  for (std::size_t size = 0; size < file.size(); ++size) {
    EXPECT_FALSE(unpack(kKey, std::span(file).first(size))) << "cut to " << size;
  }
  std::vector<std::byte> longer = file;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(unpack(kKey, longer));
}

/// Runs `body` in a child that may write files of at most `bytes` bytes; returns how it ended.
template <class Body>
int run_with_file_limit(rlim_t bytes, Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit limit{bytes, bytes};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ::_exit(body() ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

class CubinFileOnDisk : public testing::Test {
 protected:
  TemporaryDirectory directory_;
  const fs::path path_ = directory_.path() / "file";
  const std::vector<std::byte> old_ = pack(kKey, made_up_cubin(1, 1000));
  const std::vector<std::byte> new_ = pack(kKey, made_up_cubin(2, 300000));
};

TEST_F(CubinFileOnDisk, AWriterKilledInTheMiddleChangesNothing) {
  ASSERT_TRUE(write_file_atomically(path_, old_));
  // The kernel kills a process that writes past the limit: half of the bytes are on disk by then.
  const int status = run_with_file_limit(new_.size() / 2, [&] {
    ::signal(SIGXFSZ, SIG_DFL);
    return write_file_atomically(path_, new_);
  });
  ASSERT_TRUE(WIFSIGNALED(status)) << status;
  EXPECT_EQ(read_file(path_), old_);
  EXPECT_EQ(directory_.files(), 2u);  // what the dead process left

  tidy(directory_.path(), 1'000'000);
  EXPECT_EQ(directory_.files(), 2u) << "it could be another process's that is still writing";
  for (const auto& entry : fs::directory_iterator(directory_.path())) {
    if (entry.path() != path_) {
      fs::last_write_time(entry.path(), fs::file_time_type::clock::now() - std::chrono::hours(2));
    }
  }
  tidy(directory_.path(), 1'000'000);
  EXPECT_EQ(directory_.files(), 1u);
  EXPECT_EQ(read_file(path_), old_);
}

TEST_F(CubinFileOnDisk, AFullDiskChangesNothing) {
  ASSERT_TRUE(write_file_atomically(path_, old_));
  const int status = run_with_file_limit(new_.size() / 2, [&] {
    ::signal(SIGXFSZ, SIG_IGN);  // then the write fails, as on a full disk
    return !write_file_atomically(path_, new_);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(read_file(path_), old_);
  EXPECT_EQ(directory_.files(), 1u);
}

}  // namespace
}  // namespace kvmesh::jit
