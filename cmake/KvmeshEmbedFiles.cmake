# Writes OUTPUT: a table NAME of the texts of FILES, which are relative to ROOT. Run by kvmesh_embed.

# The longest string literal of every compiler; longer texts are several literals, side by side.
set(literal_bytes 16000)

set(rows "")
set(count 0)
foreach(file IN LISTS FILES)
  file(READ ${ROOT}/${file} text)
  string(LENGTH "${text}" size)
  set(literals "")
  set(begin 0)
  while(begin LESS size)
    string(SUBSTRING "${text}" ${begin} ${literal_bytes} piece)
    string(APPEND literals "R\"embedded(${piece})embedded\"\n")
    math(EXPR begin "${begin} + ${literal_bytes}")
  endwhile()
  string(REGEX REPLACE "^include/" "" name ${file}) # as others include a public header
  string(APPEND rows "    {\"${name}\", std::string_view(\n${literals}\"\", ${size})},\n")
  math(EXPR count "${count} + 1")
endforeach()

file(WRITE ${OUTPUT}.new "// Made from the files that it names: edit those.
#include <array>
#include <span>

#include \"kernels/jit/source_file.hpp\"

namespace kvmesh {

std::span<const jit::SourceFile> ${NAME}();

std::span<const jit::SourceFile> ${NAME}() {
  static constexpr std::array<jit::SourceFile, ${count}> kFiles{{
${rows}  }};
  return kFiles;
}

}  // namespace kvmesh
")
file(RENAME ${OUTPUT}.new ${OUTPUT})
