// Masks and scores of the C interface.
#include <vector>

#include "kvmesh/mod_text.hpp"
#include "runtime/c/guard.hpp"
#include "runtime/c/handles.hpp"
#include "runtime/c/tensors.hpp"

using namespace kvmesh;
using namespace kvmesh::c;

namespace {

std::vector<ModBuffer> copies_of(const kvmesh_tensor_t* const* buffers, std::size_t count) {
  require(count == 0 || buffers != nullptr, "buffers is NULL");
  std::vector<ModBuffer> copies;
  for (std::size_t i = 0; i < count; ++i) copies.push_back(copy_of(buffers[i]));
  return copies;
}

}  // namespace

kvmesh_status_t kvmesh_mask_parse(const char* text, const kvmesh_tensor_t* const* buffers,
                                  size_t buffer_count, kvmesh_mask_t** mask) {
  return guarded([&] {
    kvmesh_mask_t*& made = checked(mask, "mask");
    const MaskMod mod = parse_mask_mod(&checked(text, "text"), copies_of(buffers, buffer_count));
    made = new kvmesh_mask{mod, mod.to_string()};
  });
}

kvmesh_status_t kvmesh_score_parse(const char* text, const kvmesh_tensor_t* const* buffers,
                                   size_t buffer_count, kvmesh_score_t** score) {
  return guarded([&] {
    kvmesh_score_t*& made = checked(score, "score");
    const ScoreMod mod = parse_score_mod(&checked(text, "text"), copies_of(buffers, buffer_count));
    made = new kvmesh_score{mod, mod.to_string()};
  });
}

const char* kvmesh_mask_text(const kvmesh_mask_t* mask) {
  return mask == nullptr ? "" : mask->text.c_str();
}

const char* kvmesh_score_text(const kvmesh_score_t* score) {
  return score == nullptr ? "" : score->text.c_str();
}

void kvmesh_mask_destroy(kvmesh_mask_t* mask) { delete mask; }
void kvmesh_score_destroy(kvmesh_score_t* score) { delete score; }
