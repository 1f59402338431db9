// Page files while each call of the system fails.
#include "runtime/tiers/page_file.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "tests/runtime/tiers/synced_folders.hpp"

namespace kvmesh::test {
namespace {

namespace fs = std::filesystem;

/// Lets call number `fails` fail with `error`, and every removal if not `removes`; a write writes
/// half before.
class FaultyCalls final : public FileCalls {
 public:
  FaultyCalls(int fails, int error, bool removes = true)
      : fails_(fails), error_(error), removes_(removes) {}
  int calls() const { return calls_; }

  int open(const char* path, int flags) override {
    return fail() ? -1 : FileCalls::open(path, flags);
  }
  ssize_t read(int file, void* to, std::size_t size) override {
    return fail() ? -1 : FileCalls::read(file, to, size);
  }
  ssize_t write(int file, const void* from, std::size_t size) override {
    // Whole blocks, as O_DIRECT requires.
    const std::size_t half = std::max(size / 2 / kFileBlock, std::size_t{1}) * kFileBlock;
    const bool fails = fail();
    const ssize_t written = FileCalls::write(file, from, std::min(size, half));
    if (!fails) return written;
    errno = error_;
    return -1;
  }
  int truncate(int file, off_t size) override {
    return fail() ? -1 : FileCalls::truncate(file, size);
  }
  int sync(int file) override { return fail() ? -1 : FileCalls::sync(file); }
  int close(int file) override {
    FileCalls::close(file);
    return fail() ? -1 : 0;
  }
  int rename(const char* from, const char* to) override {
    return fail() ? -1 : FileCalls::rename(from, to);
  }
  int make_folder(const char* path) override { return fail() ? -1 : FileCalls::make_folder(path); }
  int remove(const char* path) override {
    if (removes_) return FileCalls::remove(path);
    errno = EROFS;
    return -1;
  }

 private:
  bool fail() {
    if (calls_++ != fails_) return false;
    errno = error_;
    return true;
  }
  int fails_, error_, calls_ = 0;
  bool removes_;
};

class PageFiles : public testing::Test {
 protected:
  PageFiles()
      : folder_(fs::temp_directory_path() / ("kvmesh_page_file." + std::to_string(::getpid()))),
        path_((folder_ / "ab" / "cd" / "page").string()),
        buffer_(file_buffer_bytes(kShape.file_bytes()) + kFileBlock) {
    fs::remove_all(folder_);
    hash_.bytes.fill(0x5A);
  }
  ~PageFiles() override { fs::remove_all(folder_); }

  std::span<std::byte> buffer(std::byte filled_with) {
    std::memset(buffer_.data(), static_cast<int>(filled_with), buffer_.size_bytes());
    return {static_cast<std::byte*>(buffer_.data()), buffer_.size_bytes()};
  }
  FileFault write(FileCalls& calls, PageFileWay way = {.durable = true}) {
    return write_page_file(calls, path_, kShape, hash_, buffer(std::byte{3}), way);
  }
  FileFault read(FileCalls& calls, PageFileWay way = {}) {
    return read_page_file(calls, path_, kShape, hash_, buffer(std::byte{}), way);
  }
  std::size_t names() const {
    std::size_t count = 0;
    std::error_code error;
    for (const auto& entry : fs::recursive_directory_iterator(folder_, error))
      count += entry.is_regular_file();
    return count;
  }

