// GPU memory that another process maps and still reads after its owner was killed.
#include "core/posix/shared_memory.hpp"

#include <gtest/gtest.h>
#include <spawn.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "core/posix/free_memory.hpp"
#include "kvmesh/device_memory.hpp"
#include "kvmesh/error.hpp"
#include "tests/support/killed_process.hpp"

namespace kvmesh::test {
namespace {

constexpr std::size_t kWords = (std::size_t{6} << 20) / sizeof(std::uint32_t) + 3;
constexpr int kHandleFile = 9;  // where the owner's process writes its handle
constexpr const char* kOwnerDevice = "KVMESH_TEST_OWNER_DEVICE";
constexpr const char* kOwnerFilter = "--gtest_filter=*DISABLED_OwnerWaits";
constexpr const char* kPiecesFilter = "--gtest_filter=*DISABLED_OwnerOfPiecesWaits";
constexpr std::size_t kMiB = std::size_t{1} << 20;

std::vector<std::uint32_t> pattern() {
  std::vector<std::uint32_t> words(kWords);
  for (std::size_t i = 0; i < kWords; ++i) words[i] = static_cast<std::uint32_t>(i * 7 + 5);
  return words;
}

std::vector<std::uint32_t> words_at(const void* data) {
  std::vector<std::uint32_t> words(kWords);
  copy_bytes(words.data(), data, kWords * sizeof(std::uint32_t));
  return words;
}

Device gpu(int index) { return {DeviceKind::kCuda, index}; }

// A process of its own, as CUDA does not survive a fork: this program again, in the test below.
class Owner {
 public:
  explicit Owner(int device, std::string filter = kOwnerFilter) {
    int ends[2];
    if (pipe(ends) != 0) throw Error("pipe");
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, ends[1], kHandleFile);
    std::string program = "/proc/self/exe";
    std::string disabled = "--gtest_also_run_disabled_tests";
    char* arguments[] = {program.data(), filter.data(), disabled.data(), nullptr};
    setenv(kOwnerDevice, std::to_string(device).c_str(), 1);
    pid_t pid = 0;
    const int failed = posix_spawn(&pid, program.c_str(), &files, nullptr, arguments, environ);
    unsetenv(kOwnerDevice);
    process_.emplace(failed == 0 ? pid : 0);
    posix_spawn_file_actions_destroy(&files);
    close(ends[1]);
    const bool received = failed == 0 && read(ends[0], &handle_, sizeof handle_) == sizeof handle_;
    close(ends[0]);
    if (!received) throw Error("the other process sent no handle");
  }
  const MemoryHandle& handle() const { return handle_; }
  void die() { process_->die(); }

