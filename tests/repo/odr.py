#!/usr/bin/env python3
"""Finds names that two files of the library or the program define in two ways.

Compiles all of it, without optimisation, to what link-time optimisation works on, and has the linker
compare the types (-Wodr) and declarations (-Wlto-type-mismatch) of all files together. No code is
made. GCC alone has these warnings.

Usage: odr.py SOURCE WORK COMPILER [LAUNCHER] | odr.py --self-test COMPILER
"""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile

COMPILE = ["-O0", "-flto", "-fno-fat-lto-objects", "-w"]
LINK = ["-O0", "-flto", "-r", "-nostdlib", "-flinker-output=rel", "-Wodr", "-Werror=odr",
        "-Wlto-type-mismatch", "-Werror=lto-type-mismatch"]


def link(compiler, objects, folder):
    """What the linker says of the objects together; empty if nothing."""
    response = pathlib.Path(folder) / "objects.txt"
    response.write_text("\n".join(f'"{path}"' for path in objects))
    run = subprocess.run([compiler, *LINK, f"@{response}", "-o", os.devnull], capture_output=True,
                         text=True, check=False)
    return "" if run.returncode == 0 else run.stderr or "the linker failed"


def build(source, work, compiler, launcher):
    """The object files of the library and the program."""
    options = {"CMAKE_BUILD_TYPE": "None", "CMAKE_CXX_COMPILER": compiler,
               "CMAKE_CXX_COMPILER_LAUNCHER": launcher, "CMAKE_CXX_FLAGS": " ".join(COMPILE),
               "CMAKE_EXPORT_COMPILE_COMMANDS": "ON", "KVMESH_CUDA": "OFF", "KVMESH_TESTS": "OFF",
               "KVMESH_BENCH": "OFF", "KVMESH_INSTALL": "OFF"}
    settings = [f"-D{name}={value}" for name, value in options.items()]
    subprocess.run(["cmake", "-S", source, "-B", work, "-G", "Ninja", *settings], check=True,
                   stdout=subprocess.DEVNULL)
    commands = json.loads((pathlib.Path(work) / "compile_commands.json").read_text())
    words = [shlex.split(command["command"]) for command in commands]
    objects = [line[line.index("-o") + 1] for line in words]
    subprocess.run(["ninja", "-C", work, "--quiet", *objects], check=True)
    return [str(pathlib.Path(work) / path) for path in objects]


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
    elif len(arguments) in (3, 4):
        source, work, compiler = arguments[:3]
        launcher = arguments[3] if len(arguments) == 4 else ""
        problems = link(compiler, build(source, work, compiler, launcher), work)
    else:
        sys.exit(__doc__)
    print(problems or "odr: each name has one definition")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
