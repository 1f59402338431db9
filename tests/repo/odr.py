#!/usr/bin/env python3
"""Finds names that two files of the library or the program define in two ways.

With KVMESH_ODR the objects of the build also hold what link-time optimisation works on. The linker
compares the types (-Wodr) and declarations (-Wlto-type-mismatch) of all of them together. No code is
made. GCC alone has these warnings.

Usage: odr.py COMPILER OBJECTS | odr.py --self-test COMPILER    (OBJECTS: a file, one path a line)
"""

import os
import pathlib
import subprocess
import sys
import tempfile

COMPILE = ["-O1", "-flto", "-ffat-lto-objects", "-w"]
LINK = ["-O0", "-flto", "-r", "-nostdlib", "-flinker-output=rel", "-Wodr", "-Werror=odr",
        "-Wlto-type-mismatch", "-Werror=lto-type-mismatch"]


def link(compiler, objects, folder):
    """What the linker says of the objects together; empty if nothing."""
    response = pathlib.Path(folder) / "objects.txt"
    response.write_text("\n".join(f'"{path}"' for path in objects))
    run = subprocess.run([compiler, *LINK, f"@{response}", "-o", os.devnull], capture_output=True,
                         text=True, check=False)
    return "" if run.returncode == 0 else run.stderr or "the linker failed"


# Pairs of files, and whether they differ.
PAIRS = [
    ("struct Row { int a; }; Row x;", "struct Row { int a; }; Row y;", False),
    ("struct Row { int a; }; Row x;", "struct Row { double a; }; Row y;", True),
    ("namespace { struct Row { int a; }; } Row x;", "struct Row { double a; }; Row y;", False),
    ("int f(int); int g() { return f(1); }", "int f(int a) { return a; }", False),
    ("int f(int); int g() { return f(1); }", "long f(int a) { return a; }", True),
]


def self_test(compiler):
    for first, second, differ in PAIRS:
        with tempfile.TemporaryDirectory() as folder:
            objects = []
            for name, text in (("first", first), ("second", second)):
                objects.append(f"{folder}/{name}.o")
                subprocess.run([compiler, *COMPILE, "-x", "c++", "-", "-c", "-o", objects[-1]],
                               input=text, text=True, check=True)
            if bool(link(compiler, objects, folder)) != differ:
                return f"self-test: '{first}' and '{second}': differ should be {differ}"
    return ""


def main():
    arguments = sys.argv[1:]
    if len(arguments) == 2 and arguments[0] == "--self-test":
        problems = self_test(arguments[1])
    elif len(arguments) == 2:
        compiler, listed = arguments
        objects = pathlib.Path(listed).read_text(encoding="utf-8").splitlines()
        problems = link(compiler, objects, pathlib.Path(listed).parent)
    else:
        sys.exit(__doc__)
    print(problems or "odr: each name has one definition")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
