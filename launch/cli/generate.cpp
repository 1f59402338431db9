#include "launch/cli/generate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <exception>
#include <memory>
#include <optional>
#include <utility>

#include "launch/cli/agree.hpp"
#include "launch/cli/chat.hpp"
#include "launch/cli/host_memory.hpp"
#include "launch/cli/inspect.hpp"
#include "launch/cli/model.hpp"
#include "launch/cli/paths.hpp"
#include "launch/cli/report.hpp"
#include "launch/cli/run.hpp"

namespace kvmesh::launch {
namespace {

using engine::Token;

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

void check_length(std::size_t prompt, std::int64_t answers, std::int64_t max_tokens,
                  const engine::LlamaShape& shape) {
  if (max_tokens <= (shape.context_tokens - static_cast<std::int64_t>(prompt)) / answers) return;
  throw InvalidArgument(fmt::format(
      "{} prompt tokens and {} to generate{} are more than the model's context of {}: shorten the "
      "prompt or lower --max-tokens",
      prompt, max_tokens, answers > 1 ? fmt::format(" {} times", answers) : "",
      shape.context_tokens));
}

std::vector<Token> tokens_of(const GenerateReport& report) {
  std::vector<Token> tokens;
  for (const GenerateReport::Turn& turn : report.turns) {
    tokens.insert(tokens.end(), turn.run.tokens.begin(), turn.run.tokens.end());
  }
  return tokens;
}

// Bytes of a rank's pools, as a real number, which does not overflow for any value of the flags.
double pool_bytes(const engine::LlamaShape& shape, const GeneratorOptions& options,
                  int head_parallel) {
  const double page = 2.0 * shape.layers * shape.kv_heads * shape.head_dim * options.page_size *
                      static_cast<double>(size_bytes(options.kv_dtype));
  return static_cast<double>(options.pages_per_rank) * page / head_parallel;
}

std::uint64_t sum_over_ranks(Communicator& comm, std::uint64_t value) {
  double sum = static_cast<double>(value);
  all_reduce_sum(comm, std::span(&sum, 1), "report");
  return static_cast<std::uint64_t>(sum);
}

// One run of the subcommand.
class Generation {
 public:
  Generation(Mesh& mesh, const GenerateOptions& options, bool shows_text, Output& out)
      : mesh_(mesh), options_(options), shows_text_(shows_text), out_(out) {
    open();
    const GeneratorOptions sized_options = sized(options.generator, tokens());
    check_host_memory(mesh, pool_bytes(shape_, sized_options, mesh.head_parallel()));
    generator_.emplace(mesh, model_->file, sized_options);
    if (!options_.import_from.empty()) import_tokens();
  }

  GenerateReport write_text() {
    GenerateReport report;
    engine::TextStream stream;
    std::string text;
    const auto show = [&](const std::string& more) {
      text += more;
      if (shows_text_) speaks() ? out_.put(more) : out_.follow(more);
    };
    try {
      converse(
          *generator_,
          {.on_prompt = [&](std::int64_t done, std::int64_t all) { show_progress(done, all); },
           .on_token = [&](Token token) { show(stream.push(model_->tokenizer.decode(token))); }},
          [&](Run run) {
            show(stream.finish() + "\n");
            text.pop_back();
            report.turns.push_back({.run = std::move(run), .text = std::exchange(text, {})});
          });
    } catch (const OutOfPages& error) {
      fail(error);
    }
    if (!options_.export_to.empty()) export_tokens();
    agree(mesh_.world(), [&] { generator_->flush_tiers(); });
    return complete(std::move(report));
  }

  // Rank 0 repeats the run alone. All ranks meet after each token, so that a rank that has stopped
  // is noticed within the deadline, also if the run takes longer.
  bool ranks_check(const GenerateReport& report) {
    bool same = false;
    std::exception_ptr error;
    if (speaks()) {
      try {
        same = single_rank_tokens([&] { goes_on(true); }) == tokens_of(report);
      } catch (const Timeout&) {
        throw;
      } catch (const PeerLost&) {
        throw;
      } catch (...) {
        error = std::current_exception();
      }
      goes_on(false);
    } else {
      while (goes_on(true)) continue;
    }
    agree(mesh_.world(), [&] {
      if (error) std::rethrow_exception(error);
    });
    broadcast_value(mesh_.world(), {0}, same, "ranks check");
    return same;
  }

