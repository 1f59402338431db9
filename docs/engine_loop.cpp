// A serving engine's loop over a cache on all ranks: mpirun -np 4 ./engine_loop [cpu|cuda]
//
// Requests arrive and are served together: chunks of prompts beside decode, drafts that are rolled
// back, beams that share pages, requests that wait again if there are too few pages, prompts that
// begin like earlier ones. On GPUs steps that only decode replay a CUDA graph. The cache is
// reproducible, so every request must get the same tokens as when it is served alone.
#include <algorithm>
#include <cstdio>
#include <deque>
#include <map>

#include "engine_graph.hpp"
#include "engine_model.hpp"

using kvmesh::SequenceId;
using Tokens = std::vector<std::int32_t>;

struct Request {
  int id = 0;
  int arrives = 0;  // at this step
  Tokens prompt{};
  int new_tokens = 0;
  int beams = 1;
};

// A continuation of a request. All its tokens but the newest are in the cache, or will be.
struct Beam {
  SequenceId sequence;
  Tokens tokens;
  double score = 0;
  std::vector<float> logits{};  // of the next token, once all tokens are in the cache
};

struct Running {
  Request request;
  std::vector<Beam> beams;
  bool is_published = false;
};

struct Limits {
  std::size_t running = 8;            // requests at a time
  std::int64_t step_tokens = 48;      // of all sequences together
  std::int64_t chunk_tokens = 16;     // of a prompt, in a step
  int drafts = 3;                     // after each token
  std::int64_t decode_sequences = 8;  // of a step in the graph
};

struct Counts {
  int steps = 0, decode_steps = 0, preempted = 0, forked = 0;
  std::int64_t drafted = 0, accepted = 0, from_prefixes = 0;
};

class Engine {
 public:
  Engine(kvmesh::Mesh& mesh, std::int64_t pages_per_rank, const Limits& limits)
      : limits_(limits),
        mesh_(mesh),
        cache_(mesh, cache_options(mesh.device(), pages_per_rank)),
        model_(mesh.device(), std::max(limits.step_tokens, decode_tokens())),
        graph_(mesh) {
    kvmesh::PlanOptions options{.score = kvmesh::mods::alibi(Model::kHeads), .scale = 1.0f};
    mixed_ = cache_.plan({}, options);
    // With limits the launches of a run do not depend on the batch, so a graph can have them. A
    // step may read more pages, which makes the graph invalid, once for each doubling.
    options.limits = {.sequences = limits.decode_sequences,
                      .query_tokens = 1 + limits.drafts,
                      .pages = pages_per_rank / 4};
    decode_ = cache_.plan({}, options);
    model_.run(decode_, graph_.stream());  // of no token: compiles kernels, connects NCCL
  }

  // Serves all requests, which are in order of arrival, and returns the tokens of each by its id.
  std::map<int, Tokens> serve(std::deque<Request> requests) {
    for (; !requests.empty() || !waiting_.empty() || !running_.empty(); ++counts_.steps) {
      while (!requests.empty() && requests.front().arrives <= counts_.steps) {
        const Request& request = requests.front();
        waiting_.push_back({request, {{SequenceId{}, request.prompt}}});
        requests.pop_front();
      }
      while (!waiting_.empty() && running_.size() < limits_.running) admit();
      if (!running_.empty()) step();
    }
    return std::move(served_);
  }

  const Counts& counts() const { return counts_; }
  const StepGraph& graph() const { return graph_; }

 private:
  static kvmesh::CacheOptions cache_options(kvmesh::Device device, std::int64_t pages_per_rank) {
    const bool is_gpu = device.kind == kvmesh::DeviceKind::kCuda;
    return {.layers = Model::kLayers,
            .q_heads = Model::kHeads,
            .kv_heads = Model::kKvHeads,
            .k_dim = Model::kDim,
            .page_size = 4,
            .pages_per_rank = pages_per_rank,
            .dtype = is_gpu ? kvmesh::Dtype::kBFloat16 : kvmesh::Dtype::kFloat32,
            .home_threshold_tokens = 16,
            .reproducible = true,
            .prefix = {.enabled = true}};
  }

