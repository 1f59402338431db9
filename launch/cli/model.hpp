// A model file and what is read from it once.
#pragma once

#include <string>

#include "kvmesh/mesh.hpp"
#include "launch/engine/llama.hpp"

namespace kvmesh::launch {

struct Model {
  /// @throws ModelError.
  explicit Model(const std::string& path) : file(path), tokenizer(file) {}
  engine::GgufFile file;
  engine::Tokenizer tokenizer;
};

/// @throws ModelError if the tokenizer has other tokens than the embeddings.
void check_vocabulary(const Model& model, const engine::LlamaShape& shape);

/// Collective. Compares the content of all ranks' files: all of it, since a single other weight
/// gives other text, which costs one read of the file; nothing where there is one rank.
/// @throws AgreedError.
void agree_on_content(Mesh& mesh, const Model& model);

}  // namespace kvmesh::launch
