"""`kvmesh generate` from the outside, on a miniature model: the same text on any number of ranks, and
every user's error one line, exit status 2, no hang.

program_test.py KVMESH MAKE_TINY_MODEL MPIEXEC
"""

import json
import pathlib
import re
import shutil
import struct
import tempfile
import unittest

from program import ProgramTest, run, run_without_mpi

SAMPLE_TRACE = pathlib.Path(__file__).parent.parent / "replay" / "sample_trace.jsonl"


class Generate(ProgramTest):
    @staticmethod
    def with_fewer_rows(model):
        """The embeddings lack the last token's row."""
        at = model.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 8
        rows = struct.unpack_from("<Q", model, at)[0]
        return model[:at] + struct.pack("<Q", rows - 1) + model[at + 8 :]

    def test_text_is_the_same_on_any_number_of_ranks(self):
        alone = self.text(1)
        for ranks in (2, 3, 4):
            self.assertEqual(self.text(ranks), alone)

    def test_sampled_text_depends_on_the_seed_alone(self):
        sampled = ("--temperature", "1.0", "--top-k", "20", "--seed", "7")
        alone = self.text(1, *sampled)
        self.assertEqual(self.text(3, *sampled, "--placement", "striped"), alone)
        self.assertNotEqual(self.text(1, *sampled[:-1], "8"), alone)

    def test_reproducible_text_depends_on_nothing_else(self):
        for how in ((), ("--temperature", "1.5", "--seed", "7")):
            alone = self.text(1, "--reproducible", *how)
            for ranks, placement in ((2, "striped"), (3, "balanced"), (4, "packed")):
                text = self.text(ranks, "--reproducible", *how, "--placement", placement,
                                 "--page-size", 16 * ranks)
                self.assertEqual(text, alone)

    def test_heads_can_be_shared_out_too(self):
        done = self.generate(4, "--prompt", "hello", "--head-parallel", 2, "--page-size", 4)
        self.assertEqual(done.stdout, self.text(1))
        for ranks in ("0-1", "2-3"):  # each pair holds the same pages, with other heads
            self.assertRegex(done.stderr, rf"ranks {ranks} +#+ +[1-9]\d* pages")

    def test_ranks_check_and_report(self):
        done = self.generate(4, "--prompt", "hello", "--ranks-check", "--page-size", 4)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("4 ranks and a single rank wrote the same tokens", done.stderr)
        self.assertIn("the combine moved ", done.stderr)
        for rank in range(4):
            self.assertRegex(done.stderr, rf"rank {rank} +#+ +[1-9]\d* pages")

    def test_a_second_turn_does_not_compute_the_first_again(self):
        turns = ("--prompt", "hello there, who are you?", "--prompt", "why?", "--page-size", 4, "--json", "-")
        for chat in ((), ("--raw",)):
            alone, shared = (self.generate(ranks, *turns, *chat) for ranks in (1, 3))
            self.assertEqual(alone.returncode, 0, alone.stderr)
            reports = [json.loads(done.stdout) for done in (alone, shared)]
            self.assertEqual(reports[0]["tokens"], reports[1]["tokens"])
            for report, done in zip(reports, (alone, shared)):
                first, second = report["turns"]
                self.assertEqual(first["cached_tokens"], 0)
                # All whole pages of the first turn; the last token of its answer was never fed.
                held = first["prompt_tokens"] + first["new_tokens"] - 1
                self.assertEqual(second["cached_tokens"], held // 4 * 4)
                self.assertEqual(report["cached_tokens"], second["cached_tokens"])
                self.assertIn(f"turn 2: {second['prompt_tokens']} prompt tokens, of which "
                              f"{second['cached_tokens']} cached,", done.stderr)
                self.assertEqual(report["text"], first["text"] + "\n" + second["text"])
        checked = self.generate(2, *turns[:-2], "--ranks-check")
        self.assertIn("2 ranks and a single rank wrote the same tokens", checked.stderr)
        small = self.generate(1, *turns, "--pages-per-rank", 15)
        self.expect_one_line(small, "out of pages", "--pages-per-rank")

    def test_pages_in_files_serve_a_later_run_on_other_ranks(self):
        turn = ("--prompt", "hello there, who are you?", "--page-size", 4)
        plain = self.generate(1, *turn)
        with tempfile.TemporaryDirectory() as folder:
            for ranks, stores, loads in ((2, r"[1-9]\d*", "0"), (3, "0", r"[1-9]\d*"), (1, "0", r"[1-9]\d*")):
                done = self.generate(ranks, *turn, "--tier-folder", folder)
                self.assertEqual((done.stdout, done.returncode), (plain.stdout, 0), done.stderr)
                self.assertRegex(done.stderr, rf"file tier: {stores} pages stored, {loads} loaded, 0 dropped")
            (of_model,) = pathlib.Path(folder).iterdir()
            shutil.rmtree(of_model)
            of_model.touch()  # so that no page can be stored, which is counted and no error
            done = self.generate(2, *turn, "--tier-folder", folder)
            self.assertEqual((done.stdout, done.returncode), (plain.stdout, 0), done.stderr)
            self.assertRegex(done.stderr, r"[1-9]\d* calls of the system failed")
            for ranks in (1, 2):
                for useless, reason in ((of_model, "Not a directory"), ("/proc/nowhere", "No such file"), ("/proc/self", "")):
                    done = self.generate(ranks, *turn, "--tier-folder", useless)
                    self.expect_one_line(done, f"--tier-folder {useless} cannot be written: {reason}")
                    self.assertEqual(done.stdout, "")
        held = self.generate(2, *turn, "--host-tier-bytes", 1 << 20)
        self.assertEqual((held.stdout, held.returncode), (plain.stdout, 0), held.stderr)

    def test_a_fraction_of_the_memory(self):
        done = self.generate(2, "--prompt", "hello", "--memory-fraction", "1e-4")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr, r"room for [1-9]\d* pages per rank, in \d")
        for ranks in (1, 3):
            nothing = self.generate(ranks, "--prompt", "hi", "--memory-fraction", "1e-15")
            self.expect_one_line(nothing, "no memory", "bytes")
            both = self.generate(
                ranks, "--prompt", "hi", "--memory-fraction", "0.1", "--pages-per-rank", 9)
            self.expect_one_line(both, "pages_per_rank (9)", "memory_fraction (0.1)")

    def test_errors_of_the_file(self):
        cut = self.damaged("cut.gguf", lambda b: b[: len(b) // 2])
        other = self.damaged("other.gguf", lambda b: b.replace(b"llama", b"mamba"))
        fewer = self.damaged("fewer.gguf", self.with_fewer_rows)
        for ranks in (1, 3):
            missing = self.generate(ranks, "--prompt", "hi", model="/nowhere/model.gguf")
            self.expect_one_line(missing, "/nowhere/model.gguf")
            self.expect_one_line(self.generate(ranks, "--prompt", "hi", model=cut), "truncated")
            self.expect_one_line(self.generate(ranks, "--prompt", "hi", model=other), "mamba", "llama")
            self.expect_one_line(self.generate(ranks, "--prompt", "hi", model=fewer),
                                 "tokens in the vocabulary", "rows in token_embd.weight")

    def test_errors_of_the_flags(self):
        for ranks in (1, 3):
            self.expect_one_line(self.generate(ranks, "--prompt", "hi", "--wrong"), "--wrong")
            self.expect_one_line(self.generate(ranks), "--prompt is required")
            self.expect_one_line(self.generate(ranks, "--prompt", "hi", "--placement", "x"), "striped")
            self.expect_one_line(self.generate(ranks, "--prompt", "hi", "--kv-dtype", "int4"), "bfloat16")
            self.expect_one_line(run(ranks, "generate", "--model", self.model, "--prompt", "hi",
                                     "--max-tokens", 2**63 - 1), "more than the model's context")
        for flags, words in ((("--seed", "-1"), "--seed: '-1' is not an integer from 0"),
                             (("--seed", 2**64), "is not an integer from 0 of at most 64 bits"),
                             (("--max-tokens", 2**63), "is not an integer of at most 63 bits"),
                             (("--top-k", 2**31), "--top-k"), (("--page-size", "010"), "'010' begins with 0"),
                             (("--seed=0004",), "'0004' begins with 0"), (("--raw", ""), "the argument behind --raw is empty"),
                             (("--temperature", "1e999"), "is not a number"),
                             (("--temperature", "nan"), "is not a number"),
                             (("--seed", ""), "value of --seed is empty"), (("--temperature=",), "--temperature= is empty"),
                             (("--json", ""), "--json is empty"), (("--prompt", ""), "--prompt is empty")):
            self.expect_one_line(self.generate(1, "--prompt", "hi", *flags), words)
        self.expect_one_line(self.generate(1, "--prompt", "hi", "you"), "not expected: you")
        self.expect_one_line(self.generate(1, "--prompt", "hi", "--tier-folder-bytes", 5), "requires --tier-folder")
        self.expect_one_line(run(1, "verify", "--seconds", ""), "--seconds is empty")
        for command in (("inspect",), ("inspect", "--json"), ("import", "--model", "some"), ("export", "--raw")):
            said = "--json" if command[-1] == "--json" else "file"
            self.expect_one_line(run(1, *command, ""), f"a value of {said} is empty")
        self.expect_one_line(run(1, "verify", "--kv-scales", "heads"), "--kv-scales 'heads'", "per_head")
        for flag in ("--seconds", "--count"):
            self.expect_one_line(run(1, "verify", flag, 0), f"{flag}: 0 is not above 0")
        self.expect_one_line(run(1, "bench", "--batch", ""), "--batch is empty")
        self.expect_one_line(run(1, "bench", "--batch", "1,,2"), "value of --batch is empty")
        self.expect_one_line(run(1, "bench", "--op", "plan", "--context", 2**63), "63 bits")
        for ranks in ("-2", "0"):
            self.expect_one_line(run(1, "verify", "--ranks", ranks), "--ranks", f"{ranks} not in range")
        self.expect_one_line(self.generate(3, "--prompt", "hi", "--head-parallel", "3"),
                             "2 kv heads do not divide over head_parallel 3")
        self.expect_one_line(self.generate(3, "--prompt", "hi", "--head-parallel", "2"),
                             "head_parallel 2 does not divide 3 ranks")

    def test_plan_capacity(self):
        def plan(*arguments):
            return run(1, "plan-capacity", "--layers", 10, "--context", 32000, *arguments)

        done = plan("--gpus", 2, "--batch", 8, "--gpu-gib", 20, "--weights-gib", 10, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        answer = json.loads(done.stdout)
        self.assertEqual(answer["pages_per_gpu"], 8 * 32000 // 16 // 2)
        self.assertEqual(answer["page_bytes"], 16 * 8 * 256 * 2 * 10)
        self.assertEqual(answer["pages_that_fit"], 10 * 2**30 // answer["page_bytes"])
        self.assertAlmostEqual(answer["ms_per_token"], answer["us_per_layer"] / 100)
        full = plan("--gpus", 1, "--batch", 9, "--gpu-gib", 20, "--weights-gib", 10)
        self.assertEqual(full.returncode, 1)
        self.assertIn("TOO MANY", full.stdout)
        for arguments, said in ((("--gpus", 3, "--nodes", 2), "--gpus 3"), (("--batch", 0), "--batch 0"),
                                (("--gpu-gib", 1, "--weights-gib", 2), "--weights-gib 2"),
                                (("--gpu-gib", "1e300"), "2^20 GiB"), (("--dim", 577), "--dim 577"),
                                (("--kv-heads", 7), "no multiple of --kv-heads 7"),
                                (("--model", self.model), "--model excludes --layers"),
                                (("--kv-dtype", "x"), "float16")):
            self.expect_one_line(plan(*arguments), said)

    def test_plan_capacity_takes_a_model(self):
        done = run(1, "plan-capacity", "--model", self.model, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertLess(json.loads(done.stdout)["layers"], 10)
        self.expect_one_line(run(1, "plan-capacity", "--model", "/nowhere.gguf"), "/nowhere.gguf")

    def test_a_prompt_computed_by_some_ranks_is_continued_by_others(self):
        file = pathlib.Path(self.folder.name) / "sequence"
        flags = ("--device", "cpu", "--model", self.model)
        prompt = ("--prompt", "hello there, who are you and why?")
        text = self.generate(1, *prompt).stdout
        for ranks, page_size, head_parallel in ((1, 16, 1), (4, 4, 2)):
            done = run(ranks, "export", *flags, *prompt, "--page-size", page_size, "--head-parallel", head_parallel, file)
            self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)
            self.assertIn(f"wrote {file}", done.stderr)
            about = json.loads(run(1, "inspect", file, "--json").stdout)
            (group,) = about["groups"]
            self.assertEqual((group["layers"], group["kv_heads"], group["first_token"]), ([0, 1], 2, 0))
            self.assertEqual((group["k_scales"], group["v_scales"]), ([], []))
            self.assertEqual(len(about["token_ids"]), about["tokens"])
            for ranks, page_size in ((1, 4), (3, 8)):
                done = run(ranks, "import", *flags, "--max-tokens", 24, "--page-size", page_size, "--ranks-check", file)
                self.assertEqual((done.returncode, done.stdout), (0, text), done.stderr)
                full = (about["tokens"] - 1) // page_size * page_size
                self.assertIn(f"{about['tokens']} prompt tokens, of which {full} cached,", done.stderr)
                self.assertIn("a single rank wrote the same tokens", done.stderr)
        good = file.read_bytes()
        for content, said in ((good[:-30], "ends too early"), (good[:-30] + b"x" + good[-29:], "checksum"),
                              (b"x" + good[1:], "not a stream of kvmesh"), (b"", "ends too early"), (good + good, "behind its end")):
            file.write_bytes(content)
            self.expect_one_line(run(1, "inspect", file), f"{file}: ", said)
            for ranks in (1, 3):
                self.expect_one_line(run(ranks, "import", *flags, file), f"{file}: ", said)
        for command in (("inspect",), ("import", *flags)):
            self.expect_one_line(run(1, *command, self.folder.name), f"{self.folder.name}: ", "Is a directory")
        file.write_bytes(good)
        self.expect_one_line(run(2, "import", *flags, "--kv-dtype", "float32", file), "float32", "bfloat16")
        self.expect_one_line(run(2, "export", *flags, *prompt, "/nowhere/file"), "/nowhere/file")
        self.expect_one_line(run(2, "import", *flags, "/nowhere/file"), "/nowhere/file")

    def test_replay(self):
        def replay(*arguments):
            return run(1, "replay", "--trace", SAMPLE_TRACE, "--capacity", "60000,2000000", *arguments)

        done = replay("--ranks", 4, "--home-threshold", 0, "--decode-ms", 20, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        answer = json.loads(done.stdout)
        self.assertEqual((answer["trace"], answer["requests"], len(answer["rows"])), ("sample_trace", 120, 10))
        for row in answer["rows"]:
            self.assertLessEqual(row["hit_rate"], row["belady_hit_rate"])
            self.assertEqual(row["served"] + row["refused"], 120)
            self.assertGreater(row["page_operations_per_second"], 0)
        small, large = answer["rows"][0], answer["rows"][5]
        self.assertGreater(small["evictions"], 0)
        self.assertEqual(large["evictions"], 0)
        self.assertLess(small["hit_rate"], large["hit_rate"])
        self.assertLessEqual(large["balance"], 1.02)
        self.assertIsNone(answer["caches"])
        cpu = ("--requests", 30, "--policy", "lru", "--ranks", 3, "--attend", 3, "--device", "cpu")
        checked = replay(*cpu)
        self.assertEqual(checked.returncode, 0, checked.stderr)
        self.assertIn("on 3 ranks, 1 layer of 2 query heads and 1 kv head of dim 16 in float32 on the CPU\n",
                      checked.stdout)
        self.assertRegex(checked.stdout, r"lru .* [1-9]\d* to \d\.\de-0[678]\n")
        shaped = replay(*cpu, "--layers", 2, "--q-heads", 4, "--kv-heads", 2, "--dim", 32, "--dtype", "bfloat16",
                        "--queries", 8, "--json")
        self.assertEqual(shaped.returncode, 0, shaped.stderr)
        answer = json.loads(shaped.stdout)
        self.assertEqual(answer["caches"], {"device": "cpu", "layers": 2, "q_heads": 4, "kv_heads": 2, "dim": 32,
                                            "dtype": "bfloat16", "queries": 8})
        for row in answer["rows"]:  # one sequence a batch: a row for each layer and kv head
            self.assertEqual(row["attend"]["rows"], 4 * row["attend"]["batches"])
            self.assertEqual(row["attend"]["verdict"], "")
        file = pathlib.Path(self.folder.name) / "tiers.json"
        tiers = run(1, "replay", "--device", "cpu", "--trace", SAMPLE_TRACE, "--requests", 60, "--policy", "lru", "--ranks", 2,
                    "--capacity", 40000, "--host-tier", 400000, "--attend", 9, "--json", file)
        self.assertEqual(tiers.returncode, 0, tiers.stderr)
        self.assertRegex(tiers.stdout, r"to host +from it +to files")
        row = json.loads(file.read_text())["rows"][0]
        self.assertGreater(row["tiers"]["pages_back"], 0)
        self.assertEqual(row["tiers"]["host"]["loads"], row["tiers"]["pages_back"])
        self.assertEqual(row["attend"]["verdict"], "")
        for arguments, said in ((("--tier-folder", "/proc/self", "--tier-folder-tokens", 4096), "/proc/self cannot be written"),
                                (("--policy", "fifo"), "fifo"), (("--page-size", 24), "page of 24 tokens"),
                                (("--ranks", 0), "--ranks 0"),
                                (("--attend", -1), "--attend -1"),
                                (("--generate", "synthetic"), "--trace excludes --generate"),
                                (("--seed", 2), "--trace excludes --seed"),
                                (("--dim", 32), "--dim needs --attend"), (("--device", "tpu"), "tpu"),
                                ((*cpu, "--layers", 0), "--layers 0 is not in [1, "),
                                ((*cpu, "--q-heads", 3, "--kv-heads", 2), "--q-heads 3 are no multiple"),
                                ((*cpu, "--dtype", "int4"), "int4"),
                                ((*cpu, "--dim", 577), "--dim 577"),
                                ((*cpu, "--layers", 64, "--dim", 576, "--kv-heads", 4096, "--q-heads", 4096),
                                 "no memory for pools")):
            self.expect_one_line(replay(*arguments), said)
        for arguments, said in ((("--generate", "x"), "azure-code"), (("--trace", "/nowhere"), "/nowhere"),
                                (("--trace", self.model), ":1: "), (("--capacity", 10), "10 tokens")):
            self.expect_one_line(run(1, "replay", *arguments), said)
        if "cpu, 0 GPUs" in run(1, "info").stdout:
            self.expect_one_line(replay("--attend", 1, "--device", "cuda"), "no CUDA device")

    def test_help_describes_every_option_in_lines_that_a_terminal_shows(self):
        commands = re.findall(r"(?m)^  ([a-z-]+) {2,}\S", run(1, "--help").stdout.partition("Subcommands:")[2])
        self.assertLessEqual({"generate", "verify", "bench", "replay", "inspect"}, set(commands))
        for name in commands:
            lines = run(1, name, "--help").stdout.splitlines()
            options = [i for i, line in enumerate(lines) if re.match(r"  -", line)]
            self.assertGreater(len(options), 1, name)
            for i in options:
                beside_its_name = lines[i][27:28] == " " and lines[i][28:] != ""
                self.assertTrue(beside_its_name or lines[i + 1].startswith(28 * " "), lines[i])
            for line in lines[3:]:  # behind the usage, which has the program's path
                self.assertLessEqual(len(line), 100, line)

    def test_a_mistyped_command_is_named_with_the_closest(self):
        for typed, meant in (("genrate", "generate"), ("verfy", "verify"), ("benchmark", "bench"), ("nfo", "info")):
            for ranks in (1, 3):
                self.expect_one_line(run(ranks, typed, "--seed", 1), f"'{typed}'", f"did you mean '{meant}'?")

    def test_a_process_started_alone_is_no_job_of_mpi(self):
        self.assertRegex(run(1, "info").stdout, r"this job +1 rank \(loopback\)")
        self.assertRegex(run(2, "info").stdout, r"this job +2 ranks \(mpi\)")

    def test_ranks_meet_without_mpi(self):
        for done in run_without_mpi(3, "verify", "--device", "cpu", "--count", 3):
            self.assertEqual(done.returncode, 0, done.stderr)
        ranks = run_without_mpi(2, "generate", "--device", "cpu", "--model", self.model,
                                "--max-tokens", 24, "--prompt", "hello", "--ranks-check")
        for done in ranks:
            self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("2 ranks and a single rank wrote the same tokens", ranks[0].stderr)
        self.assertEqual(ranks[1].stdout, "")

    def test_errors_of_ranks_without_mpi(self):
        for name, value, word in (("KVMESH_SIZE", "two", "KVMESH_SIZE is 'two'"),
                                  ("KVMESH_SIZE", "1", "ranks are 0 to 0"),
                                  ("KVMESH_RENDEZVOUS", "localhost", "not host:port"),
                                  ("KVMESH_RENDEZVOUS", "", "there is no KVMESH_RENDEZVOUS")):
            last = run_without_mpi(2, "info", **{name: value})[-1]
            self.expect_one_line(last, "rank 1: ", word)

    def test_pools_that_are_too_large_together(self):
        """Each alone would fit, and the system would promise them all."""
        with open("/proc/meminfo") as lines:
            kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        page_bytes = 2 * 2 * 2 * 16 * 4096 * 2  # K and V of 2 layers, 2 heads of 16, as bfloat16
        pages = int(0.7 * 1024 * kib / page_bytes)
        done = self.generate(2, "--prompt", "hi", "--page-size", 4096, "--pages-per-rank", pages)
        self.expect_one_line(done, "KV pools of 2 ranks on", "GB together", "are available")
        huge = self.generate(1, "--prompt", "hi", "--page-size", 2**31 - 1, "--pages-per-rank", 2**63 - 1)
        self.expect_one_line(huge, "are available")

    def test_pool_too_small_for_the_prompt(self):
        for ranks in (1, 3):
            small = self.generate(ranks, "--prompt", "hello " * 30, "--pages-per-rank", 1)
            self.expect_one_line(small, "out of pages", "--pages-per-rank")


if __name__ == "__main__":
    unittest.main(verbosity=2)