  kvmesh::PrefixKey key_of(const Tokens& tokens) const {
    kvmesh::PrefixKey key = cache_.make_prefix_key();
    key.append(tokens);
    return key;
  }

  // Each beam begins with the cached part of its tokens; the newest is computed in any case.
  void admit() {
    Running next = std::move(waiting_.front());
    waiting_.pop_front();
    for (Beam& beam : next.beams) {
      beam.sequence = cache_.create_with_prefix(key_of(beam.tokens));
      const auto most = std::ssize(beam.tokens) - 1;
      if (cache_.length(beam.sequence) > most) cache_.truncate(beam.sequence, most);
      counts_.from_prefixes += cache_.length(beam.sequence);
      beam.logits.clear();
    }
    running_.push_back(std::move(next));
  }

  // The work of one beam in a step: its next tokens, then drafts.
  struct Piece {
    Running* of;
    Beam* beam;
    std::int64_t tokens;
    Tokens drafts;
  };

  // Decode first: it takes one token per beam, and drafts, before chunks of prompts fill the step.
  std::vector<Piece> pieces() {
    std::vector<Piece> pieces;
    std::int64_t left = limits_.step_tokens;
    for (const bool is_prompt : {false, true}) {
      for (Running& running : running_) {
        for (Beam& beam : running.beams) {
          const auto missing = std::ssize(beam.tokens) - cache_.length(beam.sequence);
          if (missing == 0 || (missing > 1) != is_prompt) continue;
          Piece piece{&running, &beam, std::min({missing, left, limits_.chunk_tokens}), {}};
          if (piece.tokens == 0) continue;
          if (piece.tokens == missing) piece.drafts = drafts(running, beam, left - missing);
          left -= piece.tokens + std::ssize(piece.drafts);
          pieces.push_back(std::move(piece));
        }
      }
    }
    return pieces;
  }

  // The tokens after the newest token's last occurrence.
  Tokens drafts(const Running& running, const Beam& beam, std::int64_t most) const {
    if (running.request.beams > 1) return {};
    const Tokens& tokens = beam.tokens;
    const auto last = std::find(tokens.rbegin() + 1, tokens.rend(), tokens.back());
    const auto count = std::min({std::int64_t{limits_.drafts}, most, last - tokens.rbegin()});
    return last == tokens.rend() ? Tokens{} : Tokens(last.base(), last.base() + count);
  }

  // The most tokens of a step in the graph.
  std::int64_t decode_tokens() const { return limits_.decode_sequences * (1 + limits_.drafts); }

  bool is_decode(const std::vector<Piece>& batch) const {
    const auto is_one = [](const Piece& piece) { return piece.tokens == 1; };
    return std::ssize(batch) <= limits_.decode_sequences && std::ranges::all_of(batch, is_one);
  }

  void step() {
    std::vector<Piece> batch = pieces();
    while (!plan(batch)) {
      preempt();
      batch = pieces();
    }
    const Tokens tokens = tokens_of(batch);
    model_.set_tokens(tokens);
    run(batch);
    mesh_.wait(graph_.stream(), "step");  // has a deadline, and its error names the late ranks
    const std::vector<float> logits = model_.logits(tokens.size());
    const float* row = logits.data();
    for (const Piece& piece : batch) {
      take(piece, row + (piece.tokens - 1) * Model::kVocabulary);
      row += (piece.tokens + std::ssize(piece.drafts)) * Model::kVocabulary;
    }
    for (Running& running : running_) advance(running);
    std::erase_if(running_, [](const Running& running) { return running.beams.empty(); });
  }

