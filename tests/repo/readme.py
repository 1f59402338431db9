"""The program in the README is docs/first_program.cpp, letter for letter: that one is built and run.

readme.py ROOT
"""

import pathlib
import sys


def main():
    root = pathlib.Path(sys.argv[1])
    program = (root / "docs" / "first_program.cpp").read_text().rstrip("\n")
    if "```cpp\n" + program + "\n```" in (root / "README.md").read_text():
        print("readme: shows docs/first_program.cpp")
        return 0
    print("readme: README.md does not show docs/first_program.cpp as it is", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
