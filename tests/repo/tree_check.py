"""The main program of a check of the source tree."""

import pathlib
import sys


def run(usage, check_tree, self_test, praise):
    """Prints the problems of the tree that the command line names, or with --self-test those of the
    check itself, and ends with 1 if there are some."""
    if len(sys.argv) != 2:
        sys.exit(usage)
    is_self_test = sys.argv[1] == "--self-test"
    problems = self_test() if is_self_test else check_tree(pathlib.Path(sys.argv[1]))
    print("\n".join(problems) or praise)
    sys.exit(1 if problems else 0)