  // Steps that only decode replay one graph: it computes the batch that was planned last.
  void run(const std::vector<Piece>& batch) {
    if (!is_decode(batch)) return model_.run(mixed_, graph_.stream());
    graph_.run(decode_.generation(), [&] { model_.run(decode_, graph_.stream()); });
    ++counts_.decode_steps;
  }

  Tokens tokens_of(const std::vector<Piece>& batch) const {
    Tokens tokens;
    for (const Piece& piece : batch) {
      const auto first = piece.beam->tokens.end() - missing_before(piece);
      tokens.insert(tokens.end(), first, first + piece.tokens);
      tokens.insert(tokens.end(), piece.drafts.begin(), piece.drafts.end());
    }
    return tokens;
  }

  // The tokens that the cache lacked before the plan.
  std::int64_t missing_before(const Piece& piece) const {
    const auto appended = piece.tokens + std::ssize(piece.drafts);
    return std::ssize(piece.beam->tokens) - (cache_.length(piece.beam->sequence) - appended);
  }

  // Plans in place. Returns false if there are too few pages, with nothing changed.
  bool plan(const std::vector<Piece>& pieces) {
    std::vector<kvmesh::BatchEntry> batch;
    for (const Piece& piece : pieces) {
      batch.push_back({piece.beam->sequence, piece.tokens + std::ssize(piece.drafts)});
    }
    kvmesh::StepPlan& plan = is_decode(pieces) ? decode_ : mixed_;
    return cache_.try_replan(plan, batch, graph_.stream()).has_value();
  }

  // The youngest request frees its pages and waits; its tokens are computed again later.
  void preempt() {
    if (running_.size() == 1) throw kvmesh::InvalidArgument("one request alone needs more pages");
    for (Beam& beam : running_.back().beams) cache_.erase(beam.sequence);
    waiting_.push_front(std::move(running_.back()));
    running_.pop_back();
    ++counts_.preempted;
  }

  // Keeps the drafts that agree with the model; the others leave the cache.
  void take(const Piece& piece, const float* logits) {
    Beam& beam = *piece.beam;
    if (std::ssize(beam.tokens) > cache_.length(beam.sequence) - std::ssize(piece.drafts)) return;
    std::size_t good = 0;
    for (; good < piece.drafts.size() && piece.drafts[good] == best(logits); ++good) {
      beam.tokens.push_back(piece.drafts[good]);
      logits += Model::kVocabulary;
    }
    cache_.truncate(beam.sequence, std::ssize(beam.tokens));
    beam.logits.assign(logits, logits + Model::kVocabulary);
    counts_.drafted += std::ssize(piece.drafts);
    counts_.accepted += static_cast<std::int64_t>(good);
  }

  static std::int32_t best(const float* logits) {
    return static_cast<std::int32_t>(std::max_element(logits, logits + Model::kVocabulary) -
                                     logits);
  }

  // Every beam has its next logits: the best continuations become the beams.
  void advance(Running& running) {
    const auto knows = [](const Beam& beam) { return !beam.logits.empty(); };
    if (!std::ranges::all_of(running.beams, knows)) return;
    const Request& request = running.request;
    if (!running.is_published) {  // before the first fork
      cache_.publish(running.beams[0].sequence, key_of(request.prompt));
      running.is_published = true;
    }
    if (request.beams == 1) {
      Beam& beam = running.beams[0];
      beam.tokens.push_back(best(beam.logits.data()));
      beam.logits.clear();
    } else {
      running.beams = continued(running.beams, static_cast<std::size_t>(request.beams));
    }
    const auto most = request.prompt.size() + static_cast<std::size_t>(request.new_tokens);
    if (running.beams[0].tokens.size() < most) return;
    running.beams[0].tokens.resize(most);
    served_[request.id] = running.beams[0].tokens;
    for (const Beam& beam : running.beams) cache_.erase(beam.sequence);
    running.beams.clear();
  }

