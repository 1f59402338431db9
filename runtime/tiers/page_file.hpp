// The file of a page: a header of 64 bytes and the page's image.
//
//    0  magic "KVMPAGE\n"        24  page size, in tokens (16 bits)
//    8  version (16 bits)        26  planes (16 bits)
//   10  dtype (8 bits)           28  bytes of a token and head, all planes together (32 bits)
//   11  layer group (8 bits)     32  hash (32 bytes)
//   12  CRC-32C (32 bits), of all the file but these four bytes
//   16  first layer, layers, first head, heads (16 bits each)
//
// Numbers are little-endian. The image follows: layer after layer, plane after plane, each [heads,
// page size, elements].
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "kvmesh/page_format.hpp"
#include "kvmesh/prefix.hpp"
#include "runtime/tiers/file_calls.hpp"

namespace kvmesh {

inline constexpr std::size_t kPageFileHeader = 64;
inline constexpr std::uint16_t kPageFileVersion = 1;

/// The shape of the part of a page that a file holds.
struct PageFileShape {
  Dtype dtype = Dtype::kBFloat16;
  std::uint8_t group = 0;
  std::uint16_t first_layer = 0, layers = 0, first_head = 0, heads = 0, page_size = 0, planes = 0;
  std::uint32_t row_bytes = 0;  ///< per token and head, all planes together

  std::size_t image_bytes() const { return std::size_t{row_bytes} * page_size * heads * layers; }
  std::size_t file_bytes() const { return kPageFileHeader + image_bytes(); }
  friend bool operator==(const PageFileShape&, const PageFileShape&) = default;
};

/// The reason why a file was not read or written; kNone if it was.
enum class FileFault : std::uint8_t {
  kNone,
  kMissing,
  kCorrupt,
  kTruncated,
  kForeign,
  kFull,
  kDenied,
  kIo,
};

struct PageFileWay {
  bool durable = false;  ///< data, names and new folders are on the disk on return
  bool direct = false;   ///< O_DIRECT, where the file system can
};

/// Buffers are aligned to this, and their sizes are multiples of it, for O_DIRECT.
inline constexpr std::size_t kFileBlock = 4096;
constexpr std::size_t file_buffer_bytes(std::size_t file_bytes) {
  return (file_bytes + kFileBlock - 1) / kFileBlock * kFileBlock;
}

/// Makes a folder, and those above it, if they are missing. Durable: then each new one's parent is
/// synced, so the names of all new folders are on the disk on return.
FileFault make_page_folder(FileCalls& calls, const std::string& folder, const PageFileWay& way);

/// Writes the file under another name, then renames it, so no reader finds a part of it. `buffer`
/// has room for the header, the image, and zeros up to a whole block. Makes the folder if it is
/// missing. A fault leaves no file behind, as far as the system lets it.
FileFault write_page_file(FileCalls& calls, const std::string& path, const PageFileShape& shape,
                          const PageHash& hash, std::span<std::byte> buffer,
                          const PageFileWay& way);

/// Reads the file into `buffer`, header and image, and checks all of it.
FileFault read_page_file(FileCalls& calls, const std::string& path, const PageFileShape& shape,
                         const PageHash& hash, std::span<std::byte> buffer, const PageFileWay& way);

/// Removes the file. A missing file is no fault.
FileFault remove_page_file(FileCalls& calls, const std::string& path);

/// Returns whether a file is the unfinished work of a write_page_file whose process has ended. For
/// a file of another machine it returns true once a day has passed since the last write.
bool is_left_over(const std::filesystem::path& path);

/// Checks the bytes of a whole file.
FileFault check_page_file(std::span<const std::byte> file, const PageFileShape& shape,
                          const PageHash& hash);

}  // namespace kvmesh
