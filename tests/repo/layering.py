#!/usr/bin/env python3
"""Checks who includes whom.

launch -> runtime -> {kernels, allocator, comm} -> core; the three siblings never include one
another. A header under include/kvmesh/ belongs to one of these layers and may include what the layer
may, but only kvmesh's own headers and the standard library: an engine that includes it needs no
MPI, NCCL, CUDA, Highway, fmt or Boost. launch/ and python/ are examples of such an engine, so they
use public headers only.

Usage: layering.py ROOT | layering.py --self-test
"""

import pathlib
import re
import tempfile

import tree_check

MAY_USE = {
    "core": {"core"},
    "allocator": {"allocator", "core"},
    "kernels": {"kernels", "core"},
    "comm": {"comm", "core"},
    "runtime": {"runtime", "allocator", "kernels", "comm", "core"},
}
MAY_USE["launch"] = MAY_USE["runtime"] | {"launch"}
MAY_USE["python"] = MAY_USE["runtime"] | {"python"}
LIKE_A_USER = ("launch", "python")

LAYER_OF_PUBLIC_HEADER = {
    "api": "core",
    "version": "core",
    "log": "core",
    "types": "core",
    "membership": "core",
    "dtype": "core",
    "page": "core",
    "page_format": "kernels",
    "tensor": "core",
    "error": "core",
    "result": "core",
    "partial": "core",
    "device_memory": "core",
    "stream": "core",
    "thread_pool": "core",
    "allocator": "allocator",
    "change_log": "allocator",
    "prefix": "allocator",
    "mods": "kernels",
    "mod_text": "kernels",
    "draft_trees": "kernels",
    "block_mask": "kernels",
    "expr": "kernels",
    "attention": "kernels",
    "communicator": "comm",
    "launcher": "comm",
    "combine": "comm",
    "tcp": "comm",
    "nccl": "comm",
    "device_group": "comm",
    "mesh": "runtime",
    "cache_options": "runtime",
    "kv_cache": "runtime",
    "step_plan": "runtime",
    "tiers": "runtime",
    "sequence_stream": "runtime",
    "paged_attention": "runtime",
    "external": "runtime",  # c/external.h
    "prefixes": "runtime",  # c/prefixes.h
    "external_pool": "runtime",
    "kvmesh": "runtime",
}

