#include "launch/cli/inspect.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace kvmesh::launch {
namespace {

std::string text_of(const PageHash& hash) {
  std::string text;
  for (const std::uint8_t byte : hash.bytes) text += fmt::format("{:02x}", byte);
  return text;
}

std::string as_text(const std::string& file, const SequenceHeader& header) {
  std::string text = fmt::format("{}: {} tokens; all checksums are right\n", file, header.tokens);
  for (const SequenceHeader::Group& group : header.groups) {
    text += fmt::format("  {} layers, {} kv heads, tokens from {} on\n", group.layers.size(),
                        group.heads, group.first);
    for (const SequenceHeader::Plane& plane : group.planes) {
      text += fmt::format("    {:<8} {} of {} per token and head\n", plane.name, plane.elements,
                          name(plane.dtype));
    }
  }
  if (header.token_ids.empty()) return text + "  it does not say the tokens\n";
  return text + fmt::format("  {} token ids, {} hashes ({}, pages of {} tokens)\n",
                            header.token_ids.size(), header.hashes.size(), name(header.hash),
                            header.hash_page_size);
}

nlohmann::ordered_json as_json(const SequenceHeader::Group& group) {
  nlohmann::ordered_json json{
      {"layers", group.layers},     {"kv_heads", group.heads},
      {"first_token", group.first}, {"k_scales", group.k_scales},
      {"v_scales", group.v_scales}, {"planes", nlohmann::ordered_json::array()}};
  for (const SequenceHeader::Plane& plane : group.planes) {
    json["planes"].push_back(
        {{"name", plane.name}, {"dtype", name(plane.dtype)}, {"elements", plane.elements}});
  }
  return json;
}

std::string as_json(const std::string& file, const SequenceHeader& header) {
  nlohmann::ordered_json json{{"program", "kvmesh inspect"},
                              {"version", KVMESH_VERSION},
                              {"file", file},
                              {"tokens", header.tokens},
                              {"groups", nlohmann::ordered_json::array()},
                              {"token_ids", header.token_ids},
                              {"hash", name(header.hash)},
                              {"hash_page_size", header.hash_page_size},
                              {"hashes", nlohmann::ordered_json::array()}};
  for (const SequenceHeader::Group& group : header.groups) json["groups"].push_back(as_json(group));
  for (const PageHash& hash : header.hashes) json["hashes"].push_back(text_of(hash));
  // A path may hold any bytes.
  return json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace

SequenceHeader inspect_file(const std::string& file) {
  FileSource source(file);  // whose error has the path
  try {
    return inspect_sequence(source);
  } catch (const StreamError& error) {
    throw StreamError(error.reason(), fmt::format("{}: {}", file, error.what()));
  }
}

int run_inspect(const std::string& file, const std::string& json, Output& out) {
  const SequenceHeader header = inspect_file(file);
  if (json != "-") out.put(as_text(file, header));
  if (!json.empty()) out.write(json, as_json(file, header));
  return 0;
}

}  // namespace kvmesh::launch
