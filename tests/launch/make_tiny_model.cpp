// make_tiny_model FILE: writes the miniature llama model, to run the program without a real one.
#include <fstream>
#include <iostream>

#include "tests/launch/tiny_gguf.hpp"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: make_tiny_model FILE\n";
    return 2;
  }
  std::ofstream out(argv[1], std::ios::binary | std::ios::trunc);
  out << kvmesh::test::tiny_model();
  if (!out) {
    std::cerr << "make_tiny_model: cannot write " << argv[1] << '\n';
    return 1;
  }
  return 0;
}
