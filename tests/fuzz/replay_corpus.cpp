// Gives a fuzz target its seeds, and mutations of them: without clang, and the same in each run.
//
// Usage: NAME_corpus_test FOLDER MUTATIONS
//
// A seed is accepted, unless its name begins with bad_. So a change of a format cannot leave seeds
// behind that are refused at the version, and test nothing more.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "tests/fuzz/mutate.hpp"
#include "tests/fuzz/target.hpp"

namespace {

using kvmesh::test::Input;

std::string last_input = "no input";

/// Says which input a target has aborted at, and leaves the rest to the default.
void name_input(int signal) {
  std::fprintf(stderr, "failed at %s\n", last_input.c_str());
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

struct Seed {
  std::string name;
  Input bytes;
};

/// In the order of their names: the order in a folder differs between machines.
std::vector<Seed> read_seeds(const std::filesystem::path& folder) {
  std::vector<Seed> seeds;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream file(entry.path(), std::ios::binary);
    seeds.push_back({entry.path().filename().string(), Input(std::istreambuf_iterator<char>(file),
                                                             std::istreambuf_iterator<char>())});
  }
  std::ranges::sort(seeds, {}, &Seed::name);
  return seeds;
}

int wrong_seeds(const std::vector<Seed>& seeds) {
  int wrong = 0;
  for (const Seed& seed : seeds) {
    last_input = seed.name;
    const bool expected = !seed.name.starts_with("bad_");
    if (reads(seed.bytes) == expected) continue;
    std::fprintf(stderr, "%s is %s\n", seed.name.c_str(), expected ? "refused" : "accepted");
    ++wrong;
  }
  return wrong;
}

/// Returns how many of the mutations are accepted.
int replay_mutations(const std::vector<Seed>& seeds, int count) {
  constexpr std::size_t kMost = 2000;  // as under libFuzzer
  std::vector<Input> inputs;
  for (const Seed& seed : seeds) inputs.push_back(seed.bytes);
  int accepted = 0;
  for (int i = 0; i < count; ++i) {
    const std::size_t seed = static_cast<std::size_t>(i) % seeds.size();
    std::mt19937_64 random(static_cast<std::uint64_t>(i));
    Input input = inputs[seed];
    kvmesh::test::mutate(input, inputs, kMost, random);
    last_input = "mutation " + std::to_string(i) + " of " + seeds[seed].name;
    accepted += reads(input);
  }
  return accepted;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s FOLDER MUTATIONS\n", argv[0]);
    return 2;
  }
  for (const int signal : {SIGABRT, SIGSEGV, SIGFPE}) std::signal(signal, name_input);
  const std::vector<Seed> seeds = read_seeds(argv[1]);
  const int mutations = std::atoi(argv[2]);
  if (seeds.empty() || mutations <= 0) return 2;
  if (wrong_seeds(seeds) > 0) return 1;
  const int accepted = replay_mutations(seeds, mutations);
  std::printf("%zu seeds; %d of %d mutations accepted\n", seeds.size(), accepted, mutations);
  // A target that refuses, or accepts, whatever it gets would be no test.
  return accepted > 0 && accepted < mutations ? 0 : 1;
}
