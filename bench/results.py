"""Reads what `kvmesh bench --json` wrote."""

import json
import sys


def load(paths):
    """One run per number of ranks, in this order; the rows of files with the same number are
    joined. Ends the program if a file is not a result."""
    runs = {}
    for path in paths:
        try:
            with open(path, encoding="utf-8") as file:
                run = json.load(file)
            if run["program"] != "kvmesh bench":
                raise ValueError("made by something else")
        except (OSError, ValueError, KeyError, TypeError) as error:
            sys.exit(f"{path}: not a result of kvmesh bench --json ({error})")
        if run["ranks"] in runs:
            runs[run["ranks"]]["rows"] += run["rows"]
        else:
            runs[run["ranks"]] = run
    return [runs[ranks] for ranks in sorted(runs)]


def tokens(count):
    """1048576 -> "1M", 8192 -> "8k", 1000 -> "1000"."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "k")):
        if count >= unit and count % unit == 0:
            return f"{count // unit}{name}"
    return str(count)
