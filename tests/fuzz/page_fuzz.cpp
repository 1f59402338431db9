// Any bytes as the file of a page: the page, or a typed fault. The first byte says whether the
// right checksum is put in, as a fuzzer finds none, and in how large parts the file is read. What
// is accepted is what the writer writes for the same page.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "core/crc32c.hpp"
#include "runtime/tiers/page_file.hpp"
#include "tests/fuzz/target.hpp"

namespace {

using namespace kvmesh;

constexpr PageFileShape kShape{
    .layers = 1, .heads = 1, .page_size = 2, .planes = 1, .row_bytes = 8};

/// One file in memory.
class MemoryCalls final : public FileCalls {
 public:
  MemoryCalls(std::vector<std::byte>& file, std::size_t part) : file_(file), part_(part) {}
  int open(const char*, int) override { return 3; }
  ssize_t read(int, void* to, std::size_t size) override {
    const std::size_t count = std::min({size, part_, file_.size() - at_});
    if (count > 0) std::memcpy(to, file_.data() + at_, count);
    at_ += count;
    return static_cast<ssize_t>(count);
  }
  ssize_t write(int, const void* from, std::size_t size) override {
    const auto* bytes = static_cast<const std::byte*>(from);
    file_.insert(file_.end(), bytes, bytes + size);
    return static_cast<ssize_t>(size);
  }
  int close(int) override { return 0; }
  int rename(const char*, const char*) override { return 0; }

 private:
  std::vector<std::byte>& file_;
  std::size_t part_, at_ = 0;
};

void put_checksum(std::vector<std::byte>& file) {
  if (file.size() < 16) return;
  const std::span<const std::byte> bytes(file);
  const std::uint32_t crc = crc32c(bytes.subspan(16), crc32c(bytes.first(12)));
  for (std::size_t i = 0; i < 4; ++i) file[12 + i] = static_cast<std::byte>(crc >> (8 * i));
}

}  // namespace

bool reads(std::span<const std::uint8_t> data) {
  if (data.empty()) return false;
  const auto bytes = std::as_bytes(data).subspan(1);
  std::vector<std::byte> file(bytes.begin(), bytes.end());
  if (data[0] % 2 == 0) put_checksum(file);
  PageHash hash;
  hash.bytes.fill(7);
  std::vector<std::byte> buffer(file_buffer_bytes(kShape.file_bytes()) + kFileBlock);
  MemoryCalls calls(file, 1 + data[0] / 2);
  const FileFault fault = read_page_file(calls, "a/b", kShape, hash, buffer, {});
  const std::size_t seen = std::min(file.size(), buffer.size());
  if (fault != check_page_file(std::span(file).first(seen), kShape, hash)) abort();
  if (fault != FileFault::kNone) return false;
  std::vector<std::byte> again;
  MemoryCalls writer(again, 1);
  if (write_page_file(writer, "a/b", kShape, hash, buffer, {}) != FileFault::kNone) abort();
  if (again != file) abort();
  return true;
}
