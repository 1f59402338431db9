// Sequences as streams of bytes: to keep them, or to hand them to another cache.
//
//   header   magic, version, the shape of each layer group's planes, tokens and hashes (if known),
//            CRC-32C
//   records  group after group, 256 tokens of one layer each: every plane [heads, tokens,
//            elements], CRC-32C
//   end mark
//
// A stream knows neither pages nor ranks, so a cache with another page size, number of ranks or
// placement can import it. Numbers are little-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvmesh/api.h"
#include "kvmesh/dtype.hpp"
#include "kvmesh/error.hpp"
#include "kvmesh/page_format.hpp"
#include "kvmesh/prefix.hpp"
#include "kvmesh/types.hpp"

namespace KVMESH_API kvmesh {

/// A stream that cannot be read or written.
class StreamError : public Error {
 public:
  enum class Reason : std::uint8_t {
    kIo,         ///< the system refuses to read or write
    kTruncated,  ///< it ends too early
    kForeign,    ///< no stream of kvmesh, or of a version that this build does not know
    kCorrupt,    ///< a checksum or a number is wrong
    kMismatch,   ///< it is good, but does not fit the cache
  };
  StreamError(Reason reason, const std::string& what) : Error(what), reason_(reason) {}
  Reason reason() const noexcept { return reason_; }
  ErrorCode code() const noexcept override { return ErrorCode::kStream; }

 private:
  Reason reason_;
};

/// The destination of a stream. Implementations throw StreamError (kIo).
class ByteSink {
 public:
  virtual ~ByteSink() = default;
  /// Announces that this many more bytes of the stream follow.
  virtual void expect(std::size_t /*size_bytes*/) {}
  virtual void write(std::span<const std::byte> bytes) = 0;
  /// Returns memory of the sink for the stream's next bytes, of one record or several, which saves
  /// a copy: the caller writes them there before its next call, on any of its threads. Returns
  /// nothing if the sink takes these bytes by write() alone.
  virtual std::span<std::byte> room(std::size_t /*size_bytes*/) { return {}; }
  /// Called when the stream is complete.
  virtual void finish() {}
};

/// The source of a stream.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  /// Fills `bytes`. @throws StreamError (kTruncated if the source ends before, kIo).
  virtual void read(std::span<std::byte> bytes) = 0;
  /// Returns the next bytes where they lie, valid until the next call. Returns nothing if the
  /// source gives them by read() alone. @throws as read.
  virtual std::span<const std::byte> view(std::size_t /*size_bytes*/) { return {}; }
  /// Called when the stream has been read to its end. @throws StreamError (kCorrupt) if the source
  /// must end there and does not, kIo.
  virtual void finish() {}
};

class MemorySink final : public ByteSink {
 public:
  MemorySink();
  ~MemorySink() override;
  MemorySink(const MemorySink&) = delete;
  MemorySink& operator=(const MemorySink&) = delete;
  void expect(std::size_t size_bytes) override;
  void write(std::span<const std::byte> bytes) override;
  std::span<std::byte> room(std::size_t size_bytes) override;
  /// The bytes that were written so far, valid until the next call.
  std::span<const std::byte> bytes() const;

 private:
  class Memory;
  std::unique_ptr<Memory> memory_;
};

class MemorySource final : public ByteSource {
 public:
  /// REQUIRES: `bytes` outlive the source.
  explicit MemorySource(std::span<const std::byte> bytes) : bytes_(bytes) {}
  void read(std::span<std::byte> bytes) override;
  std::span<const std::byte> view(std::size_t size_bytes) override;

 private:
  std::span<const std::byte> bytes_;
};

/// An open file, pipe or socket, which the caller closes. Reads and writes block. A write to a pipe
/// or socket that no one reads raises SIGPIPE; in a process that ignores it, it is a StreamError
/// (kIo).
class DescriptorSink final : public ByteSink {
 public:
  explicit DescriptorSink(int descriptor) : descriptor_(descriptor) {}
  void write(std::span<const std::byte> bytes) override;

 private:
  int descriptor_;
};
class DescriptorSource final : public ByteSource {
 public:
  explicit DescriptorSource(int descriptor) : descriptor_(descriptor) {}
  void read(std::span<std::byte> bytes) override;

 private:
  int descriptor_;
};

/// A file that exists only when it is complete: written under another name beside it, then synced
/// and renamed by finish(). Without finish() nothing remains. Symbolic links stay: the file is the
/// one that they lead to.
class FileSink final : public ByteSink {
 public:
  /// @throws StreamError (kIo), also if there is something other than a file that could be
  /// replaced: a folder, a pipe, a device. DescriptorSink writes to those that are open.
  explicit FileSink(const std::string& path);
  ~FileSink() override;
  FileSink(const FileSink&) = delete;
  FileSink& operator=(const FileSink&) = delete;
  void write(std::span<const std::byte> bytes) override;
  void finish() override;

 private:
  struct Part;
  std::string path_;
  std::unique_ptr<Part> part_;
};
/// A file of one stream; or a pipe or device that has a name, which may go on behind it.
class FileSource final : public ByteSource {
 public:
  /// @throws StreamError (kIo).
  explicit FileSource(const std::string& path);
  ~FileSource() override;
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;
  void read(std::span<std::byte> bytes) override;
  void finish() override;

 private:
  class File;
  std::unique_ptr<File> file_;
};

/// The description of a sequence at the beginning of its stream.
struct SequenceHeader {
  static constexpr std::uint32_t kVersion = 3;

  struct Plane {
    std::string name;
    Dtype dtype = Dtype::kFloat32;
    int elements = 0;  ///< per token and head
    friend bool operator==(const Plane&, const Plane&) = default;
  };
  /// Layers whose planes have one shape.
  struct Group {
    std::vector<std::int32_t> layers;  ///< their numbers
    int heads = 0;                     ///< the model's
    std::vector<Plane> planes{};
    /// The scales of float8 planes: one for all, or one for each head; empty if planes hold them.
    /// The values of latent pages have none.
    std::vector<float> k_scales{}, v_scales{};
    /// The first token that the stream has: those before it lay behind the group's window. A group
    /// of states has one row per layer, in the place of the last token's.
    std::int64_t first = 0;
    friend bool operator==(const Group&, const Group&) = default;
  };
  std::int64_t tokens = 0;
  std::vector<Group> groups;
  /// The tokens and the hashes of their pages, if the exporter had a key.
  std::vector<std::int32_t> token_ids;
  PrefixHash hash = PrefixHash::kSha256Cbor;
  int hash_page_size = 16;
  std::vector<PageHash> hashes;

  friend bool operator==(const SequenceHeader&, const SequenceHeader&) = default;
};

/// See KvCache::import_sequence.
struct ImportedSequence {
  SequenceId sequence;
  SequenceHeader header;
};

/// Reads a whole stream and checks all of it.
/// @throws StreamError.
SequenceHeader inspect_sequence(ByteSource& source);

}  // namespace kvmesh
