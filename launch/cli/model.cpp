#include "launch/cli/model.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <vector>

#include "launch/cli/agree.hpp"

namespace kvmesh::launch {
namespace {

// The hash of parts, which the threads take in turn. It is the same for any number of threads.
std::uint64_t hash_of(std::span<const std::byte> bytes, ThreadPool& threads) {
  constexpr std::size_t kPart = std::size_t{16} << 20;
  std::vector<std::uint64_t> parts((bytes.size() + kPart - 1) / kPart);
  threads.for_each(std::ssize(parts), [&](std::int64_t i, int) {
    const std::size_t begin = static_cast<std::size_t>(i) * kPart;
    const auto part = bytes.subspan(begin, std::min(kPart, bytes.size() - begin));
    parts[static_cast<std::size_t>(i)] = XXH3_64bits(part.data(), part.size());
  });
  return XXH3_64bits(parts.data(), parts.size() * sizeof parts[0]);
}

}  // namespace

void check_vocabulary(const Model& model, const engine::LlamaShape& shape) {
  if (model.tokenizer.size() == shape.vocabulary) return;
  throw engine::ModelError(fmt::format(
      "damaged: {} tokens in the vocabulary, {} rows in token_embd.weight; download it again",
      model.tokenizer.size(), shape.vocabulary));
}

void agree_on_content(Mesh& mesh, const Model& model) {
  if (mesh.size() == 1) return;
  const std::span<const std::byte> bytes = model.file.bytes();
  const std::array fields{Field{
      "a model file of",
      fmt::format("{} bytes with hash {:016x}", bytes.size(), hash_of(bytes, mesh.threads()))}};
  agree_on(mesh.world(), fields);
}

std::string name_of_content(Mesh& mesh, const engine::GgufFile& file) {
  return fmt::format("{:016x}", hash_of(file.bytes(), mesh.threads()));
}

}  // namespace kvmesh::launch