  static constexpr PageFileShape kShape{
      .layers = 3, .first_head = 2, .heads = 2, .page_size = 16, .planes = 2, .row_bytes = 52};
  fs::path folder_;
  std::string path_;
  PageHash hash_;
  AlignedBuffer buffer_;
};

TEST_F(PageFiles, ReadWhatWasWritten) {
  FileCalls calls;
  for (const bool direct : {false, true}) {
    ASSERT_EQ(write(calls, {.durable = direct, .direct = direct}), FileFault::kNone);
    EXPECT_EQ(fs::file_size(path_), kShape.file_bytes());
    ASSERT_EQ(read(calls, {.direct = !direct}), FileFault::kNone);
    const auto* bytes = static_cast<const std::byte*>(buffer_.data());
    for (std::size_t i = kPageFileHeader; i < kShape.file_bytes(); ++i)
      ASSERT_EQ(bytes[i], std::byte{3}) << i;
  }
  EXPECT_EQ(names(), 1u);
}

constexpr int kErrors[] = {ENOSPC, EROFS, EIO};
FileFault fault_of(int error) {
  return error == ENOSPC ? FileFault::kFull : error == EROFS ? FileFault::kDenied : FileFault::kIo;
}

TEST_F(PageFiles, EveryCallThatFailsIsAFaultAndLeavesNoPart) {
  FileCalls good;
  int calls_of_writes[2] = {};
  for (const int error : kErrors) {
    for (const bool direct : {false, true}) {
      FileFault fault = FileFault::kIo;
      int fails = 0;
      for (; fault != FileFault::kNone; ++fails) {
        fs::remove_all(folder_);
        FaultyCalls calls(fails, error);
        fault = write(calls, {.durable = true, .direct = direct});
        ASSERT_LT(fails, 100);
        if (calls.calls() <= fails) break;  // none failed
        // The last three, of the folder, come after the name is there.
        EXPECT_TRUE(fault == fault_of(error) || names() == 1) << "call " << fails;
        EXPECT_EQ(names(), read(good) == FileFault::kNone ? 1u : 0u) << "call " << fails;
      }
      EXPECT_GE(fails, 8);
      calls_of_writes[direct] = fails;
    }
    for (int at = 0; at < 2; ++at) {
      FaultyCalls calls(at, error);
      EXPECT_EQ(read(calls), fault_of(error)) << "call " << at;
    }
  }
  EXPECT_GT(calls_of_writes[true], calls_of_writes[false]) << "a file of blocks is cut";
}

TEST_F(PageFiles, ThatAreDurableHaveTheirNewFoldersOnTheDisk) {
  SyncedFolders calls;
  ASSERT_EQ(write(calls), FileFault::kNone);
  const fs::path ab = folder_ / "ab", cd = ab / "cd";
  EXPECT_EQ(calls.take(), (std::vector<fs::path>{folder_.parent_path(), folder_, ab, cd}));
  ASSERT_EQ(write(calls), FileFault::kNone);
  EXPECT_EQ(calls.take(), std::vector<fs::path>{cd}) << "the others are there";
  path_ = (ab / "ef" / "page").string();
  ASSERT_EQ(write(calls), FileFault::kNone);
  EXPECT_EQ(calls.take(), (std::vector<fs::path>{ab, ab / "ef"}));
  path_ = (ab / "01" / "page").string();
  ASSERT_EQ(write(calls, {.durable = false}), FileFault::kNone);
  EXPECT_TRUE(calls.take().empty());
}

TEST_F(PageFiles, FoldersOfARelativePathAreMadeInTheCurrentOne) {
  fs::create_directories(folder_);
  const fs::path before = fs::current_path();
  fs::current_path(folder_);
  SyncedFolders calls;
  EXPECT_EQ(make_page_folder(calls, "a/b", {.durable = true}), FileFault::kNone);
  EXPECT_TRUE(fs::exists(folder_ / "a" / "b"));
  fs::current_path(before);
  EXPECT_EQ(calls.take(), (std::vector<fs::path>{".", "a"}));
}

TEST_F(PageFiles, APartThatCannotBeRemovedIsNoPageAndDisturbsNone) {
  FileCalls good;
  for (const bool direct : {false, true}) {
    for (int fails = 0;; ++fails) {
      fs::remove_all(folder_);
      FaultyCalls calls(fails, EIO, false);
      if (write(calls, {.durable = false, .direct = direct}) == FileFault::kNone) break;
      EXPECT_EQ(read(good), FileFault::kMissing) << "call " << fails;
      EXPECT_LE(names(), 1u);
      ASSERT_EQ(write(good), FileFault::kNone) << "call " << fails;
      EXPECT_EQ(read(good), FileFault::kNone) << "call " << fails;
      ASSERT_LT(fails, 100);
    }
  }
}

TEST_F(PageFiles, OneWrongByteAnywhereIsFound) {
  FileCalls calls;
  ASSERT_EQ(write(calls), FileFault::kNone);
  ASSERT_EQ(read(calls), FileFault::kNone);
  auto* bytes = static_cast<std::byte*>(buffer_.data());
  const std::span<const std::byte> file(bytes, kShape.file_bytes());
  for (std::size_t i = 0; i < file.size(); i += i < kPageFileHeader ? 1 : 97) {
    bytes[i] ^= std::byte{0x10};
    EXPECT_NE(check_page_file(file, kShape, hash_), FileFault::kNone) << i;
    bytes[i] ^= std::byte{0x10};
  }
  for (std::size_t size = 0; size < file.size(); size += 61)
    EXPECT_EQ(check_page_file(file.first(size), kShape, hash_), FileFault::kTruncated) << size;
  bytes[8] = std::byte{2};
  EXPECT_EQ(check_page_file(file, kShape, hash_), FileFault::kForeign);
}

}  // namespace
}  // namespace kvmesh::test
