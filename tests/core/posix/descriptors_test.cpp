#include "core/posix/descriptors.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <string>

namespace kvmesh {
namespace {

/// A file in memory that holds the piece's bounds.
int file_of(const ByteRange& piece) {
  const int file = memfd_create("test", MFD_CLOEXEC);
  const std::string text = std::to_string(piece.first) + "-" + std::to_string(piece.last);
  EXPECT_EQ(pwrite(file, text.data(), text.size(), 0), std::ssize(text));
  return file;
}

std::string content(int file) {
  std::string text(100, ' ');
  const ssize_t size = pread(file, text.data(), text.size(), 0);
  text.resize(static_cast<std::size_t>(std::max<ssize_t>(size, 0)));
  return text;
}

std::size_t open_descriptors() {
  std::size_t count = 0;
  for (int number = 0; number < 1000; ++number) count += fcntl(number, F_GETFD) != -1;
  return count;
}

// More than a process may have open at once.
TEST(Descriptors, GivesThoseOfAllPiecesToEachThatAsks) {
  std::vector<ByteRange> pieces;
  for (std::size_t i = 0; i < 1500; ++i) pieces.push_back({i * 10, i * 10 + 7});
  const std::size_t before = open_descriptors();
  {
    const DescriptorServer server(pieces, file_of);
    for (int reader = 0; reader < 2; ++reader) {
      std::vector<ByteRange> taken;
      EXPECT_TRUE(take_descriptors(server.place(), [&](const ByteRange& piece, int file) {
        taken.push_back(piece);
        EXPECT_EQ(content(file), std::to_string(piece.first) + "-" + std::to_string(piece.last));
        return true;
      }));
      EXPECT_EQ(taken, pieces);
    }
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST(Descriptors, RefusesIfOneIsMissing) {
  const DescriptorServer server({{0, 1}, {1, 2}, {2, 3}}, [](const ByteRange& piece) {
    return piece.first == 2 ? -1 : file_of(piece);
  });
  int taken = 0;
  EXPECT_FALSE(
      take_descriptors(server.place(), [&](const ByteRange&, int) { return ++taken > 0; }));
  EXPECT_EQ(taken, 2);
  EXPECT_FALSE(take_descriptors(server.place(), [&](const ByteRange&, int) { return false; }));
  EXPECT_FALSE(take_descriptors({}, [](const ByteRange&, int) { return true; }));
}

TEST(Descriptors, NothingIsLeftWhereAServerWas) {
  DescriptorPlace place;
  {
    const DescriptorServer server({}, file_of);
    place = server.place();
    EXPECT_TRUE(take_descriptors(place, [](const ByteRange&, int) { return true; }));
  }
  EXPECT_FALSE(take_descriptors(place, [](const ByteRange&, int) { return true; }));
}

}  // namespace
}  // namespace kvmesh
