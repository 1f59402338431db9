"""What the README shows is what is built, run and checked.

  - Its program is docs/first_program.cpp, letter for letter: that one is built and run.
  - The two commands for a fresh machine are there, the second as .ci/run runs it.

readme.py ROOT
"""

import pathlib
import re
import sys


def problems(root):
    readme = (root / "README.md").read_text()
    program = (root / "docs" / "first_program.cpp").read_text().rstrip("\n")
    if f"```cpp\n{program}\n```" not in readme:
        yield "README.md does not show docs/first_program.cpp as it is"
    ci = re.findall(r"^exec (\S.*)$", (root / ".ci" / "run").read_text(), re.MULTILINE)
    section = readme.split("## Two commands", 1)[-1].split("\n## ", 1)[0]
    block = section.split("```")[1] if "```" in section else ""
    commands = [line.split("#")[0].strip() for line in block.strip().splitlines()]
    if commands != ["./launch/quickstart", *ci]:
        yield f"README.md's two commands are {commands}, .ci/run runs {ci}"


def main():
    found = list(problems(pathlib.Path(sys.argv[1])))
    for problem in found:
        print(f"readme: {problem}", file=sys.stderr)
    if not found:
        print("readme: shows docs/first_program.cpp, and what .ci/run runs")
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main())
