"""`kvmesh bench` from the outside, on tiny shapes: its numbers are consistent, its errors are one line,
and what draws and tabulates them can read them.

bench_test.py KVMESH MPIEXEC BENCH_FOLDER [TEST ...]

With KVMESH_BENCH_DEVICE=cuda on GPUs; without one all is skipped (exit status 77).
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

KVMESH, MPIEXEC, FOLDER = sys.argv.pop(1), sys.argv.pop(1), sys.argv.pop(1)

DEVICE = os.environ.get("KVMESH_BENCH_DEVICE", "cpu")
OPS = ["decode", "prefill", "append", "combine", "step", "plan"]
MOVES = ["move", "store", "load"]
HEADS, KV_HEADS, DIM, V_DIM = (4, 2, 16, 8) if DEVICE == "cpu" else (4, 2, 128, 64)
TINY = ["--q-heads", HEADS, "--kv-heads", KV_HEADS, "--dim", DIM, "--v-dim", V_DIM, "--page-size", 4,
        "--rotate-mib", 1, "--row-seconds", 0.02, "--repeats", 4]


def run(ranks, *arguments):
    command = [KVMESH, "bench", "--device", DEVICE, *map(str, arguments)]
    if ranks > 1:
        command = [MPIEXEC, "-q", "--oversubscribe", "--bind-to", "none", "-np", str(ranks), *command]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)


def run_on_two_hosts(*arguments):
    """Four ranks, of which the launcher says that two are on each host."""
    on_host = 'h=$((OMPI_COMM_WORLD_RANK / 2)); KVMESH_HOST=$h NCCL_HOSTID=$h exec "$0" "$@"'
    command = [MPIEXEC, "-q", "--oversubscribe", "--bind-to", "none", "-np", "4", "sh", "-c", on_host,
               KVMESH, "bench", "--device", DEVICE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120)


def script(name, *arguments):
    return subprocess.run([sys.executable, pathlib.Path(FOLDER) / name, *map(str, arguments)],
                          capture_output=True, text=True, errors="replace", timeout=60)


class Bench(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def bench(self, ranks, *arguments):
        """The table and the JSON."""
        file = self.folder / f"{ranks}.json"
        done = run(ranks, *TINY, "--json", file, *arguments)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout, json.loads(file.read_text())

    def expect_one_line(self, done, *words):
        self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
        lines = [line for line in done.stderr.splitlines() if line.startswith("kvmesh: ")]
        self.assertEqual(len(lines), 1, done.stderr)
        for word in words:
            self.assertIn(word, lines[0])

    def check_seconds(self, seconds):
        self.assertGreater(seconds["min"], 0)
        order = [seconds[name] for name in ("min", "p10", "median", "p90", "max")]
        self.assertEqual(order, sorted(order))

    def check_row(self, row, ranks=1):
        if row["op"] == "plan":  # moves nothing that has a ceiling
            self.check_seconds(row["seconds"])
            self.assertEqual((row["timing"], row["amount"]), ("host", 0))
            if DEVICE == "cuda":
                self.check_seconds(row["on_device"])
                self.assertGreaterEqual(row["on_device"]["median"], row["seconds"]["median"])
            return self.assertGreaterEqual(row["turns"], 3)
        compared = row["op"] in ("decode", "prefill") and ranks == 1
        self.assertEqual(row["error"] is not None, compared)
        if compared:
            self.assertLess(row["error"], 0.02)
            self.assertGreater(row["error"], 0)
        gathers = DEVICE == "cuda" and row["op"] == "decode"
        self.assertEqual(row["ceiling"]["name"] == "bare gather of the same pages", gathers)
        self.assertEqual(row["read"] is not None, gathers)
        if gathers:
            self.assertAlmostEqual(row["ceiling"]["amount"] / row["amount"], 1)
        for measured in (row, row["ceiling"], *([row["read"]] if gathers else [])):
            seconds = measured["seconds"]
            self.check_seconds(seconds)
            self.assertGreater(measured["amount"], 0)
            self.assertAlmostEqual(measured["rate"] * seconds["median"] / measured["amount"], 1)
        self.assertAlmostEqual(row["share"] * row["ceiling"]["rate"] / row["rate"], 1)
        self.assertIn(row["timing"], ["host"] if DEVICE == "cpu" or row["op"] in MOVES else ["graph", "stream"])
        if DEVICE == "cuda" and row["op"] in ("decode", "prefill", "append"):
            self.assertEqual(row["timing"], "graph")
        self.assertEqual(row["unit"], "operations" if row["op"] == "prefill" else "bytes")
        self.assertTrue(3 <= row["turns"] <= 4)

    def test_pages_move_beside_plain_copies(self):
        table, result = self.bench(1, "--op", ",".join(MOVES), "--batch", 3, "--context", 50, "--layers", 2)
        self.assertEqual([row["op"] for row in result["rows"]], MOVES)
        for row in result["rows"]:
            self.check_row(row)
            self.assertEqual(row["amount"], 3 * 13 * 2 * 4 * KV_HEADS * (DIM + V_DIM) * 2)  # pages of 4 tokens
            self.assertIn(f'{100 * row["share"]:.1f} %', table)
        self.expect_one_line(run(2, *TINY, "--op", "store"), "--op store", "one kv rank")

    def test_drafts_are_kept_in_place_within_a_page_and_across_pages(self):
        for ranks in (1, 2):
            table, result = self.bench(ranks, "--op", "compact", "--batch", 3, "--context", 50, "--layers", 2,
                                       "--queries", "1,4,16")
            rows = {(row["queries"], row["way"]): row for row in result["rows"]}
            self.assertEqual(list(rows), [(1, "stay"), (1, "within"), (1, "across"), (4, "stay"), (4, "within"),
                                          (4, "across"), (16, "stay"), (16, "across")])
            moved = {1: 0, 4: 1, 16: 3}  # of the paths 0; 0, 3; 0, 2, 6, 15
            for (drafts, way), row in rows.items():
                bytes_of_all = 3 * moved[drafts] * 2 * KV_HEADS * (DIM + V_DIM) * 2
                self.assertEqual(row["amount"], 0 if way == "stay" else bytes_of_all, (drafts, way))
                self.assertEqual(row["ceiling"] is not None, row["amount"] > 0 and ranks == 1)
                self.check_seconds(row["seconds"])
                self.assertEqual((row["timing"], row["layers"], row["turns"]), ("host", 2, 4))
            self.assertIn("compact/across", table)
        # Of a chain all are kept, where they are. The sequences keep their tokens for what comes after.
        _, result = self.bench(1, "--op", "compact,decode", "--batch", 2, "--context", 40, "--lengths", "ragged",
                               "--queries", 3, "--tree", 1)
        self.assertEqual([(row["op"], row["way"], row["amount"] > 0) for row in result["rows"]],
                         [("compact", way, False) for way in ("stay", "within", "across")]
                         + [("decode", "", True), ("decode", "tree", True)])
        for flags, words in ((["--shared-prefix", 8], ["--shared-prefix", "compact"]),
                             (["--window", 8], ["--window", "compact"])):
            self.expect_one_line(run(1, *TINY, "--op", "compact", *flags), *words)
        _, result = self.bench(1, "--op", "compact", "--batch", 1, "--context", 19)  # 16 drafts, a page of 4
        self.assertEqual(len(result["skipped"]), 1)

    def test_forks_copy_last_pages_and_states(self):
        for ranks, head_parallel in ((1, 1), (2, 1), (2, 2)):
            _, result = self.bench(ranks, "--op", "fork", "--batch", 3, "--context", "50,52", "--layers", 4, "--queries",
                                   "1,9", "--state-bytes", 64, "--head-parallel", head_parallel)
            self.assertEqual(result["state_bytes"], 64)
            rows = {(row["context"], row["queries"], row["way"]): row for row in result["rows"]}
            self.assertEqual(list(rows), [(context, queries, way) for context in (50, 52) for queries in (1, 9)
                                          for way in ("", "states")])
            for (context, _, way), row in rows.items():
                tokens = 3 * (context % 4) * KV_HEADS * (DIM + V_DIM) * 2
                states = 3 * 64 * head_parallel
                self.assertEqual(row["amount"], 2 * (tokens + states) if way else 4 * tokens)
                self.assertEqual(row["ceiling"] is not None, row["amount"] > 0 and ranks == head_parallel)
                self.check_seconds(row["seconds"])
                self.assertEqual((row["timing"], row["layers"]), ("host", 4))
        _, result = self.bench(1, "--op", "fork", "--batch", 1, "--context", 6, "--kv-dtype", "float8_e4m3", "--layers", 1)
        self.assertEqual([(row["way"], row["amount"]) for row in result["rows"]],
                         [("", 2 * KV_HEADS * (DIM + V_DIM + 8))])
        self.expect_one_line(run(1, *TINY, "--op", "fork", "--shared-prefix", 8), "--shared-prefix", "fork")

    def test_states_of_sequences_have_rows_of_their_own(self):
        for ranks, head_parallel in ((1, 1), (2, 1), (2, 2)):
            table, result = self.bench(ranks, "--op", "decode,step,plan", "--batch", 3, "--context", 100, "--queries", 2,
                                       "--state-bytes", 64, "--layers", 4, "--head-parallel", head_parallel, "--sinks")
            rows = {(row["op"], row["way"]): row for row in result["rows"]}
            self.assertEqual(list(rows), [("decode", ""), ("decode", "sinks"), ("step", ""), ("step", "sinks"),
                                          ("step", "states"), ("plan", ""), ("plan", "states")])
            self.assertEqual(rows["step", "states"]["amount"], rows["step", ""]["amount"])
            # Two of its four layers are attended to.
            self.assertEqual([rows["step", way]["layers"] for way in ("", "states")], [4, 2])
            for row in result["rows"]:
                self.check_row(row, ranks // head_parallel)
            self.assertIn("plan/states", table)
        # With a window a third of the layers is of each kind.
        _, result = self.bench(2, "--batch", 3, "--context", 100, "--window", 11, "--state-bytes", 64, "--layers", 6)
        self.assertEqual([(row["op"], row["way"], row["layers"]) for row in result["rows"]],
                         [("decode", "", 6), ("step", "", 6), ("step", "states", 4), ("plan", "", 6),
                          ("plan", "states", 6)])
        for flags, words in ((["--op", "decode"], ["--state-bytes", "--op step, plan and fork"]),
                             (["--shared-prefix", 8], ["--state-bytes", "--shared-prefix"]),
                             (["--layers", 4, "--kinds", 2], ["--kinds", "--state-bytes"]),
                             (["--state-bytes", -16], ["--state-bytes -16"]), (["--state-bytes", 24], ["--state-bytes 24", "16"]),
                             (["--state-bytes", 2**33], ["--state-bytes", "is over"])):
            states = [] if "--state-bytes" in flags else ["--state-bytes", 64]
            self.expect_one_line(run(1, *TINY, *states, *flags), *words)
        # Keys and values of a layer fit, with states of a layer they do not.
        _, result = self.bench(1, "--batch", 3, "--context", 100, "--op", "decode,step", "--state-bytes", 2**20,
                               "--memory-gib", 0.002)
        self.assertEqual([row["op"] for row in result["rows"]], ["decode"])
        self.assertIn("needs", result["skipped"][0]["reason"])

    def test_every_case_has_a_row_that_is_consistent(self):
        for ranks in (1, 2):
            table, result = self.bench(ranks, "--batch", "1,3", "--context", 100, "--queries", "1,8",
                                       "--scatter", "all", "--lengths", "even,ragged")
            cases = [(r["op"], r["batch"], r["context"], r["lengths"], r["queries"]) for r in result["rows"]]
            expected = [(op, b, 100, l, q) for b in (1, 3) for l in ("even", "ragged") for op in OPS
                        for q in (1, 8)]
            # A short sequence lives whole on one rank, and its own rows go to the other: never none.
            self.assertEqual(list(dict.fromkeys(cases)), expected)
            ways = {r["way"] for r in result["rows"] if r["op"] == "combine"}
            again = len(ways) - 1  # rows more for each combine: GPUs have several ways
            self.assertEqual(len(cases) - len(expected), again * sum(case[0] == "combine" for case in expected))
            self.assertEqual((result["ranks"], result["kv_parallel"]), (ranks, ranks))
            self.assertEqual(result["dtype"], "bfloat16")
            self.assertIn("--lengths even,ragged", result["command"])
            for row in result["rows"]:
                self.check_row(row, ranks)
                if row["op"] != "plan":
                    self.assertIn(f'{100 * row["share"]:.1f} %', table)
            self.assertEqual(sum(line.startswith(tuple(OPS)) for line in table.splitlines()), len(cases))

    def test_page_tables_have_rows_beside_the_caches(self):
        for ranks, output in ((1, "partial"), (1, "final"), (2, "partial")):
            _, result = self.bench(ranks, "--batch", 3, "--context", 100, "--queries", "1,8", "--op", "decode,prefill,append",
                                   "--external", "--nhd", "--output", output)
            amounts = {}
            for row in result["rows"]:
                if row["op"] == "append":
                    self.assertFalse(row.get("way"))
                    continue
                amounts.setdefault((row["op"], row["queries"], row["amount"]), []).append(row["way"])
                if ranks == 1:
                    self.assertLess(row["error"], 0.02)
            self.assertEqual(list(amounts.values()), [["", "tables", "nhd"]] * 4)
        self.expect_one_line(run(1, *TINY, "--external", "--shared-prefix", 8), "--external")

    def test_sinks_lists_trees_mods_and_fixed_splits_have_rows_of_their_own(self):
        manners = ["--sinks", "--token-list", 6, "--tree", 2, "--score-mod", "--fixed-split", 128]
        for ranks, output in ((1, "partial"), (1, "final"), (2, "partial")):
            _, result = self.bench(ranks, "--batch", 3, "--context", 100, "--queries", 7, "--op",
                                   "decode,prefill,step,append", "--output", output, *manners)
            rows = {(row["op"], row["way"]): row for row in result["rows"]}
            self.assertEqual(list(rows), [("decode", ""), ("decode", "sinks"), ("decode", "list"), ("decode", "tree"),
                                          ("decode", "mod"), ("decode", "fixed"), ("prefill", ""), ("prefill", "sinks"),
                                          ("prefill", "mod"), ("prefill", "fixed"), ("step", ""), ("step", "sinks"),
                                          ("step", "tree"), ("step", "mod"), ("step", "fixed"), ("append", "")])
            for (op, way), row in rows.items():
                if way != "list":
                    self.assertEqual(row["amount"], rows[op, ""]["amount"])
                if ranks == 1 and op in ("decode", "prefill"):
                    self.assertLess(row["error"], 0.02)
            token, listed = KV_HEADS * (DIM + V_DIM) * 2, 3 * 7 * 6
            self.assertEqual(rows["decode", "list"]["amount"],
                             rows["decode", ""]["amount"] - (3 * 100 - listed) * token)
        for flag, words in ((["--sinks", "--shared-prefix", 8], ["--sinks", "--shared-prefix"]),
                            (["--token-list", 4, "--reproducible"], ["--token-list", "--reproducible"]),
                            (["--fixed-split", 128, "--reproducible"], ["--fixed-split", "--reproducible"]),
                            (["--fixed-split", 192], ["--fixed-split 192", "a multiple of 128"]),
                            (["--tree", -1], ["--tree -1"]), (["--token-list", 2**21], ["--token-list", "is over"])):
            self.expect_one_line(run(1, *TINY, *flag), *words)
        early = run(1, "--fixed-split", 128, "--page-size", 48)
        self.expect_one_line(early, "--fixed-split 128", "a multiple of 384")
        self.assertEqual(early.stdout, "")

    def test_steps_of_a_plan_with_limits(self):
        for ranks in (1, 2):
            _, result = self.bench(ranks, "--batch", 3, "--context", 100, "--queries", "1,5", "--lengths", "even,ragged",
                                   "--op", "decode,step", "--limits")
            rows = {(row["lengths"], row["op"], row["queries"], row["way"]): row for row in result["rows"]}
            self.assertEqual(list(rows), [(lengths, op, queries, way) for lengths in ("even", "ragged")
                                          for op, ways in (("decode", [""]), ("step", ["", "limits"]))
                                          for queries in (1, 5) for way in ways])
            for (lengths, op, queries, way), row in rows.items():
                self.check_row(row, ranks)
                if way == "limits":
                    self.assertEqual(row["amount"], rows[lengths, op, queries, ""]["amount"])
                    if DEVICE == "cuda" and ranks == 1:
                        self.assertEqual(row["timing"], "graph")
        # Pages that a window gave up are not wanted again.
        _, result = self.bench(1, "--batch", 2, "--context", 40, "--op", "step", "--limits", "--window", 8)
        self.assertEqual([row["way"] for row in result["rows"]], ["", "limits"])
        for flags, words in ((["--op", "decode"], ["--limits", "--op step"]),
                             (["--shared-prefix", 8], ["--limits", "--shared-prefix"]),
                             (["--op", "step", "--queries", "1,33"], ["--limits", "33 queries of 2 query heads", "64"])):
            self.expect_one_line(run(1, *TINY, "--limits", *flags), *words)

    def test_a_window_of_every_second_layer(self):
        for ranks in (1, 2):
            table, result = self.bench(ranks, "--batch", 3, "--context", 100, "--queries", 2, "--window", 11,
                                       "--layers", 3)
            self.assertEqual([row["op"] for row in result["rows"]], ["decode", "step", "plan"])
            self.check_row(result["rows"].pop())
            self.assertEqual(result["window"], 11)
            self.assertIn("a window of 11 in every second layer", table)
            token, rows = KV_HEADS * (DIM + V_DIM) * 2, ranks * 3 * 2 * HEADS
            read = 3 * (100 + 12) / 2 * token + rows * (2 * DIM + 4 * (V_DIM + 1))
            for row, appended in zip(result["rows"], (0, 2 * 3 * 2 * token)):
                self.assertEqual(row["amount"], read + appended)
                self.assertEqual((row["layers"], row["calls"] % 2), (2, 0))
                self.assertEqual(row["ceiling"]["name"], "streaming read")
            if ranks == 1:
                self.assertLess(result["rows"][0]["error"], 0.02)
        for flags, words in ((["--op", "decode,combine"], ["--window", "--op combine"]),
                             (["--queries", "1,2"], ["--window", "--queries"]), (["--queries", 65], ["--queries 65 is over 64"]),
                             (["--external"], ["--window", "--external"]),
                             (["--layers", 4, "--kinds", 2], ["--kinds", "--window"])):
            self.expect_one_line(run(1, *TINY, "--window", 8, *flags), *words)
        # Whatever comes first: a plan lengthens the sequences, whose windows then give up pages.
        _, result = self.bench(1, "--batch", 2, "--context", 40, "--window", 8, "--op", "plan,decode,plan,step",
                               "--lengths", "even,ragged")
        self.assertEqual([row["op"] for row in result["rows"]], 2 * ["plan", "decode", "plan", "step"])
        self.expect_one_line(run(1, *TINY, "--window", -1), "--window -1")
        _, result = self.bench(1, "--batch", 2, "--context", 40, "--window", 8, "--reproducible")
        self.assertEqual([row["op"] for row in result["rows"]], ["step", "plan"])

    def test_amounts(self):
        for ranks in (1, 2):
            _, result = self.bench(ranks, "--batch", 2, "--context", 10, "--queries", 4, "--op",
                                   "decode,prefill,append,combine", "--head-parallel", ranks)
            amounts = {row["op"]: row["amount"] for row in result["rows"]}
            token, rows = KV_HEADS * (DIM + V_DIM) * 2, 2 * 4 * HEADS
            partial = 4 * (V_DIM + 1)
            self.assertEqual(amounts["decode"], 2 * 10 * token + rows * (2 * DIM + partial))
            pairs = 2 * (7 + 8 + 9 + 10)
            self.assertEqual(amounts["prefill"], pairs * HEADS * 2 * (DIM + V_DIM))
            self.assertEqual(amounts["append"], 2 * 2 * 4 * token)
            self.assertEqual(amounts["combine"], rows * (partial + 2 * V_DIM))

    def test_the_gather_of_queries_is_measured_if_asked_for(self):
        table, result = self.bench(2, "--batch", 2, "--context", 10, "--queries", 4, "--op", "gather")
        self.assertTrue(result["rows"])
        for row in result["rows"]:
            self.check_row(row, 2)
            self.assertEqual(row["amount"], 2 * 4 * HEADS * 2 * DIM)  # each head's queries, to one peer
            self.assertEqual(row["ceiling"]["name"], "exchange of as many bytes")
            self.assertIn(f'{100 * row["share"]:.1f} %', table)
        self.expect_one_line(run(1, *TINY, "--op", "gather"), "--op gather", "several kv ranks")

    def test_combines_count_the_bytes_between_hosts(self):
        """Two queries of a sequence on all four ranks: each host owns the rows of two of four heads."""
        done = run_on_two_hosts(*TINY, "--lengths", 3000, "--queries", 2, "--op", "combine,step", "--json",
                                self.folder / "hosts.json")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        rows = json.loads((self.folder / "hosts.json").read_text())["rows"]
        combines = [row for row in rows if row["op"] == "combine" and row["way"] != "recipe"]
        self.assertTrue(combines)
        once = 2 * HEADS * 4 * (V_DIM + 1)  # each row leaves the host that does not own it
        for row in rows:
            self.assertEqual(row.get("between_hosts"),
                             {"flat": 2 * once, "hierarchical": once} if row in combines else None)
        self.assertRegex(done.stdout, r"combine.* to other hosts [\d.]+ kB, merged within hosts first [\d.]+ kB")
        self.assertIn("To other hosts:", done.stdout)
        table, result = self.bench(2, "--batch", 1, "--context", 40, "--op", "combine")
        self.assertNotIn("between_hosts", result["rows"][0])
        self.assertNotIn("other hosts", table)

    def test_float8_pages(self):
        """Tensors keep --dtype; pages take a byte an element and two scales a token and head."""
        table, result = self.bench(1, "--batch", 2, "--context", 10, "--queries", 4, "--op", "decode,append",
                                   "--kv-dtype", "float8_e4m3")
        token, rows = KV_HEADS * (DIM + V_DIM + 8), 2 * 4 * HEADS
        decode, append = result["rows"]
        self.assertEqual(decode["amount"], 2 * 10 * token + rows * (2 * DIM + 4 * (V_DIM + 1)))
        self.assertEqual(append["amount"], 2 * 4 * (token + KV_HEADS * (DIM + V_DIM) * 2))
        self.assertEqual((result["dtype"], result["kv_dtype"]), ("bfloat16", "float8_e4m3"))
        self.assertIn("bfloat16, float8_e4m3 kv pages of", table)
        for scales in "per_head", "per_tensor":  # which no page holds
            _, result = self.bench(1, "--batch", 2, "--context", 10, "--queries", 4, "--op", "decode",
                                   "--kv-dtype", "float8_e4m3", "--kv-scales", scales)
            self.assertEqual(result["rows"][0]["amount"], decode["amount"] - 2 * 10 * KV_HEADS * 8)
            self.assertLess(result["rows"][0]["error"], 1e-2)
            self.assertEqual(result["kv_scales"], scales.replace("_", " "))

    def test_plot_of_a_replay(self):
        if subprocess.run([sys.executable, "-c", "import matplotlib"], capture_output=True).returncode != 0:
            self.skipTest("no matplotlib")
        done = script("plot_replay.py", "--kvmesh", KVMESH, "-o", self.folder / "hits", "--requests", 40,
                      "--capacity", "200000,400000", "--policy", "lru,2q", "--generate", "azure-code")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual((self.folder / "hits.png").read_bytes()[:4], b"\x89PNG")
        self.assertIn("svg", xml.etree.ElementTree.parse(self.folder / "hits.svg").getroot().tag)

    def test_final_output(self):
        """The merged rows are written, in the model's dtype, and no LSE; arithmetic stays as it is."""
        _, partial = self.bench(1, "--batch", 2, "--context", 10, "--queries", 4, "--op", "prefill")
        table, result = self.bench(1, "--batch", 2, "--context", 10, "--queries", 4, "--op", "decode,prefill",
                                   "--output", "final")
        decode, prefill = result["rows"]
        token, rows = KV_HEADS * (DIM + V_DIM) * 2, 2 * 4 * HEADS
        self.assertEqual(decode["amount"], 2 * 10 * token + rows * 2 * (DIM + V_DIM))
        self.assertEqual(prefill["amount"], partial["rows"][0]["amount"])
        self.assertEqual((partial["output"], result["output"]), ("partial", "final"))
        self.assertIn("final output", table)
        for row in result["rows"]:
            self.check_row(row)
        self.expect_one_line(run(2, "--output", "final"), "--output final", "one kv rank")

    def test_reproducible_caches_measure_whole_steps(self):
        _, result = self.bench(2, "--batch", 1, "--context", 40, "--queries", 4, "--reproducible")
        self.assertEqual([row["op"] for row in result["rows"]], ["append", "step", "plan"])
        for op in ("decode", "combine"):
            self.expect_one_line(run(1, "--op", op, "--reproducible"), "--op " + op, "--output final")

    def test_amounts_of_ragged_batches(self):
        """Of 3, 9, 15, 21, 27 and 33 tokens with 12 queries: what is shorter is queried whole."""
        lengths, queries = (3, 9, 15, 21, 27, 33), 12
        fresh = [min(length, queries) for length in lengths]
        for ranks in (1, 2):
            _, result = self.bench(ranks, "--batch", 6, "--context", 18, "--queries", queries, "--op",
                                   "decode,prefill,append,combine", "--head-parallel", ranks,
                                   "--lengths", "ragged")
            amounts = {row["op"]: row["amount"] for row in result["rows"]}
            token, rows = KV_HEADS * (DIM + V_DIM) * 2, sum(fresh) * HEADS
            partial = 4 * (V_DIM + 1)
            self.assertEqual(amounts["decode"], 6 * 18 * token + rows * (2 * DIM + partial))
            pairs = sum(length - i for length, new in zip(lengths, fresh) for i in range(new))
            self.assertEqual(amounts["prefill"], pairs * HEADS * 2 * (DIM + V_DIM))
            self.assertEqual(amounts["append"], 2 * sum(fresh) * token)
            self.assertEqual(amounts["combine"], rows * (partial + 2 * V_DIM))

    def test_amounts_of_listed_batches(self):
        """Of one long and two short sequences, of which more is queried than they have."""
        lengths, queries = (40, 6, 6), 8
        fresh = [min(length, queries) for length in lengths]
        for ranks in (1, 2):
            table, result = self.bench(ranks, "--lengths", "40,2*6", "--queries", queries, "--op", "decode,prefill",
                                       "--head-parallel", ranks)
            rows = {row["op"]: row for row in result["rows"]}
            token, partial = KV_HEADS * (DIM + V_DIM) * 2, 4 * (V_DIM + 1)
            self.assertEqual(rows["decode"]["amount"],
                             sum(lengths) * token + sum(fresh) * HEADS * (2 * DIM + partial))
            pairs = sum(length - i for length, new in zip(lengths, fresh) for i in range(new))
            self.assertEqual(rows["prefill"]["amount"], pairs * HEADS * 2 * (DIM + V_DIM))
            for row in rows.values():
                self.assertEqual((row["batch"], row["context"], row["lengths"]), (3, 17, "40,2*6"))
            self.assertIn("listed", table)
        _, result = self.bench(1, "--lengths", "30,even,3*5", "--batch", 2, "--context", 9, "--op", "append",
                               "--queries", 1)
        self.assertEqual([(r["lengths"], r["batch"]) for r in result["rows"]], [("even", 2), ("30,3*5", 4)])
        _, result = self.bench(1, "--lengths", "30/2*9,4/3*5", "--op", "append", "--queries", 1)
        self.assertEqual([(r["lengths"], r["batch"]) for r in result["rows"]],
                         [("30", 1), ("2*9,4", 3), ("3*5", 3)])
        self.assertEqual(script("tables.py", self.folder / "1.json").returncode, 0)

    def test_what_has_no_room_is_left_out(self):
        table, result = self.bench(1, "--batch", "1,2000", "--context", "32", "--op", "decode,append",
                                   "--queries", "1,64", "--memory-gib", 0.001)
        self.assertEqual([(r["op"], r["batch"]) for r in result["rows"]], [("decode", 1), ("append", 1)])
        reasons = [skip["reason"] for skip in result["skipped"]]
        self.assertEqual(sum("needs" in reason for reason in reasons), 2)
        self.assertEqual(sum("more queries than the sequences" in reason for reason in reasons), 4)
        self.assertIn("needs 6.", table)

    def test_pools_larger_than_the_memory_are_refused(self):
        """Whatever --memory-gib allows."""
        if DEVICE == "cpu":
            self.expect_one_line(run(1, *TINY, "--batch", 1, "--context", 2**34, "--op", "append", "--queries", 1,
                                     "--memory-gib", 2**20), "KV pools of 1 rank on", "are available")

    def test_ragged_batches_need_tokens_in_their_longest_sequence(self):
        """Planning, which lengthens all alike, needs them in the shortest."""
        _, result = self.bench(1, "--batch", 4, "--context", 32, "--op", "decode,plan", "--queries", "3,56,57",
                               "--lengths", "ragged")  # 8, 24, 40 and 56 tokens
        self.assertEqual([(r["op"], r["queries"]) for r in result["rows"]], [("decode", 3), ("decode", 56)])
        self.assertEqual([(r["op"], r["lengths"], r["queries"]) for r in result["skipped"]],
                         [("decode", "ragged", 57)] + [("plan", "ragged", q) for q in (3, 56, 57)])

    def test_errors_of_the_flags(self):
        for ranks in (1, 2):
            self.expect_one_line(run(ranks, "--op", "decode,sing"), "'sing'", "prefill")
            self.expect_one_line(run(ranks, "--json", "/nowhere/out.json"), "/nowhere/out.json")
        for flags, words in ((["--batch", "1,0"], ["--batch 0"]), (["--scatter", "x"], ["'x'", "tokens"]),
                             (["--output", "x"], ["--output 'x'", "partial, final"]),
                             (["--strategy", "x"], ["all_to_all"]), (["--ways", "x"], ["'x'", "recipe"]),
                             (["--ways", "peer"], ["these ranks"]), (["--travels-as", "int4"], ["float16"]), (["--dtype", "int4"], ["float16"]),
                             (["--dtype", "float8_e4m3"], ["--kv-dtype"]), (["--kv-dtype", "fp4"], ["float8_e4m3"]),
                             (["--repeats", "0"], ["--repeats 0"]), (["--batch", "many"], ["--batch"]),
                             (["--q-heads", "3", "--kv-heads", "2"], ["3 query heads"]),
                             (["--layers", "-1"], ["--layers -1"]),
                             (["--lengths", "odd"], ["--lengths 'odd'", "even, ragged"]),
                             (["--lengths", "7*"], ["--lengths '7*'"]), (["--lengths", "5,-3"], ["'-3'"]),
                             (["--lengths", "0*5"], ["'0*5'", "no lengths from 1"]), (["--lengths", "2*3*4"], ["'2*3*4'"]),
                             (["--lengths", f"{10**9}*5"], ["--lengths", "is over"]),
                             (["--lengths", f"1,{10**12}"], ["--lengths", "is over"]),
                             (["--context", 2**53], ["--context", "is over"]),
                             (["--batch", 10**12], ["--batch", "is over"]),
                             (["--dim", 2**31 - 1], ["--dim", "is over"]),
                             (["--rotate-mib", 2**43], ["--rotate-mib", "is over"]),
                             (["--memory-gib", "inf"], ["--memory-gib", "is over"])):
            self.expect_one_line(run(1, *flags), *words)

    def test_plot_and_tables(self):
        for ranks in (1, 2):
            self.bench(ranks, "--batch", "1,3", "--context", "40,100", "--op", "decode,combine",
                       "--lengths", "even,ragged")
        files = [self.folder / "2.json", self.folder / "1.json"]
        done = script("plot.py", *files, "-o", self.folder / "share.svg")
        self.assertEqual(done.returncode, 0, done.stderr)
        picture = xml.etree.ElementTree.parse(self.folder / "share.svg").getroot()
        name = "{http://www.w3.org/2000/svg}"
        lines = 2 * 2 * 2 * 2  # ops, lengths, ranks, batches
        self.assertEqual(len(picture.findall(f".//{name}polyline")), lines)
        self.assertEqual(len(picture.findall(f".//{name}circle")), 2 * lines)
        words = [text.text for text in picture.iter(f"{name}text")]
        for word in ("decode, 1 rank", "decode, ragged, 1 rank", "combine, 2 ranks", "batch 3", "100", "80 %"):
            self.assertIn(word, words)

        done = script("tables.py", *files)
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = {ranks: json.loads((self.folder / f"{ranks}.json").read_text())["rows"] for ranks in (1, 2)}
        times = [rows[ranks][0]["seconds"]["median"] for ranks in (1, 2)]
        line = next(line for line in done.stdout.splitlines() if line.startswith("| 1 | 40 | 1 |"))
        self.assertTrue(line.endswith(f"| {100 * times[0] / times[1] / 2:.0f} % |"), line)
        for cells in ("| 3 | 40 | 1 |", "| 3 | 40 ragged | 1 |"):
            self.assertEqual(sum(line.startswith(cells) for line in done.stdout.splitlines()), 2)  # ops
        self.assertEqual(done.stdout.count("efficiency"), 1)  # a combine has none

    def test_scripts_refuse_other_files(self):
        other = self.folder / "other.json"
        for text in ("[1]", "{", '{"program": "x"}'):
            other.write_text(text)
            for done in (script("tables.py", other), script("plot.py", other, "-o", self.folder / "x.svg"),
                         script("plot_replay.py", "--results", other, "-o", self.folder / "x")):
                self.assertEqual(done.returncode, 1)
                self.assertIn("other.json: not a result of kvmesh ", done.stderr)
                self.assertNotIn("Traceback", done.stderr)


def has_gpu():
    told = subprocess.run([KVMESH, "info"], capture_output=True, text=True, timeout=60)
    return "cpu, 0 GPUs" not in told.stdout


if __name__ == "__main__":
    if DEVICE == "cuda" and not has_gpu():
        print("skipped: no GPU here")
        sys.exit(77)
    unittest.main(verbosity=2)
