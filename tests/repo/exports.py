#!/usr/bin/env python3
"""Checks what a shared library offers: the C ABI (kvmesh_*) and the C++ API (names in namespace
kvmesh that a public header declares), nothing else. Usage: exports.py LIBRARY INCLUDE_FOLDER
"""

import pathlib
import re
import subprocess
import sys

CXX_NAME = re.compile(
    r"(?:typeinfo for |typeinfo name for |vtable for |.*thunk to )?(?:kvmesh::)((?:mods::)?\w+)")


def exported(library):
    lines = subprocess.run(["nm", "-DC", "--defined-only", library], check=True,
                           capture_output=True, text=True).stdout.splitlines()
    return [line.split(maxsplit=2)[2] for line in lines if len(line.split(maxsplit=2)) == 3]


def main():
    library, folder = sys.argv[1:]
    headers = "\n".join(path.read_text() for path in pathlib.Path(folder).rglob("*.h*"))
    words = set(re.findall(r"\w+", headers))
    symbols = exported(library)
    strangers = []
    for symbol in symbols:
        match = CXX_NAME.match(symbol)
        name = match.group(1).split("::")[-1] if match else symbol
        if name not in words or not (match or symbol.startswith("kvmesh_")):
            strangers.append(symbol)
    # A program needs these; that they are there shows that the list above is one.
    missing = [name for name in ("kvmesh::KvCache::plan(", "typeinfo for kvmesh::InvalidArgument")
               if not any(symbol.startswith(name) for symbol in symbols)]
    for symbol in strangers:
        print(f"{library} offers {symbol}, which no public header declares")
    for name in missing:
        print(f"{library} does not offer {name}")
    sys.exit(1 if strangers or missing else 0)


if __name__ == "__main__":
    main()
