// A model file and its tokenizer.
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

/// Compares the whole content of all ranks' files, since one different weight changes the text.
/// Each rank reads its file once; a rank that is alone reads nothing.
/// @throws AgreedError.
/// Collective.
void agree_on_content(Mesh& mesh, const Model& model);

/// A name of the file's content, of letters and digits. Reads the whole file.
std::string name_of_content(Mesh& mesh, const engine::GgufFile& file);

}  // namespace kvmesh::launch
