#!/usr/bin/env python3
"""Checks that tests call each function of the C headers (include/kvmesh/c), and that its statuses are
the codes of include/kvmesh/error.hpp, by name and number.

c_functions.py ROOT | c_functions.py --self-test
"""

import pathlib
import re
import tempfile

import tree_check

COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
DECLARED = re.compile(r"KVMESH_API\s+[\w\s*]*?\b(kvmesh_\w+)\s*\(")
CALL = re.compile(r"\b(kvmesh_\w+)\s*\(")
STATUS = re.compile(r"\bKVMESH_(\w+) = (\d+)")
CODE = re.compile(r"\bk(\w+) = (\d+)")
SUFFIXED = {"RENDEZVOUS", "NCCL", "STREAM"}  # KVMESH_STREAM_ERROR, since a stream is something else


def without_comments(file):
    return COMMENT.sub("", file.read_text())


def declared(root):
    headers = sorted((root / "include/kvmesh/c").glob("*.h"))
    return {name for header in headers for name in DECLARED.findall(without_comments(header))}


def called(root):
    return {name for file in (root / "tests").rglob("*") if file.suffix in (".c", ".cpp")
            for name in CALL.findall(without_comments(file))}


def enumerators(file, begin, pattern):
    """The names and numbers in the enumeration that `begin` opens."""
    body = re.search(re.escape(begin) + r"(.*?)\}", without_comments(file), re.DOTALL)
    return dict(pattern.findall(body.group(1))) if body else {}


def in_capitals(name):
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()
    return words + "_ERROR" if words in SUFFIXED else words


def check_tree(root):
    functions = declared(root)
    problems = [f"c_functions: no test calls {name}" for name in sorted(functions - called(root))]
    statuses = enumerators(root / "include/kvmesh/c/mesh.h", "enum {\n  KVMESH_OK = 0,", STATUS)
    codes = enumerators(root / "include/kvmesh/error.hpp", "enum class ErrorCode : std::int32_t {", CODE)
    codes = {in_capitals(name): number for name, number in codes.items()}
    if statuses != codes or not codes:
        problems.append(f"c_functions: statuses {statuses}, error codes {codes}")
    return problems if functions else ["c_functions: no function is declared"]


HEADER = """enum {
  KVMESH_OK = 0,
  KVMESH_ERROR = 1, /* of a device } */
  KVMESH_OUT_OF_PAGES = 2,
  KVMESH_NCCL_ERROR = 3
};
/* KVMESH_API void kvmesh_gone(void); */
KVMESH_API const char* kvmesh_text(void);
KVMESH_API kvmesh_status_t
kvmesh_run(int32_t ranks, kvmesh_status_t (*body)(kvmesh_mesh_t* mesh, void* context));
"""
ERRORS = """enum class ErrorCode : std::int32_t {
  kError = 1,  ///< mostly of a device
  kOutOfPages = 2,
  kNccl = 3,
};
"""
TEST = "void f() { kvmesh_run(2, g); puts(kvmesh_text()); }\n"
PLANTS = [
    ("tests/a.c", TEST, False),
    ("tests/a.cpp", TEST, False),
    ("tests/a.c", "void f() { kvmesh_run(2, g); }\n", True),
    ("tests/a.c", "void f() { kvmesh_run(2, g); } // kvmesh_text()\n", True),
    ("tests/a.c", "void f() { kvmesh_run(2, g); } /* puts(\nkvmesh_text()); */\n", True),
    ("tests/a.py", TEST, True),
    ("include/kvmesh/error.hpp", ERRORS.replace("kNccl = 3", "kNccl = 4"), True),
    ("include/kvmesh/error.hpp", ERRORS.replace("};", "  kStream = 4,\n};"), True),
    ("include/kvmesh/error.hpp", ERRORS.replace("kOutOfPages", "kOutOfRanks"), True),
    ("include/kvmesh/c/other.h", "KVMESH_API void kvmesh_other(void);\n", True),
]


def self_test():
    for plant, text, is_wrong in PLANTS:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            tree = {"include/kvmesh/c/mesh.h": HEADER, "include/kvmesh/error.hpp": ERRORS}
            if not plant.startswith("tests"):
                tree["tests/a.c"] = TEST
            for name, content in {**tree, plant: text}.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(content)
            (root / "tests").mkdir(exist_ok=True)
            found = check_tree(root)
            if bool(found) != is_wrong:
                return [f"self-test: {plant} with {text!r} gave {found}"]
    return []


if __name__ == "__main__":
    tree_check.run(__doc__, check_tree, self_test, "c_functions: all are called by tests")
