#!/usr/bin/env python3
"""Checks the sizes of files and folders, and that no folders include one another in a circle.

  - A source has at most 400 lines.
  - A folder has at most 16 pairs of a header and a source.
  - Folders beside one another, each with all that is in it, include one another in one direction only:
    if comm/combine includes comm/nccl, nothing in comm/nccl includes comm/combine.

Usage: shape.py ROOT | shape.py --self-test
"""

import collections
import pathlib
import re
import sys
import tempfile

MOST_LINES = 400
MOST_PAIRS = 16
PRODUCT = ("core", "allocator", "kernels", "comm", "runtime", "launch", "python")
FOLDERS = (*PRODUCT, "include", "tests", "bench", "docs")
SOURCES = {".hpp", ".h", ".cpp", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)

# Folders with more pairs. Take one off when it is divided; add none.
MORE_PAIRS = {
    "include/kvmesh",  # one public header per concept
    "launch/bench",
    "launch/cli",
}
# Folders that include one another. Take a pair off when it is resolved; add none.
CIRCLES = set()


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


def full_folders(paths):
    pairs = collections.defaultdict(set)
    for path in paths:
        if path.parts[0] != "tests":
            pairs[str(path.parent)].add(path.stem)
    for folder, stems in pairs.items():
        if len(stems) > MOST_PAIRS and folder not in MORE_PAIRS:
            yield f"{folder} has {len(stems)} pairs of files, at most {MOST_PAIRS}: divide it"


def stale_exceptions(paths):
    for folder in sorted(MORE_PAIRS):
        stems = {path.stem for path in paths if str(path.parent) == folder}
        if len(stems) <= MOST_PAIRS:
            yield f"{folder} has {len(stems)} pairs of files: take it off MORE_PAIRS"


def siblings(path, target):
    """The folders in which two files part ways; None if one file's folder is around the other's."""
    for depth, (mine, other) in enumerate(zip(path.parts, target.parts)):
        if mine != other:
            folders = "/".join(path.parts[: depth + 1]), "/".join(target.parts[: depth + 1])
            is_folder = depth < len(path.parts) - 1 and depth < len(target.parts) - 1
            return folders if depth > 0 and is_folder else None
    return None


def circles(root, paths):
    known = set(paths)
    uses = collections.defaultdict(set)  # folder -> folders beside it
    for path in paths:
        if path.parts[0] not in PRODUCT:
            continue
        for name in INCLUDE.findall((root / path).read_text(encoding="utf-8")):
            target = pathlib.PurePosixPath(name)
            if target in known and (pair := siblings(path, target)):
                uses[pair[0]].add(pair[1])
    reached = {folder: reach(folder, uses) for folder in list(uses)}
    for a in sorted(uses):
        for b in sorted(uses[a]):
            if a in reached.get(b, ()) and (min(a, b), max(a, b)) not in CIRCLES:
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

    many = {f"comm/x/f{i}.hpp": "" for i in range(MOST_PAIRS + 1)}
    cases = [
        ({"core/a.cpp": "\n" * MOST_LINES}, False),
        ({"core/a.cpp": "\n" * (MOST_LINES + 1)}, True),
        ({"tests/core/a.cpp": "\n" * (MOST_LINES + 1)}, True),
        (many, True),
        ({name: "" for name in list(many)[:-1]} | {"comm/x/f0.cpp": ""}, False),
        ({"comm/x/a.hpp": includes("comm/y/b.hpp"), "comm/y/b.hpp": includes("comm/c.hpp"),
          "comm/c.hpp": includes("comm/x/a.hpp")}, False),
        ({"comm/x/a.hpp": includes("comm/y/b.hpp"), "comm/y/b.hpp": "",
          "comm/y/z/c.cpp": includes("comm/x/a.hpp")}, True),
        ({"comm/x/a.hpp": includes("comm/y/b.hpp"), "comm/y/b.hpp": includes("comm/z/c.hpp"),
          "comm/z/c.hpp": includes("comm/x/a.hpp")}, True),
    ]
    return [f"self-test: {files} gave {problems}" for files, is_wrong in cases
            if bool(problems := found(files)) != is_wrong]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    is_self_test = sys.argv[1] == "--self-test"
    problems = self_test() if is_self_test else check_tree(pathlib.Path(sys.argv[1]))
    print("\n".join(problems) or "shape: as it should be")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
