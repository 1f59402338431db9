#include "launch/cli/paths.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "kvmesh/error.hpp"

namespace kvmesh::launch {
namespace {

namespace fs = std::filesystem;

// Returns where a file at `path` is, or would be made: links are followed, also to what is missing.
fs::path place_of(fs::path path) {
  constexpr int kMostLinks = 40;  // as Linux has
  std::error_code error;
  for (int links = 0; links < kMostLinks && fs::is_symlink(path, error); ++links) {
    path = path.parent_path() / fs::read_symlink(path, error);
  }
  return fs::weakly_canonical(fs::absolute(path, error), error);
}

bool are_one_file(const std::string& one, const std::string& other) {
  if (one.empty() || other.empty()) return false;
  std::error_code error;
  if (fs::is_other(fs::status(one, error))) return false;
  return fs::equivalent(one, other, error) || place_of(one) == place_of(other);
}

void check_apart(const NamedPath& output, const NamedPath& other) {
  if (!are_one_file(output.path, other.path)) return;
  throw InvalidArgument(fmt::format("{} and {} are the same file, '{}', which would be overwritten",
                                    output.name, other.name, output.path));
}

}  // namespace

void check_outputs(std::span<const NamedPath> outputs, std::span<const NamedPath> inputs) {
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    for (const NamedPath& other : outputs.subspan(i + 1)) check_apart(outputs[i], other);
    for (const NamedPath& input : inputs) check_apart(outputs[i], input);
  }
}

void check_tier_folder(const std::string& folder) {
  if (folder.empty()) return;
  const auto check = [&](const std::error_code& error) {
    if (!error) return;
    throw InvalidArgument(
        fmt::format("--tier-folder {} cannot be written: {}", folder, error.message()));
  };
  std::error_code error;
  fs::create_directories(folder, error);
  check(error);
  std::string file = folder + "/kvmesh-XXXXXX";
  const int descriptor = ::mkstemp(file.data());
  if (descriptor < 0) check({errno, std::generic_category()});
  ::close(descriptor);
  ::unlink(file.c_str());
}

}  // namespace kvmesh::launch
