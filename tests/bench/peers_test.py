"""bench/peers without a GPU: what the rows are, that kvmesh takes their flags and counts as they do, the
arithmetic of the tables, and run.py and combine.py with programs in kvmesh's and mpirun's place.

peers_test.py KVMESH PEERS_FOLDER [TEST ...]
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap
import unittest

KVMESH, FOLDER = sys.argv.pop(1), sys.argv.pop(1)
sys.path.insert(0, FOLDER)

import combine  # noqa: E402
import ours  # noqa: E402
import rows  # noqa: E402
import summary  # noqa: E402
import table  # noqa: E402
import warm  # noqa: E402

try:
    import torch
except ImportError:
    torch = None

TINY = ["--rotate-mib", "1", "--row-seconds", "0.02"]

# Stands in for kvmesh bench: takes a given time, and counts as the row does.
FAKE = """\
    #!{python}
    import json, sys
    sys.path.insert(0, {folder!r})
    import rows
    arguments = sys.argv[1:]
    row = next(row for row in rows.ROWS if " ".join(row.flags()) in " ".join(arguments))
    if row.key == {fails!r}:
        sys.exit("kvmesh: no such luck")
    spread = lambda median: {{"median": median, "p10": 0.9 * median, "p90": 1.1 * median}}
    top = lambda median: {{"seconds": spread(median), "rate": row.amount / median}}
    decodes = row.op == "decode"
    result = {{"rows": [{{"amount": row.amount + {off}, "unit": "bytes", "error": {error}, "seconds": spread(500e-6),
                          "ceiling": top(475e-6), "read": top(470e-6) if decodes else None}}],
               "skipped": [], "device": "a machine", "driver": "1", "versions": "none", "version": "2"}}
    open(arguments[arguments.index("--json") + 1], "w").write(json.dumps(result))
"""

FAKE_MPIRUN = """\
    #!{python}
    import os, sys
    flag, ranks, program, *arguments = sys.argv[1:]
    assert flag == "-np"
    os.execve(program, [program, *arguments], {{**os.environ, "RANKS": ranks}})
"""

# Stands in for kvmesh bench on several ranks: each way takes a time of its own for each token.
FAKE_COMBINE = """\
    #!{python}
    import json, os, sys
    if {fails}:
        sys.exit("kvmesh: no such luck")
    values = dict(zip(sys.argv[2::2], sys.argv[3::2]))
    spread = lambda median: {{"median": median, "p10": 0.9 * median, "p90": 1.1 * median}}
    rows = [{{"way": way, "batch": tokens, "seconds": spread(us * tokens * 1e-6)}}
            for tokens in map(int, values["--batch"].split(","))
            for way, us in zip(values["--ways"].split(","), (1, 2, 3))]
    shape = " ".join([sys.argv[1], values["--op"], values["--q-heads"], values["--repeats"], os.environ["RANKS"]])
    open(values["--json"], "w").write(json.dumps(
        {{"rows": rows, "device": shape, "driver": "1", "versions": "none", "version": "2"}}))
