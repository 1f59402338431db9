// make_tiny_model FILE [LAYERS CONTEXT]: writes the miniature llama model, to run the program
// without a real one.
#include <fstream>
#include <iostream>
#include <string>

#include "tests/launch/tiny_gguf.hpp"

int main(int argc, char** argv) {
  if (argc != 2 && argc != 4) {
    std::cerr << "usage: make_tiny_model FILE [LAYERS CONTEXT]\n";
    return 2;
  }
  std::ofstream out(argv[1], std::ios::binary | std::ios::trunc);
  kvmesh::test::TinyModelOptions options;
  if (argc == 4) {
    options.layers = static_cast<std::uint32_t>(std::stoul(argv[2]));
    options.context_tokens = static_cast<std::uint32_t>(std::stoul(argv[3]));
  }
  out << kvmesh::test::tiny_model(options);
  if (!out) {
    std::cerr << "make_tiny_model: cannot write " << argv[1] << '\n';
    return 1;
  }
  return 0;
}
