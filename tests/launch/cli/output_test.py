"""What the program writes, and where: no result is lost in silence, what is no result goes to standard
error, and other programs can read all of it.

output_test.py KVMESH MAKE_TINY_MODEL MPIEXEC
"""

import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import unittest

from program import KVMESH, ProgramTest, run, run_without_mpi, wait_until_caught

SAMPLE_TRACE = pathlib.Path(__file__).parent.parent / "replay" / "sample_trace.jsonl"
BENCH = ("bench", "--device", "cpu", "--batch", 1, "--context", 10, "--op", "append", "--row-seconds", 0.01)
VERIFY = ("verify", "--device", "cpu", "--count", 1)
CAPACITY = ("plan-capacity", "--gpus", 2, "--batch", 8, "--context", 32000, "--layers", 10)


class Terminal:
    """Gives what a command writes to a terminal."""

    def __init__(self, test):
        try:
            self.reader, self.writer = pty.openpty()
        except OSError as error:  # a container without /dev/pts
            test.skipTest(f"no terminal to be had: {error}")
        test.addCleanup(os.close, self.reader)

    def read(self):
        os.close(self.writer)
        return os.read(self.reader, 65536).decode()


class Output(ProgramTest):
    def commands(self):
        generate = self.arguments("--prompt", "hello")
        return (("info",), VERIFY, BENCH, generate, ("info", "--json"), (*VERIFY, "--json"), (*BENCH, "--json"),
                (*generate, "--json"), CAPACITY, (*CAPACITY, "--json"), ("--help",), ("--version",), ("generate", "--help"))

    def test_a_full_disk_is_an_error(self):
        for arguments in self.commands():
            with open("/dev/full", "w") as full:
                self.expect_one_line(run(1, *arguments, stdout=full), "cannot write standard output", "No space left")
        full = self.generate(1, "--prompt", "hello", "--json", "/dev/full")
        self.expect_one_line(full, "cannot write '/dev/full'")

    def test_a_full_disk_behind_mpirun_is_an_error(self):
        for arguments in (("info",), VERIFY):
            with open("/dev/full", "w") as full:
                done = run(2, *arguments, stdout=full)
                self.expect_one_line(done, "cannot write standard output by way of mpirun", "No space left")
        self.assertEqual(run(2, "info", stdout=subprocess.DEVNULL).returncode, 0)

    def test_a_closed_output_is_an_error(self):
        for arguments in self.commands():
            closed = run(1, *arguments, stdout=None, preexec_fn=lambda: os.close(1))
            self.expect_one_line(closed, "cannot write standard output")

    def test_a_rank_that_cannot_write_ends_the_others(self):
        for done in run_without_mpi(2, "info", "--json", "/nowhere/info.json"):
            self.assertEqual(done.returncode, 2)

    def test_statistics_are_no_result(self):
        done = self.generate(2, "--prompt", "hello", "--ranks-check")
        text = done.stdout
        for word in (" prompt tokens in ", "the combine moved", "KV pages", "ranks check"):
            self.assertIn(word, done.stderr)
            self.assertNotIn(word, text)
        self.assertTrue(text.endswith("\n"))
        self.assertEqual(self.text(1), text)

    def test_results_as_json(self):
        info = json.loads(run(2, "info", "--json").stdout)
        self.assertEqual((info["program"], info["ranks"], info["communicator"]), ("kvmesh info", 2, "mpi"))
        verify = json.loads(run(1, *VERIFY, "--seed", 2**64 - 1, "--json").stdout)
        self.assertEqual((verify["seed"], verify["cases"], verify["failed"]), (2**64 - 1, 1, 0))
        generated = json.loads(self.text(4, "--json", "--ranks-check", "--head-parallel", 2))
        self.assertEqual(generated["text"] + "\n", self.text(1))
        self.assertEqual((generated["ranks"], generated["ranks_check"]), (4, True))
        self.assertEqual(sum(generated["pages_of_kv_ranks"]), 3)
        self.assertEqual(len(generated["tokens"]), generated["new_tokens"])

    def test_results_as_json_in_a_file(self):
        file = pathlib.Path(self.folder.name) / "result.json"
        for arguments in (("info",), VERIFY, self.arguments("--prompt", "hello")):
            done = run(1, *arguments, "--json", file)
            self.assertNotEqual(done.stdout, "")
            self.assertEqual(json.loads(file.read_text())["program"], f"kvmesh {arguments[0]}")

    def test_results_name_the_command_that_wrote_them(self):
        file = pathlib.Path(self.folder.name) / "sequence"
        flags = ("--device", "cpu", "--model", self.model, "--json")
        for command in (("export", "--prompt", "hello", file, *flags), ("import", file, *flags), ("inspect", file, "--json")):
            done = run(1, *command)
            self.assertEqual(json.loads(done.stdout)["program"], f"kvmesh {command[0]}", done.stderr)

    def test_what_a_command_reads_or_writes_is_not_overwritten(self):
        folder = pathlib.Path(self.folder.name)
        kept = {name: folder / name for name in ("kept.gguf", "kept.jsonl", "kept")}
        kept["kept.gguf"].write_bytes(self.model.read_bytes())
        kept["kept.jsonl"].write_bytes(SAMPLE_TRACE.read_bytes())
        model, trace, file = kept.values()
        flags = ("--device", "cpu", "--model", model)
        self.assertEqual(run(1, "export", *flags, "--prompt", "hi", file).returncode, 0)
        (folder / "link").symlink_to(file)
        (folder / "hard").hardlink_to(model)
        (folder / "later").symlink_to("new")
        before = {path: path.read_bytes() for path in kept.values()}
        export = ("export", *flags, "--prompt", "hi")
        for words, names in (((*export, "new", "--json", "new"), ("--json", "export")),
                             ((*export, "new", "--json", "./new"), ("--json", "export")),
                             ((*export, "later", "--json", "new"), ("--json", "export")),
                             ((*export, model), ("export", "--model")),
                             (("generate", *flags, "--prompt", "hi", "--json", model), ("--json", "--model")),
                             (("generate", *flags, "--prompt", "hi", "--json", "hard"), ("--json", "--model")),
                             (("import", *flags, file, "--json", "kept"), ("--json", "import")),
                             (("inspect", file, "--json", "link"), ("--json", "inspect")),
                             (("plan-capacity", "--model", model, "--json", model), ("--json", "--model")),
                             (("replay", "--trace", trace, "--json", trace), ("--json", "--trace"))):
            done = run(1, *words, cwd=folder)
            self.expect_one_line(done, *names, "are the same file")
            self.assertEqual(done.stdout, "")
        self.assertFalse((folder / "new").exists())
        self.assertEqual({path: path.read_bytes() for path in kept.values()}, before)
        good = run(1, "inspect", file, "--json", "new", cwd=folder)
        self.assertEqual(good.returncode, 0, good.stderr)
        nowhere = run(1, *export, folder / "new", "--json", "/dev/null")
        self.assertEqual(nowhere.returncode, 0, nowhere.stderr)

    def test_errors_begin_on_a_fresh_line(self):
        short = self.generate(1, "--prompt", "hello", "--pages-per-rank", 1, "--page-size", 32, tokens=60,
                              stderr=subprocess.STDOUT)
        self.assertRegex(short.stdout, r"(?s)^.+\nkvmesh: out of pages")

    def test_text_is_whole_characters(self):
        """The model writes single bytes; whatever number of them is asked for, UTF-8 comes out."""
        for tokens in range(1, 24):
            arguments = self.arguments("--prompt", "hello", "--raw", "--temperature", 1.5, tokens=tokens)
            done = subprocess.run([KVMESH, *map(str, arguments)], capture_output=True, timeout=60)
            self.assertEqual(done.returncode, 0)
            done.stdout.decode("utf-8")

    def test_a_long_prompt_shows_its_progress(self):
        terminal = Terminal(self)
        self.generate(1, "--raw", "--prompt", "a" * 150, stderr=terminal.writer)
        self.assertRegex(terminal.read(), r"\rprompt: 128 of 150 tokens\x1b\[K\r\x1b\[K")

    def test_verify_shows_its_progress_in_place_on_a_terminal(self):
        terminal = Terminal(self)
        done = run(1, *VERIFY, stderr=terminal.writer)
        self.assertRegex(done.stdout, r"^verify: 1 cases, .* on 1 rank \(cpu\): all right\n$")
        self.assertRegex(terminal.read(), r"\rverify: 1 cases, .*\x1b\[K\r\x1b\[K$")

    def test_replay_shows_a_bar_over_all_runs_in_place_on_a_terminal(self):
        terminal = Terminal(self)
        done = run(1, "replay", "--trace", SAMPLE_TRACE, "--policy", "lru,hits", "--capacity", 60000, stderr=terminal.writer)
        self.assertEqual(done.returncode, 0)
        self.assertNotIn("request ", done.stdout)
        text = terminal.read()
        bars = re.findall(r"\rreplay \[(#*) *\] (\d) of 2, request \d+ of \d+\x1b\[K", text)
        shown = [(int(number), len(marks)) for marks, number in bars]
        self.assertEqual({number for number, _ in shown}, {1, 2})
        self.assertEqual(shown, sorted(shown))
        for number, marks in shown:  # each run is a half of the bar
            self.assertTrue(15 * (number - 1) <= marks <= 15 * number, shown)
        for bar in re.findall(r"replay (\[.*?\])", text):
            self.assertEqual(len(bar), 32)
        self.assertTrue(text.endswith("\r\x1b[K"), "the bar is gone when the result is there")

    def test_verify_that_is_interrupted_shows_its_total(self):
        for how, ranks in ((signal.SIGINT, 0), (signal.SIGTERM, 2)):
            process = subprocess.Popen([KVMESH, "verify", "--device", "cpu", "--seconds", "50",
                                        *(["--ranks", str(ranks)] if ranks else [])],
                                       stdout=subprocess.PIPE, text=True)
            wait_until_caught(process.pid, how)
            process.send_signal(how)
            stdout, _ = process.communicate(timeout=30)
            self.assertRegex(stdout, r"^verify: [1-9]\d* cases, .*: interrupted: all right\n$")
            self.assertEqual(process.returncode, 128 + how)


if __name__ == "__main__":
    unittest.main(verbosity=2)
