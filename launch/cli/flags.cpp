#include "launch/cli/flags.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include "launch/cli/help.hpp"
#include "launch/cli/paths.hpp"

namespace kvmesh::launch {
namespace {

// Flags that belong to the machine, that rank 0 alone reads, or whose files' contents are compared.
const std::set<std::string> kMayDiffer{"--help", "--threads", "--timeout", "--json", "--model"};

void add_device_options(CLI::App& command, Flags& flags) {
  command.add_option("--device", flags.device, "cpu, cuda, or auto: GPUs if there are any")
      ->capture_default_str();
  command
      .add_option("--timeout", flags.timeout_s,
                  "seconds after which a rank that does not come or answer is an error")
      ->check(CLI::Range(1, std::numeric_limits<int>::max()))
      ->capture_default_str();
}

void add_common_options(CLI::App& command, Flags& flags) {
  command.add_option("--threads", flags.threads, "threads per rank; 0: its share of the cores")
      ->capture_default_str();
  command
      .add_option("--head-parallel", flags.head_parallel,
                  "ranks that divide the heads among them; the others divide the pages")
      ->capture_default_str();
  add_device_options(command, flags);
}

void add_prompt_options(CLI::App& command, Flags& flags) {
  command
      .add_option("--prompt", flags.generate.prompts,
                  "the text to answer; give it again for each later turn of a conversation")
      ->required()
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->allow_extra_args(false);  // what follows the text is another argument
  command.add_flag("--raw", flags.raw, "continue the prompts as they are, without the chat format");
}

void add_answer_options(CLI::App& command, Flags& flags) {
  GenerateOptions& options = flags.generate;
  engine::SamplingOptions& sampling = options.generator.sampling;
  command.add_option("--max-tokens", options.max_tokens, "the most tokens of an answer")
      ->capture_default_str();
  command
      .add_option("--temperature", sampling.temperature,
                  "how freely tokens are drawn; 0: always the likeliest one")
      ->capture_default_str();
  command
      .add_option("--top-k", sampling.top_k, "draw from this many of the likeliest tokens; 0: all")
      ->capture_default_str();
  command
      .add_option("--top-p", sampling.top_p,
                  "draw from the likeliest tokens that have this probability together; 1: all")
      ->capture_default_str();
  command.add_option("--seed", sampling.seed, "seed of the draws")->capture_default_str();
  command.add_flag("--ranks-check", options.ranks_check,
                   "run again on a single rank and compare the tokens");
}

void add_model_options(CLI::App& command, Flags& flags) {
  GeneratorOptions& generator = flags.generate.generator;
  command.add_option("--model", flags.generate.model, "a GGUF file of the llama architecture")
      ->required();
  command.add_option("--page-size", generator.page_size, "tokens in a page of the cache")
      ->capture_default_str();
  command
      .add_option("--pages-per-rank", generator.pages_per_rank,
                  "pages of the cache on each rank; 0: as many as the text needs")
      ->capture_default_str();
  command
      .add_option("--memory-fraction", generator.memory_fraction,
                  "instead of --pages-per-rank: this part of the device's free memory")
      ->capture_default_str();
  command
      .add_option("--placement", flags.placement,
                  "ranks of a sequence's pages: balanced, one rank or evenly all, by its length; "
                  "striped, all in turn; packed, the first that has room")
      ->capture_default_str();
  command
      .add_option("--home-threshold", generator.home_threshold_tokens,
                  "balanced: sequences of up to this many tokens stay on one rank; 0 spreads all")
      ->capture_default_str();
  command
      .add_option("--kv-dtype", flags.dtype,
                  "type of keys and values in the cache: float32, float16, bfloat16 or float8_e4m3")
      ->capture_default_str();
  command
      .add_option("--host-tier-bytes", generator.tiers.host_bytes,
                  "host memory of each rank for pages that the cache has no room for")
      ->capture_default_str();
  CLI::Option* const folder =
      command.add_option("--tier-folder", generator.tiers.directory,
                         "keep pages in files of this folder, for later runs, too");
  command
      .add_option("--tier-folder-bytes", generator.tiers.file_bytes,
                  "the most that all ranks together keep there")
      ->needs(folder)
      ->capture_default_str();
  command.add_flag("--reproducible", generator.reproducible,
                   "the same text on any number of ranks, with any placement");
}

// CLI11 clamps what is too large, wraps what is negative where nothing may be, and reads 010 as 8.
template <class Integer>
std::string integer_error(const std::string& text) {
  Integer value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::size_t sign = text.starts_with('-') ? 1 : 0;
  const bool plain = text.size() == sign + 1 || text[std::min(sign, text.size() - 1)] != '0';
  if (error == std::errc{} && end == text.data() + text.size()) {
    return plain ? std::string() : fmt::format("'{}' begins with 0: leave that out", text);
  }
  const char* kind = std::is_signed_v<Integer> ? "an integer" : "an integer from 0";
  return fmt::format("'{}' is not {} of at most {} bits", text, kind,
                     std::numeric_limits<Integer>::digits);
}

std::string real_error(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  const bool whole = !text.empty() && end == text.c_str() + text.size();
  return whole && !std::isnan(value) && (std::isfinite(value) || text.find("inf") != text.npos)
             ? std::string()
             : fmt::format("'{}' is not a number of 64 bits", text);
}

void check_values(CLI::App& command) {
  for (CLI::Option* option : command.get_options()) {
    const std::string type = option->get_type_name();
    const auto check = [&](std::string (*error)(const std::string&)) {
      option->check(CLI::Validator([error](std::string& text) { return error(text); }, ""));
    };
    if (type.starts_with("INT")) check(&integer_error<std::int64_t>);
    if (type.starts_with("UINT")) check(&integer_error<std::uint64_t>);
    if (type.starts_with("FLOAT")) check(&real_error);
  }
}

std::vector<Field> fields_of(const CLI::App& command) {
  std::vector<Field> fields{{"the command", KVMESH_VERSION " " + command.get_name()}};
  for (const CLI::Option* option : command.get_options()) {
    const std::string name = option->get_name();
    if (kMayDiffer.contains(name)) continue;
    fields.push_back({name, option->count() > 0 ? CLI::detail::join(option->results(), ",")
                                                : option->get_default_str()});
  }
  return fields;
}

// @throws InvalidArgument if the command would overwrite what it reads or writes.
void check_files(const Flags& flags) {
  const std::array outputs{NamedPath{"--json", flags.json == "-" ? "" : flags.json},
                           NamedPath{"the file of export", flags.generate.export_to}};
  const std::array inputs{NamedPath{"--model", flags.generate.model},
                          NamedPath{"--model", flags.capacity.model},
                          NamedPath{"--trace", flags.replay.trace},
                          NamedPath{"--tier-folder", flags.generate.generator.tiers.directory},
                          NamedPath{"--tier-folder", flags.replay.tier_folder},
                          NamedPath{"the file of import", flags.generate.import_from},
                          NamedPath{"the file of inspect", flags.inspect}};
  check_outputs(outputs, inputs);
}

// Converts the names in the flags' values. @throws InvalidArgument.
void resolve(Flags& flags) {
  flags.generate.chat = !flags.raw;
  flags.generate.generator.placement = placement_from(flags.placement);
  flags.generate.generator.kv_dtype = dtype_from(flags.dtype);
}

MeshOptions mesh_options(const Flags& flags) {
  return {.head_parallel = flags.head_parallel,
          .threads = flags.threads,
          .device = device_choice_from(flags.device),
          .deadline = std::chrono::seconds(flags.timeout_s)};
}

// Number of letters to insert, remove or replace (Levenshtein).
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

using Add = std::function<CLI::App&(const char* name, const char* text)>;

// The commands with a model's text, and with files of its keys and values.
void add_model_commands(const Add& add, Flags& flags) {
  CLI::App& generate = add("generate", "write text with a real model");
  add_model_options(generate, flags);
  add_prompt_options(generate, flags);
  add_answer_options(generate, flags);
  CLI::App& exported = add("export", "compute a prompt's keys and values and write them to a file");
  add_model_options(exported, flags);
  add_prompt_options(exported, flags);
  exported.add_option("file", flags.generate.export_to, "the file to write, on rank 0's machine")
      ->required();
  exported.preparse_callback([&flags](std::size_t) { flags.generate.max_tokens = 1; });
  CLI::App& imported = add("import", "read a file of export, and write the text that follows");
  add_model_options(imported, flags);
  add_answer_options(imported, flags);
  imported.add_option("file", flags.generate.import_from, "the file to read, on rank 0's machine")
      ->required();
  for (CLI::App* sub : {&generate, &exported, &imported}) add_common_options(*sub, flags);
  CLI::App& inspect = add("inspect", "say what a file of export holds, and check all of it");
  inspect.add_option("file", flags.inspect, "the file")->required();
}

// The other commands that run on the ranks of a job.
void add_job_commands(const Add& add, Flags& flags) {
  CLI::App& verify = add("verify", "compare random configurations with float64, on any ranks");
  add_verify_options(verify, flags.verify);
  verify
      .add_option("--ranks", flags.thread_ranks,
                  "run on this many threads of this process instead of the job's ranks")
      ->check(CLI::Range(1, int{PageId::kMaxRanks}));
  CLI::App& info = add("info", "list the features of this build and this machine");
  CLI::App& bench = add("bench", "measure the operations beside the limits of the machine");
  kvmesh::bench::add_options(bench, flags.bench);
  for (CLI::App* sub : {&verify, &info, &bench}) add_common_options(*sub, flags);
}

// Returns the subcommand that was given.
const CLI::App& subcommand(const CLI::App& app, std::string_view given) {
  const CLI::App* closest = nullptr;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (sub->get_name() == given) return *sub;
    if (!closest || distance(given, sub->get_name()) < distance(given, closest->get_name())) {
      closest = sub;
    }
  }
  throw InvalidArgument(
      fmt::format("there is no command '{}': did you mean '{}'?", given, closest->get_name()));
}

// Says what an argument behind `before` is: a value of that option, or of the one without a flag.
std::string argument_behind(const CLI::App& sub, const std::string& before) {
  const auto value_of = [](const std::string& name) { return fmt::format("a value of {}", name); };
  const CLI::Option* const option = sub.get_option_no_throw(before);
  if (option != nullptr && option->get_items_expected_max() > 0) return value_of(before);
  for (const CLI::Option* any : sub.get_options()) {
    if (any->get_positional()) return value_of(any->get_name());
  }
  return fmt::format("the argument behind {}", before);
}

}  // namespace

