"""Runs the cells of docs/notebook.md on four ranks that are threads, and writes the page and its pictures
anew; with --check it writes nothing and fails where they differ."""

import contextlib
import pathlib
import re
import sys
import tempfile

import kvmesh

FOLDER = pathlib.Path(__file__).resolve().parent
CELL = re.compile(r"```python\n(.*?)```\n(?:\n```\n(.*?)```\n)?", re.DOTALL)


def run_cells(text):
    """The page with what its cells print now."""
    outputs = []

    def rank(mesh):
        printed = []
        names = {"mesh": mesh, "print": lambda *values: printed.append(" ".join(map(str, values)))}
        for cell in CELL.finditer(text):
            printed.clear()
            exec(cell[1], names)
            if mesh.rank == 0:
                outputs.append("".join(line + "\n" for line in printed))
        names["cache"].check_replicas()
        names["step"].close()
        names["cache"].close()

    kvmesh.run_on_threads(4, rank)
    left = iter(outputs)

    def anew(cell):
        printed = next(left)
        return f"```python\n{cell[1]}```\n" + (f"\n```\n{printed}```\n" if printed else "")

    return CELL.sub(anew, text)


def main(check):
    page = FOLDER / "notebook.md"
    text = page.read_text()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        files = {"notebook.md": run_cells(text)}
        files |= {path.name: path.read_text() for path in pathlib.Path(folder).glob("*.svg")}
    for name, new in files.items():
        if not check:
            (FOLDER / name).write_text(new)
        elif not (FOLDER / name).exists() or (FOLDER / name).read_text() != new:
            sys.exit(f"docs/{name} is not what docs/notebook.py writes")


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
