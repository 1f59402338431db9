// Files and descriptors of streams whose calls of the system fail.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "core/posix/descriptor.hpp"
#include "tests/runtime/streams/sequence_stream_case.hpp"

namespace kvmesh::test {
namespace {

namespace fs = std::filesystem;

/// Ignores a signal that would end the process instead of a call's error.
class IgnoredSignal {
 public:
  explicit IgnoredSignal(int number) : number_(number), before_(std::signal(number, SIG_IGN)) {}
  ~IgnoredSignal() { std::signal(number_, before_); }
  IgnoredSignal(const IgnoredSignal&) = delete;
  IgnoredSignal& operator=(const IgnoredSignal&) = delete;

 private:
  int number_;
  void (*before_)(int);
};

/// Files cannot grow past some bytes, as on a full disk.
class SmallFiles {
 public:
  explicit SmallFiles(std::size_t most_bytes) {
    EXPECT_EQ(::getrlimit(RLIMIT_FSIZE, &before_), 0);
    rlimit limit = before_;
    limit.rlim_cur = most_bytes;
    EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  }
  ~SmallFiles() { ::setrlimit(RLIMIT_FSIZE, &before_); }
  SmallFiles(const SmallFiles&) = delete;
  SmallFiles& operator=(const SmallFiles&) = delete;

 private:
  IgnoredSignal ignored_{SIGXFSZ};
  rlimit before_{};
};

/// The reason of the StreamError that `call` throws; none if it throws nothing.
template <class Call>
std::optional<Reason> reason_of(const Call& call) {
  try {
    call();
    return std::nullopt;
  } catch (const StreamError& error) {
    return error.reason();
  }
}

Descriptor opened(const std::string& path, int flags) {
  Descriptor file(::open(path.c_str(), flags | O_CLOEXEC));
  EXPECT_GE(file.get(), 0) << path;
  return file;
}

/// The number that the next file to be opened has. REQUIRES: no other thread opens files.
int next_descriptor() { return opened("/dev/null", O_RDONLY).get(); }

/// Makes this descriptor of the process write to `path` from now on.
void redirect(int descriptor, const std::string& path) {
  ASSERT_EQ(::dup2(opened(path, O_WRONLY).get(), descriptor), descriptor);
}

class StreamFaults : public ::testing::Test {
 protected:
  StreamFaults() { fs::create_directory(folder_); }
  ~StreamFaults() override { fs::remove_all(folder_); }

  void write_old() const {
    FileSink sink(path_);
    sink.write(old_);
    sink.finish();
  }
  void expect_old() const {
    EXPECT_EQ(entries(), 1) << "no part is left";
    FileSource source(path_);
    EXPECT_EQ(inspect_sequence(source).tokens, 3);
  }
  std::ptrdiff_t entries() const { return std::distance(fs::directory_iterator(folder_), {}); }

  fs::path folder_ =
      fs::temp_directory_path() / ("kvmesh_stream_faults_" + std::to_string(::getpid()));
  std::string path_ = folder_ / "sequence";
  Stream old_ = exported({}, options_of({}), 3);
  Stream stream_ = exported({}, options_of({}), 40);
};

TEST_F(StreamFaults, OfAFileWithoutRoomKeepTheOldFile) {
  write_old();
  {
    FileSink sink(path_);
    const SmallFiles full(stream_.size() / 2);
    EXPECT_EQ(reason_of([&] { sink.write(stream_); }), Reason::kIo);
  }
  expect_old();
}

TEST_F(StreamFaults, OfAnExportAreErrorsOnAllRanks) {
  write_old();
  run_on_threads(
      2,
      [&](Mesh& mesh) {
        KvCache cache(mesh, options_of({.ranks = 2}));
        const SequenceId sequence = cache.create();
        append_numbers(mesh, cache, sequence, 40);
        const std::uint64_t before = cache.digest();
        barrier(mesh.world());  // the ranks' shared memory is made
        {
          std::optional<FileSink> sink;
          std::optional<SmallFiles> full;
          if (mesh.rank().value == 0) {
            sink.emplace(path_);
            full.emplace(stream_.size() / 2);
          }
          EXPECT_EQ(reason_of([&] { cache.export_sequence(sequence, sink ? &*sink : nullptr); }),
                    Reason::kIo);
        }
        EXPECT_EQ(cache.digest(), before);
        const Stream again = export_of(mesh, cache, sequence);
        EXPECT_EQ(again, mesh.rank().value == 0 ? stream_ : Stream());
      },
      {.threads = 1, .device = DeviceChoice::kCpu});
  expect_old();
}

TEST_F(StreamFaults, OfASyncKeepTheOldFile) {
  write_old();
  {
    const int file = next_descriptor();
    FileSink sink(path_);
    sink.write(stream_);
    redirect(file, "/dev/full");  // which cannot be synced
    EXPECT_EQ(reason_of([&] { sink.finish(); }), Reason::kIo);
  }
  expect_old();
}

TEST_F(StreamFaults, OfADescriptorThatSomeoneHasClosedKeepTheOldFile) {
  write_old();
  {
    const int file = next_descriptor();
    FileSink sink(path_);
    ::close(file);
    EXPECT_EQ(reason_of([&] { sink.write(stream_); }), Reason::kIo);
    EXPECT_EQ(reason_of([&] { sink.finish(); }), Reason::kIo);
  }
  expect_old();
}

TEST_F(StreamFaults, OfARenameLeaveWhatIsThere) {
  {
    FileSink sink(path_);
    sink.write(stream_);
    fs::create_directory(path_);
    EXPECT_EQ(reason_of([&] { sink.finish(); }), Reason::kIo);
  }
  EXPECT_EQ(entries(), 1);
  EXPECT_TRUE(fs::is_directory(path_));
}

TEST_F(StreamFaults, OfDescriptorsAreTyped) {
  const auto writes = [&](int descriptor) {
    DescriptorSink sink(descriptor);
    return reason_of([&] { sink.write(stream_); });
  };
  const auto reads = [](int descriptor) {
    DescriptorSource source(descriptor);
    return reason_of([&] { inspect_sequence(source); });
  };
  write_old();
  EXPECT_EQ(writes(opened("/dev/full", O_WRONLY).get()), Reason::kIo);
  EXPECT_EQ(writes(opened(path_, O_RDONLY).get()), Reason::kIo);
  EXPECT_EQ(writes(next_descriptor()), Reason::kIo) << "it is closed";
  EXPECT_EQ(reads(opened(path_, O_RDONLY).get()), std::nullopt);
  EXPECT_EQ(reads(opened(path_, O_WRONLY).get()), Reason::kIo);
  EXPECT_EQ(reads(next_descriptor()), Reason::kIo);
  const IgnoredSignal ignored(SIGPIPE);
  int ends[2] = {-1, -1};
  ASSERT_EQ(::pipe(ends), 0);
  const Descriptor write_end(ends[1]);
  ::close(ends[0]);
  EXPECT_EQ(writes(write_end.get()), Reason::kIo) << "no one reads";
}

TEST_F(StreamFaults, OfFilesThatCannotBeReadAreTyped) {
  FileSource folder(folder_);
  EXPECT_EQ(reason_of([&] { inspect_sequence(folder); }), Reason::kIo);
  write_old();
  const int file = next_descriptor();
  FileSource source(path_);
  ::close(file);
  EXPECT_EQ(reason_of([&] { inspect_sequence(source); }), Reason::kIo);
  EXPECT_EQ(reason_of([&] { source.finish(); }), Reason::kIo);
}

}  // namespace
}  // namespace kvmesh::test