 private:
  bool speaks() const { return mesh_.rank().value == 0; }

  // Returns rank 0's value. All ranks meet here, so each notices one that does not come.
  bool goes_on(bool mine) {
    const auto sent = static_cast<std::uint8_t>(mine);
    return all_gather_value(mesh_.world(), sent, "ranks check")[0] != 0;
  }

  // The longest that the conversation can become.
  std::int64_t tokens() const {
    return std::ssize(prompt_tokens_) + answers() * options_.max_tokens;
  }
  std::int64_t answers() const { return std::max<std::int64_t>(1, std::ssize(options_.prompts)); }

  void export_tokens() {
    std::optional<FileSink> sink;
    agree(mesh_.world(), [&] {
      if (speaks()) sink.emplace(options_.export_to);
    });
    generator_->export_to(speaks() ? &*sink : nullptr);
  }

  void import_tokens() {
    std::optional<FileSource> source;
    agree(mesh_.world(), [&] {
      if (speaks()) source.emplace(options_.import_from);
    });
    prompt_tokens_ = generator_->import_from(speaks() ? &*source : nullptr);
  }

  // The stream's tokens, before there is a cache to import them.
  void read_tokens() {
    std::int64_t count = 0;
    agree(mesh_.world(), [&] {
      if (!speaks()) return;
      prompt_tokens_ = inspect_file(options_.import_from).token_ids;
      count = std::ssize(prompt_tokens_);
      if (count == 0) {
        throw InvalidArgument(fmt::format("{} does not say its tokens", options_.import_from));
      }
      const Token most = *std::ranges::max_element(prompt_tokens_);
      if (most >= model_->tokenizer.size()) {
        throw InvalidArgument(fmt::format("{} has token {}, the model {}", options_.import_from,
                                          most, model_->tokenizer.size()));
      }
    });
    broadcast_value(mesh_.world(), {0}, count, "import: tokens");
    prompt_tokens_.resize(static_cast<std::size_t>(count));
    broadcast(mesh_.world(), {0}, std::as_writable_bytes(std::span(prompt_tokens_)),
              "import: tokens");
  }

  // Answers all prompts, each after the answers before it.
  void converse(Generator& generator, const RunObserver& observer,
                const std::function<void(Run)>& after_each) const {
    Conversation conversation(model_->file, model_->tokenizer, options_.chat);
    if (!options_.import_from.empty()) {
      const Prompt prompt{.tokens = prompt_tokens_, .ends = conversation.ends()};
      return after_each(run(generator, prompt, options_.max_tokens, observer));
    }
    for (const std::string& prompt : options_.prompts) {
      Run turn = run(generator, conversation.ask(prompt), options_.max_tokens, observer);
      conversation.answer(turn.tokens);
      after_each(std::move(turn));
    }
  }

  void open() {
    agree(mesh_.world(), [&] {
      if (options_.max_tokens < 1) throw InvalidArgument("--max-tokens must be at least 1");
      model_.emplace(options_.model);
      shape_ = engine::llama_shape(model_->file);
      check_vocabulary(*model_, shape_);
      check_tier_folder(options_.generator.tiers.directory);
    });
    agree_on_content(mesh_, *model_);
    if (!options_.import_from.empty()) read_tokens();
    agree(mesh_.world(), [&] {
      Conversation conversation(model_->file, model_->tokenizer, options_.chat);
      for (const std::string& prompt : options_.prompts) {
        prompt_tokens_ = conversation.ask(prompt).tokens;
        if (prompt.empty() || prompt_tokens_.empty()) {
          throw InvalidArgument("the prompt is empty: give one with --prompt");
        }
      }
      check_length(prompt_tokens_.size(), answers(), options_.max_tokens, shape_);
    });
    const std::array fields{
        Field{"the prompts' tokens", fmt::format("{}", fmt::join(prompt_tokens_, " "))}};
    agree_on(mesh_.world(), fields);
  }

