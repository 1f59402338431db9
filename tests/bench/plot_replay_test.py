"""bench/plot_replay.py without matplotlib: what it reads of a replay, the lines that it draws, and what is
left where it cannot draw. A module in matplotlib's place writes down what it is given.

plot_replay_test.py KVMESH BENCH_FOLDER [TEST ...]
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

KVMESH, FOLDER = sys.argv.pop(1), sys.argv.pop(1)
sys.path.insert(0, FOLDER)

import plot_replay  # noqa: E402

FLAGS = ["--requests", "300", "--capacity", "100000,400000,200000", "--policy", "lru,hits", "--ranks", "2"]
BOUND = "Belady's bound"

# Keeps the lines, and writes them as each of the files.
PYPLOT = """\
import json

class Axes:
    def __init__(self):
        self.lines = {}
    def plot(self, x, y, label, **style):
        self.lines[label] = [list(x), list(y)]
    def __getattr__(self, name):
        return lambda *given, **named: None

class Figure:
    def savefig(self, path, **how):
        with open(path, "w") as file:
            json.dump(axes.lines, file)

axes = Axes()

def subplots(**how):
    return Figure(), axes
"""


class PlotReplay(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        cls.results = cls.folder / "replay.json"
        subprocess.run([KVMESH, "replay", *FLAGS, "--json", cls.results], check=True, capture_output=True,
                       timeout=60)

    def stand_in(self, name, init, pyplot=""):
        """A folder with a module `matplotlib`."""
        package = self.folder / name / "matplotlib"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(init)
        (package / "pyplot.py").write_text(pyplot)
        return package.parent

    def plot(self, stand_in, *arguments):
        return subprocess.run([sys.executable, pathlib.Path(FOLDER) / "plot_replay.py", *map(str, arguments)],
                              env={**os.environ, "PYTHONPATH": str(stand_in)}, capture_output=True, text=True,
                              timeout=60)

    def test_a_line_for_each_order_and_the_bound_last(self):
        result = plot_replay.load(self.results)
        lines = plot_replay.series(result)
        self.assertEqual(list(lines), ["lru", "hits", BOUND])
        for row in result["rows"]:
            tokens = row["capacity_tokens"]
            self.assertEqual(lines[row["policy"]][tokens], 100 * row["hit_rate"])
            self.assertLessEqual(lines[row["policy"]][tokens], lines[BOUND][tokens])
        for points in lines.values():
            self.assertEqual(sorted(points), [100000, 200000, 400000])
        self.assertGreater(lines[BOUND][100000], 0)
        self.assertLess(lines["lru"][100000], lines[BOUND][100000])

    def test_draws_both_files_from_the_least_capacity_on(self):
        stand_in = self.stand_in("draws", "def use(backend): pass\n", PYPLOT)
        done = self.plot(stand_in, "--results", self.results, "-o", self.folder / "drawn")
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = plot_replay.series(plot_replay.load(self.results))
        for suffix in "png", "svg":
            drawn = json.loads((self.folder / f"drawn.{suffix}").read_text())
            self.assertEqual(list(drawn), list(lines))
            for name, (tokens, rates) in drawn.items():
                self.assertEqual(tokens, [100000, 200000, 400000])
                self.assertEqual(rates, [lines[name][count] for count in tokens])

    def test_keeps_the_numbers_where_it_cannot_draw(self):
        stand_in = self.stand_in("absent", "raise ImportError\n")
        done = self.plot(stand_in, "--kvmesh", KVMESH, "-o", self.folder / "kept", *FLAGS)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("needs matplotlib", done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        kept = plot_replay.load(self.folder / "kept.json")
        self.assertEqual(plot_replay.series(kept), plot_replay.series(plot_replay.load(self.results)))


if __name__ == "__main__":
    unittest.main(verbosity=2)