"""


def write_program(path, text, **values):
    path.write_text(textwrap.dedent(text).format(python=sys.executable, **values))
    path.chmod(0o755)


def row_of(key):
    return next(row for row in rows.ROWS if row.key == key)


class Rows(unittest.TestCase):
    def test_keys_are_different_and_select(self):
        keys = [row.key for row in rows.ROWS]
        self.assertEqual(len(set(keys)), len(keys))
        self.assertEqual(len({row.title + row.op for row in rows.ROWS}), len(keys))
        self.assertEqual(rows.select([]), rows.ROWS)
        self.assertEqual([row.key for row in rows.select(["decode-64x8192-32/8-q?", "decode-1x8192-*"])],
                         ["decode-1x8192-64/8"] + [f"decode-64x8192-32/8-q{q}" for q in (2, 4, 8)])
        with self.assertRaises(SystemExit) as ended:
            rows.select(["prefill-*", "sing-*"])
        self.assertIn("'sing-*'", str(ended.exception))

    def test_lengths(self):
        self.assertEqual(rows.expanded("65536,7*4096"), [65536] + 7 * [4096])
        listed = row_of("decode-65536+7x4096-64/8")
        self.assertEqual((listed.batch, listed.tokens, listed.title), (8, 65536 + 7 * 4096, "65536 and 7 × 4096, 64/8"))
        ragged = row_of("decode-16x8192-ragged-64/8")
        self.assertEqual(sorted(ragged.sequence_lengths), [512 * (2 * i + 1) for i in range(16)])
        self.assertNotEqual(ragged.sequence_lengths, sorted(ragged.sequence_lengths))
        for batch, context in ((3, 10), (4, 7), (1, 5)):
            odd = dataclasses.replace(ragged, batch=batch, context=context)
            self.assertEqual(sum(odd.sequence_lengths), batch * context)

    def test_amounts(self):
        decode = row_of("decode-64x8192-32/8")
        self.assertEqual(decode.bytes, 64 * 8192 * 8 * 128 * 2 * 2 + 2 * 64 * 32 * 128 * 2)
        self.assertEqual(decode.amount, decode.bytes)
        latent = row_of("decode-64x8192-16/1-d576/512-p64")
        self.assertEqual(latent.bytes, 64 * 8192 * 576 * 2 + 64 * 16 * (576 + 512) * 2)
        chunks = row_of("prefill-4x32768-32/8-q512")
        pairs = 4 * sum(32768 - i for i in range(512))
        self.assertEqual(chunks.amount, pairs * 32 * 4 * 128)

    def test_kvmesh_takes_the_flags_and_counts_alike(self):
        """On shapes of the same kinds that a CPU does at once."""
        for row in rows.ROWS:
            if row.is_listed:
                continue
            queries = row.queries if row.op == "decode" else 24 if row.has_own_queries else 64
            small = dataclasses.replace(row, batch=min(row.batch, 4), context=64, queries=queries)
            with self.subTest(row=row.key):
                measured = ours.measure(KVMESH, small, 3, "cpu", TINY)
                self.assertGreater(measured["seconds"]["median"], 0)
                self.assertIsNone(measured["gather"])  # a CPU has none

    def test_kvmesh_takes_lists_of_lengths(self):
        try:
            measured = ours.measure(KVMESH, rows.listed("100,3*40", 4, 2), 3, "cpu", TINY)
        except ours.Failed as failed:
            if "is none of even, ragged" in str(failed):
                self.skipTest("this kvmesh has no lists of lengths")
            raise
        self.assertGreater(measured["seconds"]["median"], 0)

    def test_warm_covers_what_the_rivals_ask_for(self):
        self.assertEqual(set(warm.modules_of(rows.ROWS)),
                         {("fa2", 64), ("fa2", 96), ("fa2", 128), ("fa2", 256), ("fa3", 128),
                          ("mla fa3", "576/512")})
        self.assertEqual(warm.modules_of([row_of("decode-1x8192-64/8")]), [("fa2", 128)])


class Arithmetic(unittest.TestCase):
    def test_summaries(self):
        self.assertEqual(summary.of_turns(range(20, 0, -1)), {"median": 10, "p10": 2, "p90": 18})
        self.assertEqual(summary.of_turns([3]), {"median": 3, "p10": 3, "p90": 3})
        rounds = [{"median": m, "p10": m - 1, "p90": m + 2} for m in (10, 30, 20)]
        self.assertEqual(summary.of_rounds(rounds), {"median": 20, "p10": 9, "p90": 32})

    def test_lines(self):
        def same(median):
            return [{"median": median, "p10": median, "p90": median}]

        row = {"op": "decode", "title": "a row", "amount": 2e9, "gather": same(0.4e-3), "read_rate": 4.6e12,
               "rounds": {"kvmesh": same(0.5e-3), "slow": same(0.8e-3), "fast": same(0.4e-3), "none": []}}
        lines = table.lines_of(row)
        self.assertEqual(list(lines), ["kvmesh", "fast", "slow"])
        self.assertAlmostEqual(lines["kvmesh"]["to_best_rival"], 1.25)
        self.assertAlmostEqual(lines["fast"]["to_best_rival"], 0.5)  # its own best rival is the slow one
        self.assertAlmostEqual(lines["slow"]["to_best_rival"], 2)
        self.assertAlmostEqual(lines["kvmesh"]["share_of_gather"], 0.8)
        self.assertAlmostEqual(lines["kvmesh"]["rate"], 4e12)
        text = table.markdown([row], ["a word"])
        self.assertIn("| a row | kvmesh | 500.0 | 500.0–500.0 | 4000 | 1.250 | 80.0 % |", text)
        self.assertIn("| *bare gather* | 400.0 | 400.0–400.0 | 5000 |", text)
        self.assertIn("| *streaming read* |  |  | 4600 |", text)
        self.assertTrue(text.endswith("- a word\n"))
        alone = table.lines_of({**row, "gather": [], "rounds": {"kvmesh": same(1)}})["kvmesh"]
        self.assertEqual((alone["to_best_rival"], alone["share_of_gather"]), (None, None))

    def test_combines_beside_the_fused_op(self):
        def of(*medians):
            rounds = [{"median": 1e-6 * m, "p10": 0.5e-6 * m, "p90": 2e-6 * m} for m in medians]
            return {tokens: rounds for tokens in combine.TOKENS}

        text = combine.markdown({"kvmesh peer": of(3, 5), combine.FUSED: of(8, 8)}, "here", None)
        self.assertIn("| rows | kvmesh peer | FlashInfer fused | peer ÷ FlashInfer fused |", text)
        self.assertIn("| 512 | 4.00 (1.50–10.0) | 8.00 (4.00–16.0) | 0.500 |", text)
        self.assertTrue(text.endswith("\n\nhere\n"))


class Run(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def run_with(self, *arguments, fails="", off=0, error=0.004):
        fake = self.folder / "kvmesh"
        write_program(fake, FAKE, folder=FOLDER, fails=fails, off=off, error=error)
        command = [sys.executable, pathlib.Path(FOLDER) / "run.py", "--kvmesh", fake, "--rivals", "-o",
                   self.folder / "out", *arguments]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)

    def report(self):
        return json.loads((self.folder / "out.json").read_text()), (self.folder / "out.md").read_text()

    def test_rounds_become_a_table_and_a_file(self):
        done = self.run_with("--rows", "decode-64x8192-32/8", "prefill-2x8192-32/8", "--rounds", "2")
        self.assertEqual(done.returncode, 0, done.stderr)
        report, text = self.report()
        self.assertIn(text, done.stdout)
        decode, prefill = report["rows"]
        self.assertEqual(len(decode["rounds"]["kvmesh"]), 2)
        self.assertAlmostEqual(decode["contestants"]["kvmesh"]["share_of_gather"], 0.95)
        self.assertEqual(prefill["gather"], [])
        self.assertIn("| 64 × 8192, 32/8 | kvmesh | 500.0 | 450.0–550.0 | 4297 | – | 95.0 % |", text)
        self.assertIn("| 2 × 8192, 32/8 | kvmesh | 500.0 | 450.0–550.0 | 2199 | – |", text)
        self.assertIn("a machine", text)

    def test_what_has_no_number_is_named(self):
        done = self.run_with("--rows", "decode-*-32/8-d*", fails="decode-64x8192-32/8-d96")
        self.assertEqual(done.returncode, 1)
        report, text = self.report()
        self.assertIn("decode-64x8192-32/8-d96: kvmesh: kvmesh: no such luck", text)
        self.assertEqual([bool(row["contestants"]) for row in report["rows"]], [True, False, True])

    def test_other_amounts_are_refused(self):
        done = self.run_with("--rows", "decode-1x8192-64/8", off=1)
        self.assertEqual(done.returncode, 1)
        self.assertIn("other shapes", self.report()[1])

    def test_a_wrong_output_has_no_number(self):
        for error in (0.03, None):
            done = self.run_with("--rows", "decode-1x8192-64/8", error=error)
            self.assertEqual(done.returncode, 1)
            self.assertIn("off by", self.report()[1])

    def test_errors_of_the_flags(self):
        for flags, words in ((["--rows", "sing"], "'sing'"), (["--rounds", "0"], "positive")):
            done = self.run_with(*flags)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(words, done.stderr)
            self.assertNotIn("Traceback", done.stderr)


class Combine(unittest.TestCase):
    """combine.py where FlashInfer's op has no torch."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        (self.folder / "torch.py").write_text("raise ImportError('no torch in this test')\n")
        write_program(self.folder / "mpirun", FAKE_MPIRUN)

    def run_with(self, *arguments, fails=False):
        write_program(self.folder / "kvmesh", FAKE_COMBINE, fails=fails)
        command = [sys.executable, pathlib.Path(FOLDER) / "combine.py", *arguments, "-o", self.folder / "out"]
        environment = {**os.environ, "PYTHONPATH": str(self.folder),
                       "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, env=environment)

    def test_rounds_of_all_ways_become_a_table_and_a_file(self):
        done = self.run_with("--kvmesh", self.folder / "kvmesh", "--ranks", "3", "--rounds", "2", "--turns", "7")
        self.assertEqual(done.returncode, 0, done.stderr)
        report, text = (json.loads((self.folder / "out.json").read_text()), (self.folder / "out.md").read_text())
        self.assertIn(text, done.stdout)
        self.assertIn("| rows | kvmesh peer | kvmesh nccl | kvmesh recipe |", text)
        self.assertIn("| 128 | 4.00 (3.60–4.40) | 8.00 (7.20–8.80) | 12.0 (10.8–13.2) |", text)
        self.assertIn("| 8192 | 256.0 (230.4–281.6) |", text)
        self.assertIn("bench combine 32 7 3, driver 1", report["where"])
        self.assertEqual(set(report["rounds"]), {"kvmesh peer", "kvmesh nccl", "kvmesh recipe"})
        self.assertEqual(len(report["rounds"]["kvmesh nccl"]["16"]), 2)
        self.assertEqual(report["problem"], "ImportError: no torch in this test")
        self.assertIn("No FlashInfer fused: ImportError: no torch in this test", text)

    def test_without_kvmesh_there_is_no_table(self):
        self.assertNotEqual(self.run_with("--kvmesh", self.folder / "kvmesh", fails=True).returncode, 0)
        self.assertIn("--kvmesh is required", self.run_with().stderr)
        self.assertFalse((self.folder / "out.md").exists())


@unittest.skipIf(torch is None, "no torch")
class Cases(unittest.TestCase):
    def make(self, **changes):
        from case import Case

        row = dataclasses.replace(rows.Row("decode", 3, 40, 4, 2, queries=3, dim=16), **changes)
        return Case(row, device="cpu", rotate=3 * 2 * 9 * 2 * 16 * 16 * 2)

    def test_pages_are_scattered_and_each_has_an_owner(self):
        case = self.make()
        self.assertEqual(sorted(case.page_indices()), list(range(9)))
        self.assertNotEqual(case.page_indices(), list(range(9)))
        self.assertEqual((case.page_indptr(), case.last_page_lengths()), ([0, 3, 6, 9], [8, 8, 8]))
        self.assertEqual(len(case.replicas), 3)
        table_of = self.make(lengths="20,33,1", queries=1).page_table()
        self.assertEqual([len(pages) for pages in table_of], [3, 3, 3])

    def test_latent_values_are_part_of_the_keys(self):
        case = self.make(latent=8)
        k, v = case.replicas[0]
        self.assertEqual((v.shape[-1], v.data_ptr()), (8, k.data_ptr()))
        self.assertEqual(len(case.replicas), 6)  # of half the bytes
        self.assertEqual(case.out.shape[-1], 8)
        self.assertEqual(case.expected(0, 0, 0, 0).shape, (8,))

    def test_an_output_is_checked_against_float64(self):
        from case import Wrong

        case = self.make()
        out = torch.empty_like(case.q)
        for sequence in range(3):
            k, v = (plane.repeat_interleave(2, 0).float() for plane in case.contiguous(sequence, 1))
            q = case.q[3 * sequence:3 * sequence + 3].transpose(0, 1).float()
            hidden = torch.ones(3, 40, dtype=torch.bool).triu(38)
            scores = (q @ k.transpose(1, 2) * case.scale).masked_fill(hidden, float("-inf"))
            out[3 * sequence:3 * sequence + 3] = (scores.softmax(-1) @ v).transpose(0, 1)
        case.check(out, 1)
        with self.assertRaises(Wrong):
            case.check(out, 0)  # another replica's
        with self.assertRaises(Wrong):
            case.check(torch.full_like(out, float("nan")), 1)

    def test_the_mask_of_a_chunk_hides_what_is_newer(self):
        from rivals import Cudnn

        mask = Cudnn.mask_of(rows.Row("prefill", 1, 5, 2, 1, queries=2), "cpu")[0, 0]
        self.assertEqual(torch.isinf(mask).tolist(), [[False] * 4 + [True], [False] * 5])
        self.assertIsNone(Cudnn.mask_of(rows.Row("prefill", 1, 5, 2, 1, queries=5), "cpu"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
