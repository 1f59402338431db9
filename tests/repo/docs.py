"""What the documents name is there.

  - A path that begins with a folder of the tree, or that a link goes to, exists.
  - Each piece of C++ in docs/gpu.md stands in docs/gpu_program.cpp, letter for letter: that one is built.
    So do those of docs/engine.md in docs/engine_loop.cpp.

docs.py ROOT
"""

import pathlib
import re
import sys

PATH = re.compile(r"(?<![\w./~$}-])[\w.-]+(?:/[\w.-]+)+")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
CPP = re.compile(r"^```cpp\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def missing(root, document):
    text = document.read_text()
    for link in LINK.findall(text):
        if "://" not in link and not (document.parent / link).exists():
            yield link
    folders = {folder.name for folder in root.iterdir() if folder.is_dir()} - {"build"}
    folders.add("kvmesh")  # of include/
    for path in PATH.findall(text):
        path = path.rstrip(".")
        exists = any((top / path).exists() for top in (root, root / "include"))
        if path.split("/")[0] in folders and not exists and not is_target(root, path):
            yield path


def is_target(root, path):
    """A program, named by where it is built."""
    return any((root / path).with_suffix(suffix).exists() for suffix in (".cpp", ".cu"))


def main():
    root = pathlib.Path(sys.argv[1])
    wrong = 0
    for document in [*root.glob("*.md"), *(root / "docs").glob("*.md")]:
        for name in missing(root, document):
            where = document.relative_to(root)
            print(f"docs: {where} names {name}, which is not there", file=sys.stderr)
            wrong += 1
    for page, program in (("gpu.md", "gpu_program.cpp"), ("engine.md", "engine_loop.cpp")):
        source = (root / "docs" / program).read_text()
        pieces = CPP.findall((root / "docs" / page).read_text())
        for piece in pieces or ["nothing"]:
            if piece not in source:
                print(f"docs: docs/{program} has no\n{piece}", file=sys.stderr)
                wrong += 1
    if wrong == 0:
        print("docs: all that is named is there")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
