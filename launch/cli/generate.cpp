#include "launch/cli/generate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>

#include "launch/cli/agree.hpp"
#include "launch/cli/chat.hpp"
#include "launch/cli/report.hpp"

namespace kvmesh::launch {
namespace {

using engine::Token;
using Clock = std::chrono::steady_clock;

// Tokens of a prompt that go through the model at a time: enough to use each weight often, while
// activations stay in cache.
constexpr std::int64_t kPrefillChunk = 128;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// A model file and what is read from it once.
struct Model {
  explicit Model(const std::string& path) : file(path), tokenizer(file) {}
  engine::GgufFile file;
  engine::Tokenizer tokenizer;
};

struct Run {
  std::vector<Token> tokens;
  GenerateReport report;
};

// Takes in the prompt, then one token after the other until the model ends or `max_tokens` are out.
template <class OnToken>
Run run(Generator& generator, const engine::Tokenizer& tokenizer, std::span<const Token> prompt,
        std::int64_t max_tokens, const OnToken& on_token) {
  Run result;
  const auto start = Clock::now();
  Token next = 0;
  for (std::size_t i = 0; i < prompt.size(); i += kPrefillChunk) {
    next =
        generator.feed(prompt.subspan(i, std::min<std::size_t>(kPrefillChunk, prompt.size() - i)));
  }
  result.report.prompt_tokens = static_cast<std::int64_t>(prompt.size());
  result.report.prompt_seconds = seconds_since(start);

  const auto decode_start = Clock::now();
  const std::vector<Token>& ends = tokenizer.end_tokens();
  while (std::ranges::find(ends, next) == ends.end()) {
    result.tokens.push_back(next);
    on_token(next);
    if (std::ssize(result.tokens) >= max_tokens) break;
    next = generator.feed(std::span(&next, 1));
  }
  result.report.new_tokens = std::ssize(result.tokens);
  result.report.new_seconds = seconds_since(decode_start);
  return result;
}

std::int64_t pages_for(std::int64_t tokens, int page_size) {
  return (tokens + page_size - 1) / page_size;
}

// Options with the pool's size worked out: any one rank may end up with all pages.
GeneratorOptions sized(GeneratorOptions options, std::int64_t tokens) {
  if (options.pages_per_rank == 0 && options.memory_fraction == 0) {
    options.pages_per_rank = pages_for(tokens, std::max(1, options.page_size));
  }
  return options;
}

void check_vocabulary(const Model& model, const engine::LlamaShape& shape) {
  if (model.tokenizer.size() == shape.vocabulary) return;
  throw engine::ModelError(fmt::format(
      "damaged: {} tokens in the vocabulary, {} rows in token_embd.weight; download it again",
      model.tokenizer.size(), shape.vocabulary));
}

void check_length(std::size_t prompt, std::int64_t max_tokens, const engine::LlamaShape& shape) {
  if (max_tokens <= shape.context_tokens - static_cast<std::int64_t>(prompt)) return;
  throw InvalidArgument(fmt::format(
      "{} prompt tokens and {} to generate are more than the model's context of {}: shorten the "
      "prompt or lower --max-tokens",
      prompt, max_tokens, shape.context_tokens));
}

// The same conversation on a mesh of one like `many`.
std::vector<Token> single_rank_tokens(Mesh& many, const Model& model,
                                      const GenerateOptions& options,
                                      std::span<const Token> prompt) {
  const bool gpu = many.device().kind == DeviceKind::kCuda;
  Mesh mesh(make_single_communicator(), {.threads = many.threads().threads(),
                                         .device = gpu ? DeviceChoice::kCuda : DeviceChoice::kCpu});
  Generator generator(
      mesh, model.file,
      sized(options.generator, static_cast<std::int64_t>(prompt.size()) + options.max_tokens));
  return run(generator, model.tokenizer, prompt, options.max_tokens, [](Token) {}).tokens;
}

// Rank 0 repeats the run alone while the others wait for its verdict, or for what it failed of.
bool ranks_check(Mesh& mesh, const Model& model, const GenerateOptions& options,
                 std::span<const Token> prompt, const std::vector<Token>& tokens) {
  const auto deadline = mesh.world().deadline();
  mesh.world().set_deadline(std::chrono::hours(1));
  GenerateOptions single = options;
  single.generator.pages_per_rank = 0;
  single.generator.memory_fraction = 0;
  std::byte same{0};
  agree(mesh.world(), [&] {
    if (mesh.rank().value != 0) return;
    same = std::byte{single_rank_tokens(mesh, model, single, prompt) == tokens};
    fmt::print("ranks check: {} ranks and a single rank wrote {} tokens\n", mesh.size(),
               same == std::byte{1} ? "the same" : "DIFFERENT");
  });
  broadcast(mesh.world(), {0}, std::span(&same, 1), "ranks_check");
  mesh.world().set_deadline(deadline);
  return same == std::byte{1};
}

std::uint64_t sum_over_ranks(Communicator& comm, std::uint64_t value) {
  double sum = static_cast<double>(value);
  all_reduce_sum(comm, std::span(&sum, 1), "report");
  return static_cast<std::uint64_t>(sum);
}

// What a fraction of the memory came to.
std::string room_of(const KvCache& cache) {
  return fmt::format("  room for {} pages a rank, in {}\n", cache.options().pages_per_rank,
                     human_bytes(static_cast<std::uint64_t>(cache.pool_bytes())));
}

void print_report(Mesh& mesh, const Generator& generator, const GenerateOptions& options,
                  GenerateReport report) {
  if (!mesh.device_group().nccl())
    report.combine_bytes = sum_over_ranks(mesh.world(), mesh.kv().sent_bytes());
  if (mesh.rank().value != 0) return;
  const CacheOptions& cache = generator.cache().options();
  const std::string room =
      options.generator.memory_fraction > 0 ? room_of(generator.cache()) : std::string();
  fmt::print("\n\n{}{} KV pages ({} tokens x {} layers each) over {} ranks, {} placement\n{}{}",
             describe(report), generator.pages().size(), cache.page_size, cache.layers,
             mesh.kv_parallel(), name(cache.placement), room,
             picture_of_pages(generator.pages(), mesh.kv_parallel()));
}

}  // namespace

int run_generate(Mesh& mesh, const GenerateOptions& options) {
  std::optional<Model> model;
  std::vector<Token> prompt;
  agree(mesh.world(), [&] {
    if (options.max_tokens < 1) throw InvalidArgument("--max-tokens must be at least 1");
    model.emplace(options.model);
    prompt = prompt_tokens(model->file, model->tokenizer, options.prompt, options.chat);
    if (prompt.empty()) throw InvalidArgument("the prompt is empty: give one with --prompt");
    const engine::LlamaShape shape = engine::llama_shape(model->file);
    check_vocabulary(*model, shape);
    check_length(prompt.size(), options.max_tokens, shape);
  });
  Generator generator(
      mesh, model->file,
      sized(options.generator, static_cast<std::int64_t>(prompt.size()) + options.max_tokens));

  const bool speaks = mesh.rank().value == 0;
  engine::TextStream text;
  auto stream = [&](Token token) {
    if (!speaks) return;
    fmt::print("{}", text.push(model->tokenizer.decode(token)));
    std::fflush(stdout);
  };
  try {
    const Run result = run(generator, model->tokenizer, prompt, options.max_tokens, stream);
    if (speaks) fmt::print("{}", text.finish());
    print_report(mesh, generator, options, result.report);
    if (!options.ranks_check) return 0;
    return ranks_check(mesh, *model, options, prompt, result.tokens) ? 0 : 1;
  } catch (const OutOfPages& error) {
    // Every rank's allocator runs out at the same place, so all end here together.
    const std::int64_t needed = pages_for(
        static_cast<std::int64_t>(prompt.size()) + options.max_tokens, options.generator.page_size);
    throw AgreedError(fmt::format(
        "{}: {} prompt tokens and {} new ones need {} pages of {} tokens; raise --pages-per-rank "
        "(now {}) or leave it out",
        error.what(), prompt.size(), options.max_tokens, needed, options.generator.page_size,
        generator.cache().options().pages_per_rank));
  }
}

}  // namespace kvmesh::launch
