// Calls that record which folders are synced.
#pragma once

#include <fcntl.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "runtime/tiers/file_calls.hpp"

namespace kvmesh::test {

class SyncedFolders final : public FileCalls {
 public:
  int open(const char* path, int flags) override {
    const int file = FileCalls::open(path, flags);
    if ((flags & O_DIRECTORY) != 0) opened_[file] = path;
    return file;
  }
  int sync(int file) override {
    if (opened_.contains(file)) synced_.push_back(opened_[file]);
    return FileCalls::sync(file);
  }
  int close(int file) override {
    opened_.erase(file);
    return FileCalls::close(file);
  }
  /// Returns the folders synced since the last call, in the order of their names.
  std::vector<std::filesystem::path> take() {
    std::ranges::sort(synced_);
    return std::exchange(synced_, {});
  }

 private:
  std::map<int, std::string> opened_;
  std::vector<std::filesystem::path> synced_;
};

}  // namespace kvmesh::test
