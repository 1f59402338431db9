// The options of `kvmesh bench` as they are typed and printed.
#include <fmt/format.h>

#include <array>

#include "launch/bench/options.hpp"

namespace kvmesh::bench {

std::string_view name(Op op) {
  constexpr std::array<std::string_view, 12> kNames{"decode", "prefill", "append", "combine",
                                                    "step",   "gather",  "plan",   "compact",
                                                    "fork",   "move",    "store",  "load"};
  return kNames.at(static_cast<std::size_t>(op));
}

std::string_view name(Lengths lengths) {
  constexpr std::array<std::string_view, 3> kNames{"even", "ragged", "listed"};
  return kNames.at(static_cast<std::size_t>(lengths));
}

std::string text_of(const std::vector<std::int64_t>& listed) {
  std::string text;
  for (std::size_t i = 0, same = 0; i < listed.size(); i += same) {
    same = 1;
    while (i + same < listed.size() && listed[i + same] == listed[i]) ++same;
    text += fmt::format("{}{}{}", text.empty() ? "" : ",", same > 1 ? fmt::format("{}*", same) : "",
                        listed[i]);
  }
  return text;
}

std::string_view name(Output output) { return output == Output::kPartial ? "partial" : "final"; }

}  // namespace kvmesh::bench