SOURCES = {".hpp", ".h", ".cpp", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[>"]', re.MULTILINE)
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
STANDARD_IN_C = {"stddef.h", "stdint.h"}
NAMESPACE = re.compile(r"^namespace kvmesh\b", re.MULTILINE)
INCLUDED_IN_KERNELS = {"dtype", "page"}  # which have no function of the library
FOREIGN_NAME = re.compile(r"\bMPI_\w+|\bnccl[A-Z]\w+|\bcuda[A-Z]\w+|\b(?:hwy|fmt|boost)::")


def layer_of(path):
    """The layer that a file, given relative to the root, belongs to; None if to none."""
    if path.parts[:2] == ("include", "kvmesh"):
        return LAYER_OF_PUBLIC_HEADER.get(path.stem)
    return path.parts[0] if path.parts[0] in MAY_USE else None


def resolve(root, name):
    """The file that an include names, relative to the root; None if it is not ours."""
    for candidate in (pathlib.PurePosixPath(name), pathlib.PurePosixPath("include") / name):
        if (root / candidate).is_file():
            return candidate
    return None


def check_include(root, path, bracket, name):
    """What is wrong with one include line, or None."""
    target = resolve(root, name)
    public = path.parts[0] == "include"
    if target is None:
        if bracket == '"':
            return f'"{name}" is not a path from the root'
        if public and name not in STANDARD_IN_C and not re.fullmatch(r"[a-z_0-9]+", name):
            return f"a public header includes <{name}>: only kvmesh/ and the standard library"
        return None
    layer, target_layer = layer_of(path), layer_of(target)
    if public and target.parts[0] != "include":
        return f"a public header includes {target}, which is not installed"
    if layer is None:
        return None  # tests and benchmarks may use everything
    if layer in LIKE_A_USER and target.parts[0] not in ("include", layer):
        return f"{layer} uses public headers only, not {target}"
    if target_layer not in MAY_USE[layer]:
        return f"{layer} may not include {target} ({target_layer or 'no layer'})"
    return None


def check_file(root, path):
    """Every violation in one file, as printable lines."""
    text = (root / path).read_text(encoding="utf-8")
    if path.parts[0] == "include":
        if layer_of(path) is None:
            yield f"{path}: give this header a layer in {pathlib.Path(__file__).name}"
            return
        for match in FOREIGN_NAME.finditer(COMMENT.sub("", text)):
            yield f"{path}: a public header mentions {match.group()}"
        if path.stem not in INCLUDED_IN_KERNELS and NAMESPACE.search(text):
            yield f"{path}: namespace KVMESH_API kvmesh, else the shared library hides what it has"
    for match in INCLUDE.finditer(text):
        problem = check_include(root, path, *match.groups())
        if problem:
            line = text.count("\n", 0, match.start(1)) + 1
            yield f"{path}:{line}: {problem}"


def check_tree(root):
    folders = [*MAY_USE, "include", "tests", "bench"]
    files = sorted(file for folder in folders for file in (root / folder).rglob("*"))
    problems = []
    for file in files:
        if file.suffix in SOURCES:
            problems += check_file(root, pathlib.PurePosixPath(file.relative_to(root)))
    return problems


# Each plants one line in one file of a clean tree. Those marked True must be found.
PLANTS = [
    ("allocator/a.cpp", '#include "core/check.hpp"', False),
    ("allocator/a.cpp", '#include "kernels/k.hpp"', True),
    ("allocator/a.cpp", "#include <kvmesh/combine.hpp>", True),
    ("comm/a.cpp", '#  include "allocator/p.hpp"', True),
    ("kernels/a.cpp", '#include "kvmesh/mesh.hpp"', True),
    ("core/a.cpp", '#include "allocator/p.hpp"', True),
    ("core/a.cpp", '#include "check.hpp"', True),
    ("core/a.cpp", '#include "../core/check.hpp"', True),
    ("runtime/a.cpp", '#include "kernels/k.hpp"', False),
    ("runtime/a.cpp", '#include "launch/l.hpp"', True),
    ("launch/a.cpp", '#include "launch/l.hpp"\n#include <kvmesh/mesh.hpp>', False),
    ("launch/a.cpp", '#include "core/check.hpp"', True),
    ("python/src/a.cpp", '#include "kvmesh/mesh.hpp"', False),
    ("python/src/a.cpp", '#include "core/check.hpp"', True),
    ("tests/core/a.cpp", '#include "kernels/k.hpp"\n#include <mpi.h>', False),
    ("tests/core/a.cpp", '#include "a.hpp"', True),
    ("include/kvmesh/mesh.hpp", "#include <kvmesh/combine.hpp>\n#include <vector>", False),
    ("include/kvmesh/mesh.hpp", "#include <mpi.h>", True),
    ("include/kvmesh/mesh.hpp", "#include <fmt/format.h>", True),
    ("include/kvmesh/mesh.hpp", '#include "core/check.hpp"', True),
    ("include/kvmesh/mesh.hpp", "void f(MPI_Comm comm);", True),
    ("include/kvmesh/mesh.hpp", "// points to an MPI_Comm", False),
    ("include/kvmesh/types.hpp", '#include "kvmesh/combine.hpp"', True),
    ("include/kvmesh/types.hpp", "namespace KVMESH_API kvmesh {", False),
    ("include/kvmesh/types.hpp", "namespace kvmesh {", True),
    ("include/kvmesh/page.hpp", "namespace kvmesh {", False),
    ("include/kvmesh/nobody_knows.hpp", "#pragma once", True),
]
CLEAN_TREE = ["core/check.hpp", "kernels/k.hpp", "allocator/p.hpp", "launch/l.hpp",
              "include/kvmesh/mesh.hpp", "include/kvmesh/combine.hpp", "include/kvmesh/types.hpp"]


def self_test():
    for plant, text, is_wrong in PLANTS:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name in [*CLEAN_TREE, plant]:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text + "\n" if name == plant else "#pragma once\n")
            found = check_tree(root)
            if bool(found) != is_wrong:
                return [f"self-test: {plant} with {text!r} gave {found}"]
    return []


if __name__ == "__main__":
    tree_check.run(__doc__, check_tree, self_test, "layering: as it should be")