void add_subcommands(CLI::App& app, Flags& flags, Command& command) {
  app.formatter(help_formatter());  // the subcommands take it over
  const Add add = [&](const char* name, const char* text) -> CLI::App& {
    CLI::App& sub = *app.add_subcommand(name, text);
    sub.callback([&sub, &flags, &command] {
      resolve(flags);
      check_files(flags);
      command = {sub.get_name(), mesh_options(flags), fields_of(sub)};
    });
    return sub;
  };
  add_model_commands(add, flags);
  add_job_commands(add, flags);
  add_capacity_options(
      add("plan-capacity", "compute whether a batch fits on some GPUs, and how fast it is"),
      flags.capacity);
  CLI::App& replay =
      add("replay", "measure how often the prefix cache hits, on a trace of requests");
  add_replay_options(replay, flags.replay);
  add_device_options(replay, flags);
  for (CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    sub->add_option("--json", flags.json, "all results as JSON to FILE, or to standard output")
        ->expected(0, 1)
        ->default_str("-")
        ->option_text("[FILE]");
    check_values(*sub);
  }
}

void check_arguments(const CLI::App& app, int argc, const char* const* argv) {
  if (argc < 2 || argv[1][0] == '-') return;
  const CLI::App& sub = subcommand(app, argv[1]);
  for (int i = 2; i < argc; ++i) {
    const std::string argument = argv[i];
    const CLI::Option* list = sub.get_option_no_throw(argv[i - 1]);
    const bool is_list = list != nullptr && list->get_delimiter() != '\0';
    // CLI11 takes the next argument, or leaves the default as it is.
    const bool is_flag = argument.starts_with("--");
    const bool lacks_one = (is_flag && argument.ends_with('=')) ||
                           (is_list && fmt::format(",{},", argument).find(",,") != argument.npos);
    if (lacks_one) {
      throw InvalidArgument(
          fmt::format("a value of {} is empty", is_flag ? argument : argv[i - 1]));
    }
    if (argument.empty()) {
      throw InvalidArgument(fmt::format("{} is empty", argument_behind(sub, argv[i - 1])));
    }
  }
}

}  // namespace kvmesh::launch
