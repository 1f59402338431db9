#!/usr/bin/env python3
"""Checks the sizes of files and folders, and that no folders include one another in a circle.

  - A source has at most 400 lines.
  - A folder has at most 16 pairs of a header and a source; of comm, core, runtime and kernels/cuda at
    most 13.
  - Folders beside one another, each with all that is in it, include one another in one direction only:
    if comm/combine includes comm/nccl, nothing in comm/nccl includes comm/combine. A folder's own
    files count as one more folder beside those in it.

Usage: shape.py ROOT | shape.py --self-test
"""

import collections
import pathlib
import re
import tempfile

import tree_check

MOST_LINES = 400
MOST_PAIRS = 16
FEWER_PAIRS = 13
WITH_FEWER_PAIRS = ("comm", "core", "runtime", "kernels/cuda")
PRODUCT = ("core", "allocator", "kernels", "comm", "runtime", "launch", "python")
FOLDERS = (*PRODUCT, "include", "tests", "bench", "docs")
OWN_FILES = "."
SOURCES = {".hpp", ".h", ".cpp", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)

# Folders with more pairs. Take one off when it is divided; add none.
MORE_PAIRS = {
    "include/kvmesh",  # one public header per concept
    "launch/bench",
    "launch/cli",
}


def sources(root):
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*")):
            if file.suffix in SOURCES:
                yield pathlib.PurePosixPath(file.relative_to(root))


def long_files(root, paths):
    for path in paths:
        lines = (root / path).read_text(encoding="utf-8").count("\n")
        if lines > MOST_LINES:
            yield f"{path} has {lines} lines, at most {MOST_LINES}: divide it by concept"


def most_pairs(folder):
    has_fewer = any(f"{folder}/".startswith(f"{top}/") for top in WITH_FEWER_PAIRS)
    return FEWER_PAIRS if has_fewer else MOST_PAIRS


def full_folders(paths):
    pairs = collections.defaultdict(set)
    for path in paths:
        if path.parts[0] != "tests":
            pairs[str(path.parent)].add(path.stem)
    for folder, stems in pairs.items():
        most = most_pairs(folder)
        if len(stems) > most and folder not in MORE_PAIRS:
            yield f"{folder} has {len(stems)} pairs of files, at most {most}: divide it"


def stale_exceptions(paths):
    for folder in sorted(MORE_PAIRS):
        stems = {path.stem for path in paths if str(path.parent) == folder}
        if len(stems) <= most_pairs(folder):
            yield f"{folder} has {len(stems)} pairs of files: take it off MORE_PAIRS"


def siblings(path, target):
    """The folders in which two files part ways, FOLDER/. for the own files of the folder around them;
    None if they are of one folder, or not of one module."""
    mine, other = path.parent.parts, target.parent.parts
    shared = 0
    while shared < min(len(mine), len(other)) and mine[shared] == other[shared]:
        shared += 1
    if shared == 0 or mine == other:
        return None
    around = "/".join(mine[:shared])
    sides = [parts[shared] if len(parts) > shared else OWN_FILES for parts in (mine, other)]
    return tuple(f"{around}/{side}" for side in sides)


def includes_between(root, paths):
    """folder -> the folders beside it that it includes"""
    known = set(paths)
    uses = collections.defaultdict(set)
    for path in paths:
        if path.parts[0] not in PRODUCT:
            continue
        for name in INCLUDE.findall((root / path).read_text(encoding="utf-8")):
            target = pathlib.PurePosixPath(name)
            if target in known and (pair := siblings(path, target)):
                uses[pair[0]].add(pair[1])
    return uses


def circles(root, paths):
    uses = includes_between(root, paths)
    for a in sorted(uses):
        for b in sorted(uses[a]):
            if a in reach(b, uses):
                yield f"{a} includes {b}, which includes it again"


def reach(folder, uses):
    """The folders that `folder` includes, directly or not."""
    found, left = set(), [folder]
    while left:
        for other in uses.get(left.pop(), ()):
            if other not in found:
                found.add(other)
                left.append(other)
    return found


def check_tree(root):
    paths = list(sources(root))
    return [*long_files(root, paths), *full_folders(paths), *stale_exceptions(paths),
            *circles(root, paths)]


def self_test():
    def found(files):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name, text in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text)
            paths = list(sources(root))
            return [*long_files(root, paths), *full_folders(paths), *circles(root, paths)]

    def includes(*names):
        return "".join(f'#include "{name}"\n' for name in names)

    def headers(folder, count):
        return {f"{folder}/f{i}.hpp": "" for i in range(count)}

    cases = [
        ({"core/a.cpp": "\n" * MOST_LINES}, False),
        ({"core/a.cpp": "\n" * (MOST_LINES + 1)}, True),
        ({"tests/core/a.cpp": "\n" * (MOST_LINES + 1)}, True),
        (headers("kernels/x", MOST_PAIRS + 1), True),
        (headers("kernels/x", MOST_PAIRS) | {"kernels/x/f0.cpp": ""}, False),
        (headers("kernels/cuda/x", FEWER_PAIRS + 1), True),
        (headers("comm", FEWER_PAIRS + 1), True),
        (headers("comm/x", FEWER_PAIRS) | {"comm/x/f0.cpp": ""}, False),
        (headers("tests/comm", MOST_PAIRS + 1), False),
        ({"kernels/x/a.hpp": includes("kernels/y/b.hpp"),
          "kernels/y/b.hpp": includes("kernels/c.hpp"),
          "kernels/c.hpp": includes("kernels/x/a.hpp")}, True),
        ({"runtime/x/a.hpp": includes("runtime/b.hpp"), "runtime/b.hpp": "",
          "runtime/c.hpp": includes("runtime/x/a.hpp")}, True),
        ({"runtime/x/a.hpp": includes("runtime/b.hpp"), "runtime/b.hpp": "",
          "runtime/y/c.hpp": includes("runtime/x/a.hpp")}, False),
        ({"runtime/x/a.hpp": includes("runtime/x/y/b.hpp"),
          "runtime/x/y/b.hpp": includes("runtime/x/z/c.hpp"),
          "runtime/x/z/c.hpp": includes("runtime/x/d.hpp"), "runtime/x/d.hpp": ""}, True),
        ({"comm/x/a.hpp": includes("comm/y/b.hpp"), "comm/y/b.hpp": "",
          "comm/y/z/c.cpp": includes("comm/x/a.hpp")}, True),
        ({"comm/x/a.hpp": includes("comm/y/b.hpp"), "comm/y/b.hpp": includes("comm/z/c.hpp"),
          "comm/z/c.hpp": includes("comm/x/a.hpp")}, True),
    ]
    return [f"self-test: {files} gave {problems}" for files, is_wrong in cases
            if bool(problems := found(files)) != is_wrong]


if __name__ == "__main__":
    tree_check.run(__doc__, check_tree, self_test, "shape: as it should be")
