// Memory that others map: threads of this process, and processes that are then killed.
#include "core/posix/shared_memory.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <new>
#include <optional>
#include <span>

#include "core/posix/free_memory.hpp"
#include "kvmesh/error.hpp"
#include "tests/support/killed_process.hpp"

namespace kvmesh {
namespace {

constexpr std::size_t kWords = (std::size_t{5} << 20) / sizeof(std::uint32_t) + 3;
constexpr std::size_t kBytes = kWords * sizeof(std::uint32_t);

std::span<std::uint32_t> words(void* data) { return {static_cast<std::uint32_t*>(data), kWords}; }

void write_pattern(void* data) {
  for (std::size_t i = 0; i < kWords; ++i) words(data)[i] = static_cast<std::uint32_t>(i * 7 + 5);
}

std::size_t wrong_words(void* data) {
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < kWords; ++i) {
    wrong += words(data)[i] != static_cast<std::uint32_t>(i * 7 + 5);
  }
  return wrong;
}

std::size_t open_files() {
  const std::filesystem::directory_iterator files("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(files), end(files)));
}

// A process that makes a block, fills it, sends its handle and waits. Killed at the end.
class Owner {
 public:
  explicit Owner(Sharing sharing) {
    int ends[2];
    if (pipe(ends) != 0) throw Error("pipe");
    const pid_t pid = fork();
    if (pid == 0) {
      SharedMemory memory({}, kBytes, sharing);
      write_pattern(memory.data());
      const MemoryHandle handle = memory.handle();
      static_cast<void>(!write(ends[1], &handle, sizeof handle));
      while (true) pause();
    }
    process_.emplace(pid);
    // One read suffices: the handle is smaller than a pipe's atomic write.
    const bool received = read(ends[0], &handle_, sizeof handle_) == sizeof handle_;
    close(ends[0]);
    close(ends[1]);
    if (!received) throw Error("the other process sent no handle");
  }
  const MemoryHandle& handle() const { return handle_; }
  void die() { process_->die(); }

 private:
  MemoryHandle handle_;
  std::optional<test::KilledProcess> process_;
};

TEST(SharedMemory, ReturnsMemoryThatIsNotUsed) {
  for (const Sharing sharing : {Sharing::kProcess, Sharing::kNode}) {
    SharedMemory memory({}, kBytes, sharing);
    write_pattern(memory.data());
    const std::size_t page = SharedMemory::granule({}) / sizeof(std::uint32_t);
    // From inside of the second page to inside of the fifth: whole pages are the third and fourth.
    const auto keep = [&](std::size_t first, std::size_t last) {
      memory.keep(std::array{ByteRange{last, kBytes}, ByteRange{0, first}});
    };
    keep((page + 9) * sizeof(std::uint32_t), (4 * page + 9) * sizeof(std::uint32_t));
    for (std::size_t i = 0; i < 6 * page; ++i) {
      const bool is_gone = i >= 2 * page && i < 4 * page;
      ASSERT_EQ(words(memory.data())[i], is_gone ? 0 : static_cast<std::uint32_t>(i * 7 + 5)) << i;
    }
    write_pattern(memory.data());
    EXPECT_EQ(wrong_words(memory.data()), 0u);
    keep(10, 20);
    EXPECT_EQ(wrong_words(memory.data()), 0u);
  }
}

TEST(SharedMemory, IsReadByAnotherProcess) {
  const Owner owner(Sharing::kNode);
  const std::shared_ptr<void> map = map_memory(owner.handle(), {});
  ASSERT_NE(map, nullptr);
  EXPECT_EQ(wrong_words(map.get()), 0u);
}

TEST(SharedMemory, KeepsItsPagesWhenTheOwnerIsKilled) {
  Owner owner(Sharing::kNode);
  const std::shared_ptr<void> map = map_memory(owner.handle(), {});
  ASSERT_NE(map, nullptr);
  owner.die();
  EXPECT_EQ(wrong_words(map.get()), 0u);
  words(map.get())[kWords - 1] = 1;  // and can be written to
  EXPECT_EQ(wrong_words(map.get()), 1u);
}

TEST(SharedMemory, CannotBeMappedOnceItsOwnerIsGone) {
  Owner owner(Sharing::kNode);
  owner.die();
  EXPECT_EQ(map_memory(owner.handle(), {}), nullptr);
}

TEST(SharedMemory, IsOneMemoryForAllThatMapIt) {
  SharedMemory memory({}, kBytes, Sharing::kNode);
  const std::shared_ptr<void> other = posix_memory::map(memory.handle().posix, memory.size_bytes());
  ASSERT_NE(other, nullptr);
  EXPECT_NE(other.get(), memory.data());
  write_pattern(memory.data());
  EXPECT_EQ(wrong_words(other.get()), 0u);
}

TEST(SharedMemory, PrivateMemoryIsForThreadsOnly) {
  const Owner owner(Sharing::kProcess);
  EXPECT_EQ(map_memory(owner.handle(), {}), nullptr);
}

TEST(SharedMemory, IsThePointerItselfWithinAProcessAndOutlivesItsOwner) {
  for (Sharing sharing : {Sharing::kProcess, Sharing::kNode}) {
    auto memory = std::make_unique<SharedMemory>(Device{}, kBytes, sharing);
    write_pattern(memory->data());
    const std::shared_ptr<void> map = map_memory(memory->handle(), {});
    EXPECT_EQ(map.get(), memory->data());
    memory.reset();
    EXPECT_EQ(wrong_words(map.get()), 0u);
  }
}

TEST(SharedMemory, IsNotMappedFromElsewhere) {
  const Owner owner(Sharing::kNode);
  MemoryHandle handle = owner.handle();
  handle.owner.host[0] = static_cast<char>(handle.owner.host[0] ^ 1);
  EXPECT_EQ(map_memory(handle, {}), nullptr) << "of another machine";
  handle = owner.handle();
  handle.device.kind = DeviceKind::kCuda;
  EXPECT_EQ(map_memory(handle, {}), nullptr) << "of another kind of device";
  handle = owner.handle();
  handle.posix.label[12] = handle.posix.label[12] == '0' ? '1' : '0';
  EXPECT_EQ(map_memory(handle, {}), nullptr) << "another file under the number of the wanted one";
  handle = owner.handle();
  handle.posix.fd = 0;
  EXPECT_EQ(map_memory(handle, {}), nullptr) << "a file that is no block";
  handle = owner.handle();
  handle.size_bytes += 4096;
  EXPECT_EQ(map_memory(handle, {}), nullptr) << "more than there is";
}

TEST(SharedMemory, CannotBeTruncatedWhileMapped) {
  SharedMemory memory({}, kBytes, Sharing::kNode);
  EXPECT_NE(ftruncate(memory.handle().posix.fd, 0), 0);
}

TEST(SharedMemory, LeavesNothingBehind) {
  const std::size_t before = open_files();
  {
    SharedMemory memory({}, kBytes, Sharing::kNode);
    const auto map = posix_memory::map(memory.handle().posix, memory.size_bytes());
    EXPECT_GT(open_files(), before);
  }
  EXPECT_EQ(open_files(), before);
}

TEST(SharedMemory, ComesInWholeUnits) {
  for (Sharing sharing : {Sharing::kProcess, Sharing::kNode}) {
    for (std::size_t size : {std::size_t{1}, kBytes}) {
      const SharedMemory memory({}, size, sharing);
      EXPECT_EQ(memory.size_bytes() % SharedMemory::granule({}), 0u);
      EXPECT_GE(memory.size_bytes(), size);
      EXPECT_LT(memory.size_bytes(), size + SharedMemory::granule({}));
      std::fill_n(static_cast<char*>(memory.data()), memory.size_bytes(), '\x7f');
    }
    EXPECT_EQ(SharedMemory({}, 0, sharing).data(), nullptr);
  }
}

TEST(SharedMemory, RejectsMoreThanTheMachineHas) {
  for (Sharing sharing : {Sharing::kProcess, Sharing::kNode}) {
    EXPECT_THROW(SharedMemory({}, std::size_t{1} << 46, sharing), std::bad_alloc);
  }
}

TEST(FreeMemory, OnTheHostIsLessThanTheTotal) {
  const std::size_t free = free_memory({});
  EXPECT_GT(free, std::size_t{1} << 20);
  EXPECT_LT(free, std::size_t{1} << 50);
  EXPECT_EQ(free % 1024, 0u);
}

TEST(ProcessIdentity, DiffersBetweenProcesses) {
  const ProcessIdentity me = this_process();
  EXPECT_TRUE(me.same_process(this_process()));
  const Owner owner(Sharing::kProcess);
  EXPECT_TRUE(me.same_host(owner.handle().owner));
  EXPECT_FALSE(me.same_process(owner.handle().owner));
  ProcessIdentity container = me;  // the same number in another container
  container.process ^= 1;
  EXPECT_FALSE(me.same_process(container));
}

}  // namespace
}  // namespace kvmesh
