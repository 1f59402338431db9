// Checks a model file for features that this program does not compute.
#pragma once

#include "launch/engine/gguf/gguf.hpp"

namespace kvmesh::engine {

/// Refuses other architectures, scaled rotary embeddings and mixtures of experts.
/// @throws ModelError that names it.
void check_architecture(const GgufFile& file);

/// Refuses keys of the architecture that are not known here: they could change the result.
/// @throws ModelError that names one.
void check_keys(const GgufFile& file);

/// Refuses tensors that no layer uses, biases for example. @throws ModelError that names one.
void check_tensors(const GgufFile& file, int layers);

}  // namespace kvmesh::engine
