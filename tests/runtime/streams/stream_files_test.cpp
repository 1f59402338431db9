// Streams in files, and in what a path may name instead.
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "tests/runtime/streams/sequence_stream_case.hpp"

namespace kvmesh::test {
namespace {

namespace fs = std::filesystem;

class StreamFile : public ::testing::Test {
 protected:
  StreamFile() { fs::create_directory(folder_); }
  ~StreamFile() override { fs::remove_all(folder_); }

  static void write(const std::string& path, const Stream& stream) {
    FileSink sink(path);
    sink.write(stream);
    sink.finish();
  }
  static std::int64_t tokens_in(const std::string& path) {
    FileSource source(path);
    return inspect_sequence(source).tokens;
  }
  /// Expects that nothing is written to `path`, because `what` is there.
  static void expect_kept(const std::string& path, const std::string& what) {
    const fs::file_type before = fs::symlink_status(path).type();
    try {
      FileSink sink(path);
      ADD_FAILURE() << path << " would be replaced";
    } catch (const StreamError& error) {
      EXPECT_EQ(error.reason(), Reason::kIo);
      EXPECT_NE(std::string(error.what()).find(what), std::string::npos) << error.what();
    }
    EXPECT_EQ(fs::symlink_status(path).type(), before);
  }
  std::ptrdiff_t entries() const { return std::distance(fs::directory_iterator(folder_), {}); }

  fs::path folder_ = fs::temp_directory_path() / ("kvmesh_stream_" + std::to_string(::getpid()));
  std::string path_ = folder_ / "sequence";
  Stream stream_ = exported({}, options_of({}), 40);
};

TEST_F(StreamFile, AppearsWhenItIsComplete) {
  {
    FileSink sink(path_);
    sink.write(stream_);
  }
  EXPECT_EQ(entries(), 0);
  write(path_, stream_);
  FileSource source(path_);
  EXPECT_EQ(inspect_sequence(source).tokens, 40);
  EXPECT_THROW(inspect_sequence(source), StreamError);  // at its end
  EXPECT_THROW(FileSource("/nowhere/sequence"), StreamError);
  EXPECT_THROW(FileSink("/nowhere/sequence"), StreamError);
}

TEST_F(StreamFile, IsWhereLinksLead) {
  fs::create_directory(folder_ / "far");
  fs::create_symlink("far/sequence", folder_ / "near");  // to what is missing yet
  fs::create_symlink(folder_ / "near", path_);
  for (int round = 0; round < 2; ++round) {
    write(path_, stream_);
    EXPECT_TRUE(fs::is_symlink(path_) && fs::is_symlink(folder_ / "near"));
    EXPECT_TRUE(fs::is_regular_file(fs::symlink_status(folder_ / "far" / "sequence")));
    EXPECT_EQ(tokens_in(folder_ / "far" / "sequence"), 40);
  }
  EXPECT_EQ(entries(), 3);
  fs::create_symlink("round", folder_ / "round");
  expect_kept(folder_ / "round", "symbolic links");
}

TEST_F(StreamFile, ReplacesNothingButFiles) {
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  expect_kept(path_, "is a pipe");
  expect_kept(folder_, "is a folder");
  expect_kept("/dev/null", "is a device");
  fs::create_symlink(path_, folder_ / "link");
  expect_kept(folder_ / "link", "is a pipe");
  EXPECT_EQ(entries(), 2);
}

TEST_F(StreamFile, EndsWithItsStream) {
  Stream twice = stream_;
  twice.insert(twice.end(), stream_.begin(), stream_.end());
  write(path_, twice);
  const auto expect_refused = [&](const auto& read) {
    FileSource source(path_);
    try {
      read(source);
      ADD_FAILURE() << "nobody saw the second stream";
    } catch (const StreamError& error) {
      EXPECT_EQ(error.reason(), Reason::kCorrupt);
    }
  };
  expect_refused([](FileSource& source) { inspect_sequence(source); });
  expect_refused([](FileSource& source) {
    Mesh mesh(make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCpu});
    KvCache cache(mesh, options_of({}));
    cache.import_sequence(&source);
  });
  // In memory, pipes and sockets the bytes behind the sequence belong to the caller.
  MemorySource source(twice);
  EXPECT_EQ(inspect_sequence(source).tokens, 40);
  EXPECT_EQ(inspect_sequence(source).tokens, 40);
}

}  // namespace
}  // namespace kvmesh::test
