#include <nlohmann/json.hpp>

#include "launch/bench/report.hpp"

namespace kvmesh::bench {
namespace {

using Json = nlohmann::ordered_json;

Json json_of(const Summary& seconds) {
  return {{"median", seconds.median},
          {"p10", seconds.p10},
          {"p90", seconds.p90},
          {"min", seconds.min},
          {"max", seconds.max}};
}

Json json_of(const Case& what) {
  return {{"op", name(what.op)},
          {"batch", what.batch},
          {"context", what.context},
          {"lengths", what.listed.empty() ? std::string(name(what.lengths)) : what.listed},
          {"queries", what.queries},
          {"way", what.way}};
}

Json json_of(const Row::Top& top) {
  return {{"name", top.name},
          {"amount", top.measured.amount},
          {"seconds", json_of(top.measured.seconds)},
          {"rate", top.measured.rate()}};
}

Json json_of(const HostTraffic& bytes) {
  return {{"flat", bytes.flat},
          {"hierarchical", bytes.hierarchical ? Json(*bytes.hierarchical) : Json()}};
}

Json json_of(const Row& row) {
  Json json = json_of(row.what);
  json.update({{"layers", row.layers},
               {"calls", row.calls},
               {"turns", row.turns},
               {"timing", name(row.timing)},
               {"unit", row.quantity == Quantity::kBytes ? "bytes" : "operations"},
               {"amount", row.operation.amount},
               {"seconds", json_of(row.operation.seconds)},
               {"rate", row.operation.rate()},
               {"ceiling", nullptr},
               {"read", nullptr},
               {"share", nullptr}});
  json["error"] = row.error ? Json(*row.error) : Json();
  if (row.on_device) json["on_device"] = json_of(*row.on_device);
  if (row.between_hosts) json["between_hosts"] = json_of(*row.between_hosts);
  if (!row.ceiling) return json;
  json["ceiling"] = json_of(*row.ceiling);
  if (row.read) json["read"] = json_of(*row.read);
  json["share"] = row.share();
  return json;
}

Json json_of(const Skipped& skipped) {
  Json json = json_of(skipped.what);
  json["reason"] = skipped.reason;
  return json;
}

}  // namespace

std::string to_json(const Setting& setting, std::span<const Row> rows,
                    std::span<const Skipped> skipped) {
  const bool has_scales = info_of(setting.shape.page_dtype()).has_scales;
  Json json{{"program", "kvmesh bench"},
            {"version", setting.program_version},
            {"command", setting.command},
            {"date", setting.date},
            {"device", setting.machine.device},
            {"driver", setting.machine.driver},
            {"versions", setting.machine.versions},
            {"ranks", setting.ranks},
            {"kv_parallel", setting.kv_parallel},
            {"head_parallel", setting.head_parallel},
            {"q_heads", setting.shape.q_heads},
            {"kv_heads", setting.shape.kv_heads},
            {"dim", setting.shape.k_dim},
            {"v_dim", setting.shape.v_dim},
            {"page_size", setting.shape.page_size},
            {"page_kind", name(setting.shape.page_kind)},
            {"dtype", name(setting.shape.dtype)},
            {"kv_dtype", name(setting.shape.page_dtype())},
            {"kv_scales", has_scales ? Json(name(setting.shape.kv_scales)) : Json()},
            {"window", setting.shape.window},
            {"state_bytes", setting.shape.state_bytes},
            {"scatter", name(setting.scatter)},
            {"strategy", name(setting.strategy)},
            {"travels_as", name(setting.travels_as)},
            {"output", name(setting.output)},
            {"rows", Json::array()},
            {"skipped", Json::array()}};
  for (const Row& row : rows) json["rows"].push_back(json_of(row));
  for (const Skipped& skip : skipped) json["skipped"].push_back(json_of(skip));
  // A command line may hold any bytes.
  return json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace kvmesh::bench
