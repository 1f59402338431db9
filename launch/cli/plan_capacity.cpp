#include "launch/cli/plan_capacity.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <limits>
#include <nlohmann/json.hpp>

#include "kvmesh/tensor.hpp"
#include "launch/capacity/step_model.hpp"
#include "launch/engine/llama.hpp"

namespace kvmesh::launch {
namespace {

constexpr double kGib = 1024.0 * 1024 * 1024;
// Products of any three of them stay far below 2^63.
constexpr std::int64_t kMost = 1 << 20;
constexpr std::int64_t kMostTokens = std::int64_t{1} << 31;
constexpr double kMostGib = 1 << 20;
constexpr std::int64_t kMostHeadDim = 576;  // as the README's "any head dim up to"

struct Answer {
  std::int64_t pages = 0;           ///< on the fullest GPU
  std::int64_t pages_that_fit = 0;  ///< on a GPU
  double page_bytes = 0;            ///< of all layers
  double us_per_layer = 0;
  double combine_us = 0;
  int best_parallelism = 1;
  std::int64_t spread_from_tokens = 0;

  bool fits() const { return pages <= pages_that_fit; }
};

void check(const char* flag, std::int64_t value, std::int64_t most) {
  if (value >= 1 && value <= most) return;
  throw InvalidArgument(fmt::format("{} {} is not in [1, {}]", flag, value, most));
}

void check(const CapacityOptions& options) {
  for (const auto& [flag, value] :
       {std::pair<const char*, std::int64_t>{"--layers", options.layers},
        {"--q-heads", options.q_heads},
        {"--kv-heads", options.kv_heads},
        {"--page-size", options.page_size},
        {"--batch", options.batch},
        {"--gpus", options.gpus},
        {"--nodes", options.nodes}}) {
    check(flag, value, kMost);
  }
  check("--dim", options.dim, kMostHeadDim);
  check("--v-dim", options.v_dim, kMostHeadDim);
  check("--context", options.context, kMostTokens);
  if (options.q_heads % options.kv_heads != 0) {
    throw InvalidArgument(fmt::format("--q-heads {} are no multiple of --kv-heads {}",
                                      options.q_heads, options.kv_heads));
  }
  if (options.gpus % options.nodes != 0) {
    throw InvalidArgument(
        fmt::format("--gpus {} do not divide over --nodes {}", options.gpus, options.nodes));
  }
  if (!(options.gpu_gib > 0) || !(options.weights_gib >= 0) ||
      options.weights_gib >= options.gpu_gib || !(options.gpu_gib <= kMostGib)) {
    throw InvalidArgument(fmt::format(
        "--gpu-gib {} and --weights-gib {}: the weights must leave room, of at most 2^20 GiB",
        options.gpu_gib, options.weights_gib));
  }
}

CapacityOptions with_model(CapacityOptions options) {
  if (options.v_dim == 0) options.v_dim = options.dim;
  if (options.model.empty()) return options;
  const engine::LlamaShape shape = engine::llama_shape(engine::GgufFile(options.model));
  options.layers = shape.layers;
  options.q_heads = shape.q_heads;
  options.kv_heads = shape.kv_heads;
  options.dim = options.v_dim = shape.head_dim;
  return options;
}

capacity::Work work_of(const CapacityOptions& options) {
  return {.batch = options.batch,
          .context = options.context,
          .q_heads = options.q_heads,
          .kv_heads = options.kv_heads,
          .k_dim = options.dim,
          .v_dim = options.v_dim,
          .element_bytes = static_cast<int>(size_bytes(dtype_from(options.dtype)))};
}

Answer answer_of(const CapacityOptions& options) {
  const capacity::Work work = work_of(options);
  const capacity::Cluster cluster{.gpus = options.gpus, .nodes = options.nodes};
  const capacity::StepModel model = capacity::h200();
  Answer answer;
  const std::int64_t each = (options.context + options.page_size - 1) / options.page_size;
  answer.pages = (each * options.batch + options.gpus - 1) / options.gpus;
  answer.page_bytes = capacity::layer_bytes(work, options.page_size, 1) * options.layers;
  answer.pages_that_fit =
      static_cast<std::int64_t>((options.gpu_gib - options.weights_gib) * kGib / answer.page_bytes);
  answer.us_per_layer = capacity::step_us(model, work, cluster);
  answer.combine_us = capacity::combine_us(
      model, static_cast<double>(options.batch * options.q_heads), options.v_dim, cluster);
  answer.best_parallelism = capacity::best_parallelism(model, work, cluster);
  answer.spread_from_tokens = capacity::spread_from_tokens(model, work, cluster);
  return answer;
}

std::string as_text(const CapacityOptions& options, const Answer& answer) {
  std::string text = fmt::format(
      "{} x {} tokens, {} layers of {}/{} heads, on {} GPUs of {} {} (rates of an H200)\n"
      "pages        {} of {} tokens on each GPU, {:.1f} GiB: {} (room for {})\n"
      "attention    {:.3f} ms per token of every sequence ({:.1f} us per layer, combine {:.1f})\n",
      options.batch, options.context, options.layers, options.q_heads, options.kv_heads,
      options.gpus, options.nodes, options.nodes == 1 ? "node" : "nodes", answer.pages,
      options.page_size, static_cast<double>(answer.pages) * answer.page_bytes / kGib,
      answer.fits() ? "they fit" : "TOO MANY", answer.pages_that_fit,
      answer.us_per_layer * options.layers / 1e3, answer.us_per_layer, answer.combine_us);
  if (options.gpus == 1) return text;
  return text + fmt::format(
                    "alone        a sequence gains by being spread from {} tokens on; of {} it is "
                    "read fastest by {} GPUs\n",
                    answer.spread_from_tokens, options.context, answer.best_parallelism);
}

std::string as_json(const CapacityOptions& options, const Answer& answer) {
  const nlohmann::ordered_json json{{"program", "kvmesh plan-capacity"},
                                    {"version", KVMESH_VERSION},
                                    {"batch", options.batch},
                                    {"context", options.context},
                                    {"layers", options.layers},
                                    {"q_heads", options.q_heads},
                                    {"kv_heads", options.kv_heads},
                                    {"gpus", options.gpus},
                                    {"nodes", options.nodes},
                                    {"pages_per_gpu", answer.pages},
                                    {"pages_that_fit", answer.pages_that_fit},
                                    {"page_bytes", answer.page_bytes},
                                    {"fits", answer.fits()},
                                    {"ms_per_token", answer.us_per_layer * options.layers / 1e3},
                                    {"us_per_layer", answer.us_per_layer},
                                    {"combine_us", answer.combine_us},
                                    {"spread_from_tokens", answer.spread_from_tokens},
                                    {"best_parallelism", answer.best_parallelism}};
  return json.dump(1) + "\n";
}

}  // namespace

void add_capacity_options(CLI::App& command, CapacityOptions& options) {
  const auto value = [&](const char* flag, auto& into, const char* text) {
    return command.add_option(flag, into, text)->capture_default_str();
  };
  CLI::Option* const model =
      value("--model", options.model, "a GGUF file to take layers, heads and dims from");
  for (CLI::Option* given : {value("--layers", options.layers, "layers of the model"),
                             value("--q-heads", options.q_heads, "query heads of a layer"),
                             value("--kv-heads", options.kv_heads, "kv heads of a layer"),
                             value("--dim", options.dim, "elements of a query or key"),
                             value("--v-dim", options.v_dim, "elements of a value; 0: as --dim")}) {
    model->excludes(given);
  }
  value("--kv-dtype", options.dtype,
        "type of keys and values: float32, float16, bfloat16 or float8_e4m3");
  value("--page-size", options.page_size, "tokens in a page");
  value("--batch", options.batch, "sequences that decode together");
  value("--context", options.context, "tokens of each sequence");
  value("--gpus", options.gpus, "ranks that share the pages");
  value("--nodes", options.nodes, "nodes that share the GPUs evenly");
  value("--gpu-gib", options.gpu_gib, "memory of a GPU, in GiB");
  value("--weights-gib", options.weights_gib,
        "the part of it that pages cannot have, since weights and all else need it");
}

int run_plan_capacity(const CapacityOptions& given, const std::string& json, Output& out) {
  const CapacityOptions options = with_model(given);
  check(options);
  const Answer answer = answer_of(options);
  if (json != "-") out.put(as_text(options, answer));
  if (!json.empty()) out.write(json, as_json(options, answer));
  return answer.fits() ? 0 : 1;
}

}  // namespace kvmesh::launch
