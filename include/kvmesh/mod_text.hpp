// Mods as text: the form in which ScoreMod::to_string and MaskMod::to_string print a traced graph.
//
//   %0 = q : int32
//   %1 = kv : int32
//   %2 = <= %1 %0 : bool
//
// One operation per line, each with a number, its operands (earlier numbers) and its type. The last
// line is the result. Inputs are score, b, h, q and kv; constants are written `constant 1.5 :
// float32`, loads from captured buffers `load buffer0 %1 : int32`. Engines in other languages send
// mods in this form.
#pragma once

#include <span>
#include <string_view>

#include "kvmesh/api.h"
#include "kvmesh/mods.hpp"

namespace KVMESH_API kvmesh {

/// Reads a mod from text. `buffers` are those that the text calls buffer0, buffer1, ...; the mod
/// keeps their owners alive. Numbers and order of the lines may differ in the mod's own text,
/// because equal operations are shared and constant ones computed.
/// @throws InvalidArgument, naming the line: if it cannot be read, an operand or a buffer does not
/// exist, or a type is not the one that the operation gives.
MaskMod parse_mask_mod(std::string_view text, std::span<const ModBuffer> buffers = {});
ScoreMod parse_score_mod(std::string_view text, std::span<const ModBuffer> buffers = {});

}  // namespace kvmesh