  // Collective.
  TierStatistics sum_over_ranks(TierStatistics mine) {
    const auto sum = [&](std::int64_t& count) {
      count = static_cast<std::int64_t>(
          launch::sum_over_ranks(mesh_.world(), static_cast<std::uint64_t>(count)));
    };
    for (TierCounts* tier : {&mine.host, &mine.file})
      for (std::int64_t* count :
           {&tier->pages, &tier->stores, &tier->loads, &tier->drops, &tier->removed})
        sum(*count);
    FileFaults& faults = mine.faults;
    for (std::int64_t* count : {&faults.corrupt, &faults.truncated, &faults.foreign, &faults.full,
                                &faults.denied, &faults.io})
      sum(*count);
    return mine;
  }

  void show_progress(std::int64_t done, std::int64_t all) {
    if (!speaks() || done == all) return;
    out_.progress([&] { return fmt::format("prompt: {} of {} tokens", done, all); });
  }

  GenerateReport complete(GenerateReport report) {
    if (!mesh_.device_group().nccl()) {
      report.combine_bytes = launch::sum_over_ranks(mesh_.world(), mesh_.kv_comm().sent_bytes());
    }
    const KvCache& cache = generator_->cache();
    report.command = !options_.export_to.empty()     ? "export"
                     : !options_.import_from.empty() ? "import"
                                                     : "generate";
    report.model = options_.model;
    report.cache = cache.options();
    report.pages.assign(generator_->pages().begin(), generator_->pages().end());
    report.tiers = sum_over_ranks(cache.tier_statistics());
    report.kv_parallel = mesh_.kv_parallel();
    report.head_parallel = mesh_.head_parallel();
    if (options_.generator.memory_fraction > 0) report.pool_bytes = cache.pool_bytes();
    return report;
  }

  // Returns the tokens of the same conversation on a mesh of one rank with the same device.
  std::vector<Token> single_rank_tokens(const std::function<void()>& after_each) {
    const bool gpu = mesh_.device().kind == DeviceKind::kCuda;
    Mesh mesh(make_single_communicator(),
              {.threads = mesh_.threads().threads(),
               .device = gpu ? DeviceChoice::kCuda : DeviceChoice::kCpu});
    GeneratorOptions single = options_.generator;
    single.pages_per_rank = 0;
    single.memory_fraction = 0;
    single.tiers = {};
    Generator generator(mesh, model_->file, sized(single, tokens()));
    GenerateReport report;
    converse(generator,
             {.on_prompt = [&](std::int64_t, std::int64_t) { after_each(); },
              .on_token = [&](Token) { after_each(); }},
             [&](Run turn) { report.turns.push_back({.run = std::move(turn), .text = {}}); });
    return tokens_of(report);
  }

  // Every rank's allocator runs out at the same place, so all end here together.
  [[noreturn]] void fail(const OutOfPages& error) const {
    const int page = options_.generator.page_size;
    throw AgreedError(fmt::format(
        "{}: {} prompt tokens and {} new ones need {} pages of {} tokens; raise --pages-per-rank "
        "(now {}) or leave it out",
        error.what(), prompt_tokens_.size(), tokens() - std::ssize(prompt_tokens_),
        pages_for(tokens(), page), page, generator_->cache().options().pages_per_rank));
  }

  Mesh& mesh_;
  const GenerateOptions& options_;
  bool shows_text_;
  Output& out_;
  std::optional<Model> model_;
  engine::LlamaShape shape_;
  std::vector<Token> prompt_tokens_;  // of all prompts, without answers
  std::optional<Generator> generator_;
};

}  // namespace

int run_generate(Mesh& mesh, const GenerateOptions& options, const std::string& json, Output& out) {
  Generation generation(mesh, options, json != "-" && options.export_to.empty(), out);
  GenerateReport report = generation.write_text();
  const bool speaks = mesh.rank().value == 0;
  if (speaks) {
    const std::string wrote =
        options.export_to.empty() ? "" : fmt::format("wrote {}\n", options.export_to);
    out.tell(fmt::format("\n{}{}", wrote, describe(report)));
  }
  if (options.ranks_check) {
    report.ranks_check = generation.ranks_check(report);
    if (speaks) out.tell(describe_check(mesh.size(), *report.ranks_check));
  }
  agree(mesh.world(), [&] {
    if (speaks && !json.empty()) out.write(json, to_json(report));
  });
  return report.ranks_check.value_or(true) ? 0 : 1;
}

}  // namespace kvmesh::launch
