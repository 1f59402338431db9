#include "runtime/tiers/page_folders.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "runtime/tiers/page_file.hpp"

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

std::string hex(const PageHash& hash) {
  std::string text;
  for (const std::uint8_t byte : hash.bytes) text += fmt::format("{:02x}", byte);
  return text;
}

/// The inverse of `hex`. Returns nothing for other texts.
std::optional<PageHash> hash_of(std::string_view text) {
  PageHash hash;
  if (text.size() != 2 * hash.bytes.size()) return std::nullopt;
  const char* at = text.data();
  for (std::uint8_t& byte : hash.bytes) {
    const auto [end, error] = std::from_chars(at, at + 2, byte, 16);
    if (error != std::errc() || end != at + 2) return std::nullopt;
    at = end;
  }
  return hash;
}

/// The folders of pages have ranges of heads, of which a page's header has 16 bits.
constexpr int kMostHeads = 1 << 16;

std::string heads_name(int first, int last) { return fmt::format("heads-{}-{}", first, last); }

}  // namespace

PageFolders::PageFolders(std::string parent, int first_head, int heads, int part)
    : parent_(std::move(parent)), part_(part) {
  const std::string name = heads_name(first_head, first_head + heads - 1);
  folders_ = {
      {.first_head = first_head, .heads = heads, .path = fmt::format("{}/{}", parent_, name)}};
}

std::string PageFolders::path(const PageFolder& folder, const PageHash& hash) {
  const std::string name = hex(hash);
  return fmt::format("{}/{}/{}/{}.page", folder.path, name.substr(0, 2), name.substr(2, 2), name);
}

void PageFolders::find() {
  folders_.resize(1);
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(parent_, error)) {
    const std::string name = entry.path().filename().string();
    int first = 0, last = 0;
    if (std::sscanf(name.c_str(), "heads-%d-%d", &first, &last) != 2) continue;
    const bool is_range = 0 <= first && first <= last && last < kMostHeads - 1;
    if (!is_range || name != heads_name(first, last) || entry.path() == own().path) continue;
    folders_.push_back(
        {.first_head = first, .heads = last - first + 1, .path = entry.path().string()});
  }
  // The larger ranges first, so that few files cover a page.
  std::ranges::sort(folders_.begin() + 1, folders_.end(),
                    [](const PageFolder& a, const PageFolder& b) {
                      return std::pair(b.heads, a.first_head) < std::pair(a.heads, b.first_head);
                    });
}

std::vector<FoundPage> PageFolders::files(FileCalls& calls) const {
  std::vector<FoundPage> files;
  for (const PageFolder& folder : folders_) {
    std::error_code error;
    for (fs::recursive_directory_iterator at(folder.path, error), end; !error && at != end;
         at.increment(error)) {
      const std::optional<PageHash> hash = hash_of(at->path().stem().string());
      std::error_code gone;
      if (is_left_over(at->path())) calls.remove(at->path().c_str());
      if (at->path().extension() != ".page" || !hash) continue;
      const auto size = static_cast<std::int64_t>(at->file_size(gone));
      if (gone) continue;  // it was removed meanwhile, or is a folder
      const auto time = at->last_write_time(gone);
      if (!gone)
        files.push_back(
            {.time = time, .part = part_of(folder, *hash), .hash = *hash, .bytes = size});
    }
  }
  return files;
}

int PageFolders::part_of(const PageFolder& folder, const PageHash& hash) const {
  return part_of_file(folder.first_head, folder.heads, own().heads, hash);
}

std::vector<std::string> PageFolders::counted_paths(const PageHash& hash) const {
  std::vector<std::string> paths;
  for (const PageFolder& folder : folders_) {
    if (part_of(folder, hash) == part_) paths.push_back(path(folder, hash));
  }
  return paths;
}

std::int64_t PageFolders::bytes_of(const PageHash& hash) const {
  std::int64_t bytes = 0;
  for (const std::string& path : counted_paths(hash)) {
    std::error_code missing;
    const auto size = static_cast<std::int64_t>(fs::file_size(path, missing));
    if (!missing) bytes += size;
  }
  return bytes;
}

std::optional<std::vector<const PageFolder*>> PageFolders::cover(const PageHash& hash) const {
  std::vector<const PageFolder*> parts;
  const int end = own().first_head + own().heads;
  for (int head = own().first_head; head < end;) {
    const auto part = std::ranges::find_if(folders_, [&](const PageFolder& folder) {
      std::error_code unknown;
      return folder.first_head <= head && head < folder.first_head + folder.heads &&
             fs::exists(path(folder, hash), unknown);
    });
    if (part == folders_.end()) return std::nullopt;
    parts.push_back(&*part);
    head = part->first_head + part->heads;
  }
  return parts;
}

}  // namespace kvmesh
