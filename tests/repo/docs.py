"""Checks what the documents refer to.

  - Every path that begins with a folder of the tree, and every file and heading that a link names, exists.
  - Each piece of C++ in docs/gpu.md occurs, letter for letter, in docs/gpu_program.cpp, which is built.
    Those of docs/engine.md occur in docs/engine_loop.cpp or docs/engine_graph.hpp, those of
    docs/external.md in docs/external_program.cpp, and the C of docs/install.md in docs/c_program.c.

docs.py ROOT
"""

import pathlib
import re
import sys

PATH = re.compile(r"(?<![\w./~$}-])[\w.-]+(?:/[\w.-]+)+")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
CODE = re.compile(r"^```c(?:pp)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def documents(root):
    yield from root.glob("*.md")
    yield from (root / "docs").rglob("*.md")
    yield from (root / "bench").rglob("*.md")


def anchors(document):
    """GitHub's names of the headings: lower case, without punctuation, - for spaces."""
    for heading in HEADING.findall(document.read_text()):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def missing_link(document, link, anchor):
    if "://" in link:
        return False
    target = document.parent / link if link else document
    return not target.exists() or (anchor and anchor not in anchors(target))


def missing(root, document):
    text = document.read_text()
    for link, anchor in LINK.findall(text):
        if missing_link(document, link, anchor):
            yield f"{link}#{anchor}" if anchor else link
    folders = {folder.name for folder in root.iterdir() if folder.is_dir()} - {"build"}
    folders.add("kvmesh")  # of include/
    for path in PATH.findall(text):
        path = path.rstrip(".")
        exists = any((top / path).exists() for top in (root, root / "include", document.parent))
        if path.split("/")[0] in folders and not exists and not is_target(root, path):
            yield path


def is_target(root, path):
    """True for a program that is named by where it is built."""
    return any((root / path).with_suffix(suffix).exists() for suffix in (".cpp", ".cu"))


def main():
    root = pathlib.Path(sys.argv[1])
    wrong = 0
    for document in documents(root):
        for name in missing(root, document):
            where = document.relative_to(root)
            print(f"docs: {where} refers to {name}, which does not exist", file=sys.stderr)
            wrong += 1
    for page, *programs in (("gpu.md", "gpu_program.cpp"),
                            ("engine.md", "engine_loop.cpp", "engine_graph.hpp"),
                            ("external.md", "external_program.cpp"), ("install.md", "c_program.c")):
        sources = [(root / "docs" / program).read_text() for program in programs]
        pieces = CODE.findall((root / "docs" / page).read_text())
        for piece in pieces or ["nothing"]:
            if not any(piece in source for source in sources):
                print(f"docs: {' and '.join(programs)} have no\n{piece}", file=sys.stderr)
                wrong += 1
    if wrong == 0:
        print("docs: all references are valid")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