  // A beam that continues twice is forked: the new one shares its pages. One that does not is
  // erased.
  std::vector<Beam> continued(const std::vector<Beam>& beams, std::size_t count) {
    struct Next {
      double score;
      std::size_t beam;
      std::int32_t token;
    };
    std::vector<Next> all;
    for (std::size_t b = 0; b < beams.size(); ++b) {
      for (std::int32_t token = 0; token < Model::kVocabulary; ++token) {
        all.push_back(
            {beams[b].score + beams[b].logits[static_cast<std::size_t>(token)], b, token});
      }
    }
    std::ranges::stable_sort(all, std::ranges::greater{}, &Next::score);
    std::vector<Beam> next;
    std::vector<bool> goes_on(beams.size());
    for (const Next& each : std::span(all).first(count)) {
      const Beam& from = beams[each.beam];
      const bool is_first = !goes_on[each.beam];
      goes_on[each.beam] = true;
      counts_.forked += !is_first;
      next.push_back(
          {is_first ? from.sequence : cache_.fork(from.sequence), from.tokens, each.score});
      next.back().tokens.push_back(each.token);
    }
    for (std::size_t b = 0; b < beams.size(); ++b) {
      if (!goes_on[b]) cache_.erase(beams[b].sequence);
    }
    return next;
  }

  Limits limits_;
  kvmesh::Mesh& mesh_;
  kvmesh::KvCache cache_;
  Model model_;
  StepGraph graph_;
  kvmesh::StepPlan mixed_, decode_;
  std::deque<Running> waiting_;
  std::vector<Running> running_;
  std::map<int, Tokens> served_;
  Counts counts_;
};

// Prompts of 20 to 64 tokens, half of which begin alike, and requests that repeat themselves.
std::deque<Request> requests() {
  std::deque<Request> requests;
  for (int id = 0; id < 12; ++id) {
    Request request{
        .id = id, .arrives = 2 * id, .new_tokens = 12 + id, .beams = id % 4 == 3 ? 3 : 1};
    const int length = 20 + 11 * (id % 5);
    for (int i = 0; i < length; ++i) {
      request.prompt.push_back(id % 2 == 0 && i < 16 ? i : (i * (id + 3) + id) % 7);
    }
    requests.push_back(std::move(request));
  }
  return requests;
}

// Serves the requests together and alone. Returns whether their tokens are equal.
bool serve_both_ways(kvmesh::Mesh& mesh) {
  const std::int64_t pages = 60 / mesh.kv_parallel();
  Engine together(mesh, pages, {});
  const std::map<int, Tokens> served = together.serve(requests());
  Engine alone(mesh, pages, {.running = 1, .chunk_tokens = 1000, .drafts = 0});
  const bool equal = served == alone.serve(requests());

  const Counts& counts = together.counts();
  std::printf(
      "rank %d of %d: %zu requests in %d steps, %d of decode, %d in graphs; %lld drafts accepted, "
      "%lld rolled back, %d forks, %lld tokens from known prefixes, %d preemptions; alone %d "
      "steps, "
      "%d in graphs, captured %d times; %s\n",
      mesh.rank().value, mesh.size(), served.size(), counts.steps, counts.decode_steps,
      together.graph().launched(), static_cast<long long>(counts.accepted),
      static_cast<long long>(counts.drafted - counts.accepted), counts.forked,
      static_cast<long long>(counts.from_prefixes), counts.preempted, alone.counts().steps,
      alone.graph().launched(), alone.graph().captured(),
      equal ? "the tokens are equal" : "TOKENS DIFFER");
  return equal;
}

int main(int argc, char** argv) {
  try {
    kvmesh::MpiSession mpi(argc, argv);
    const auto device = kvmesh::device_choice_from(argc > 1 ? argv[1] : "auto");
    kvmesh::Mesh mesh = kvmesh::Mesh::from_launcher({.device = device});
    return serve_both_ways(mesh) ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "engine_loop: %s\n", error.what());
    return 2;
  }
}