 private:
  MemoryHandle handle_;
  std::optional<KilledProcess> process_;
};

TEST(SharedGpuMemory, DISABLED_OwnerWaits) {
  const char* device = std::getenv(kOwnerDevice);
  if (device == nullptr) GTEST_SKIP() << "only for the tests below";
  SharedMemory memory(gpu(std::atoi(device)), kWords * sizeof(std::uint32_t), Sharing::kNode);
  copy_bytes(memory.data(), pattern().data(), kWords * sizeof(std::uint32_t));
  const MemoryHandle handle = memory.handle();
  ASSERT_EQ(write(kHandleFile, &handle, sizeof handle), ssize_t{sizeof handle});
  while (true) pause();
}

// Two stretches with a hole between them.
constexpr ByteRange kParts[] = {{3, 20 * kMiB}, {40 * kMiB, 50 * kMiB}};

TEST(SharedGpuMemory, DISABLED_OwnerOfPiecesWaits) {
  const char* device = std::getenv(kOwnerDevice);
  if (device == nullptr) GTEST_SKIP() << "only for the tests below";
  const SharedMemory memory(gpu(std::atoi(device)), 64 * kMiB, Sharing::kNode, kParts);
  auto* const data = static_cast<std::byte*>(memory.data());
  for (const ByteRange& part : kParts) copy_bytes(data + part.last - kMiB, pattern().data(), kMiB);
  const std::unique_ptr<DescriptorServer> server = memory.serve();
  MemoryHandle handle = memory.handle();
  handle.pieces = server->place();
  ASSERT_EQ(write(kHandleFile, &handle, sizeof handle), ssize_t{sizeof handle});
  while (true) pause();
}

TEST(GpuMemoryInPieces, IsReadByOthersAndKeepsItsPagesWhenTheOwnerIsKilled) {
  if (!cuda_memory::has_pieces(0)) GTEST_SKIP() << "the driver gives no memory in pieces";
  for (int device = 0; device < cuda_device_count(); ++device) {
    Owner owner(device, kPiecesFilter);
    const std::shared_ptr<void> map = map_memory(owner.handle(), gpu(0));
    ASSERT_NE(map, nullptr) << "the system refuses to share pieces";
    for (const bool is_dead : {false, true}) {
      if (is_dead) owner.die();
      for (const ByteRange& part : kParts) {
        std::vector<std::uint32_t> words(kMiB / sizeof(std::uint32_t));
        copy_bytes(words.data(), static_cast<std::byte*>(map.get()) + part.last - kMiB, kMiB);
        std::vector<std::uint32_t> expected = pattern();
        expected.resize(words.size());
        EXPECT_EQ(words, expected) << is_dead;
      }
    }
    EXPECT_EQ(map_memory(owner.handle(), gpu(0)), nullptr)
        << "no process gives the pieces any more";
  }
}

TEST(GpuMemoryInPieces, GrowsAndShrinksInPlace) {
  if (!cuda_memory::has_pieces(0)) GTEST_SKIP() << "the driver gives no memory in pieces";
  const std::size_t before = free_memory(gpu(0));
  SharedMemory memory(gpu(0), std::size_t{1} << 42, Sharing::kProcess,
                      std::array{ByteRange{0, 256 * kMiB}});
  auto* const data = static_cast<std::byte*>(memory.data());
  copy_bytes(data, pattern().data(), kMiB);
  EXPECT_EQ(memory.held_bytes(), 256 * kMiB);
  const std::size_t far = std::size_t{1} << 40;
  memory.keep(std::array{ByteRange{0, 256 * kMiB}, ByteRange{far, far + 512 * kMiB}});
  EXPECT_EQ(memory.held_bytes(), 768 * kMiB);
  EXPECT_LE(free_memory(gpu(0)), before - 512 * kMiB);
  copy_bytes(data + far, pattern().data(), kMiB);
  EXPECT_THROW(memory.keep(std::array{ByteRange{0, std::size_t{1} << 41}}), Error);
  EXPECT_EQ(memory.held_bytes(), 768 * kMiB) << "a refusal changes nothing";
  memory.keep(std::array{ByteRange{0, kMiB}, ByteRange{far, far + kMiB}});
  EXPECT_EQ(memory.held_bytes(), 96 * kMiB) << "an eighth of each stretch";
  for (const std::size_t at : {std::size_t{0}, far}) {
    std::vector<std::uint32_t> words(kMiB / sizeof(std::uint32_t)), expected = pattern();
    copy_bytes(words.data(), data + at, kMiB);
    expected.resize(words.size());
    EXPECT_EQ(words, expected);
  }
  EXPECT_EQ(map_memory(memory.handle(), gpu(0)).get(), data);
}

TEST(SharedGpuMemory, IsReadByOthersAndKeepsItsPagesWhenTheOwnerIsKilled) {
  for (int device = 0; device < cuda_device_count(); ++device) {
    SCOPED_TRACE("the owner has device " + std::to_string(device));
    Owner owner(device);
    const std::shared_ptr<void> map = map_memory(owner.handle(), gpu(0));
    ASSERT_NE(map, nullptr);
    EXPECT_EQ(words_at(map.get()), pattern());
    owner.die();
    EXPECT_EQ(words_at(map.get()), pattern());
    const std::uint32_t other = 1;  // and can be written to
    copy_bytes(map.get(), &other, sizeof other);
    EXPECT_EQ(words_at(map.get())[0], other);
  }
}

TEST(SharedGpuMemory, CannotBeMappedOnceItsOwnerIsGone) {
  Owner owner(0);
  owner.die();
  EXPECT_EQ(map_memory(owner.handle(), gpu(0)), nullptr);
  // The refusal does not affect the next call.
  EXPECT_NO_THROW(SharedMemory(gpu(0), 1, Sharing::kNode));
}

TEST(SharedGpuMemory, IsThePointerItselfWithinAProcess) {
  for (int device = 0; device < cuda_device_count(); ++device) {
    auto memory = std::make_unique<SharedMemory>(gpu(device), kWords * 4, Sharing::kProcess);
    copy_bytes(memory->data(), pattern().data(), kWords * 4);
    const std::shared_ptr<void> map = map_memory(memory->handle(), gpu(0));
    ASSERT_EQ(map.get(), memory->data());
    memory.reset();
    EXPECT_EQ(words_at(map.get()), pattern());
  }
}

TEST(SharedGpuMemory, ComesInWholeUnitsOutOfFreeMemory) {
  const std::size_t before = free_memory(gpu(0));
  const SharedMemory memory(gpu(0), (std::size_t{256} << 20) + 1, Sharing::kNode);
  EXPECT_EQ(memory.size_bytes(), std::size_t{258} << 20);
  EXPECT_LE(free_memory(gpu(0)), before - (std::size_t{128} << 20));
}

}  // namespace
}  // namespace kvmesh::test
