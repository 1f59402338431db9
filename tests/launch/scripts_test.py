"""launch/check and launch/quickstart where something is missing: what they install, and what they say. In a
tree of their own, with programs that only write down how they were called; and the commands of the README,
with the real program.

scripts_test.py ROOT KVMESH MPIEXEC
"""

import os
import pathlib
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT, KVMESH, MPIEXEC = pathlib.Path(sys.argv.pop(1)), sys.argv.pop(1), sys.argv.pop(1)
NOBODY = 65534


class Scripts(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.folder.chmod(0o755)
        self.tree, self.calls = self.folder / "tree", self.folder / "calls"
        shutil.copytree(ROOT / "launch", self.tree / "launch",
                        ignore=shutil.ignore_patterns("*.cpp", "*.hpp", "*.cu"))
        self.calls.touch()
        self.calls.chmod(0o666)
        (self.folder / "bin").mkdir()
        for name in ("apt-get", "apt-cache", "cmake", "ctest", "python3", "mpirun"):
            self.stub(name, f'echo "{name} $*" >> "{self.calls}"')
        self.stub("dpkg-query", "exit 1")  # nothing is installed

    def stub(self, name, script):
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def run_script(self, name, *arguments, stdin=subprocess.DEVNULL, **options):
        home = self.folder / "home"
        return subprocess.run([self.tree / "launch" / name, *arguments], capture_output=True, text=True,
                              stdin=stdin, timeout=60,
                              env={"PATH": f"{self.folder}/bin:/usr/bin:/bin", "HOME": str(home)}, **options)

    def called(self, program):
        return [line for line in self.calls.read_text().splitlines() if line.startswith(program + " ")]

    def test_check_installs_nothing_unless_told(self):
        for arguments in ((), ("--no-install",)):
            done = self.run_script("check", *arguments)
            self.assertIn("cmake ninja-build", done.stdout)
            self.assertIn("--install", done.stdout)
            self.assertEqual(self.called("apt-get"), [])
            self.assertFalse([call for call in self.called("python3") if "venv" in call or "pip" in call])
            self.assertNotEqual(self.called("cmake"), [])

    @unittest.skipUnless(os.geteuid() == 0, "installs as root")
    def test_check_installs_when_told(self):
        self.run_script("check", "--install")
        self.assertTrue(any("install" in call and "ninja-build" in call for call in self.called("apt-get")))

    @unittest.skipUnless(os.geteuid() == 0, "installs as root")
    def test_check_asks_on_a_terminal(self):
        for answer in ("n", "", "y"):
            try:
                terminal, stdin = pty.openpty()
            except OSError as error:  # a container without /dev/pts
                self.skipTest(f"no terminal to be had: {error}")
            os.write(terminal, f"{answer}\n".encode())
            done = self.run_script("check", stdin=stdin)
            os.close(stdin)
            os.close(terminal)
            self.assertIn("[y/N]", done.stderr)
            self.assertEqual(bool(self.called("apt-get")), answer == "y")

    def test_what_ci_runs_installs(self):
        self.assertIn("exec ./launch/check --install", (ROOT / ".ci" / "run").read_text())

    def test_wrong_arguments(self):
        for arguments in (("--instal",), ("--install", "--no-install")):
            done = self.run_script("check", *arguments)
            self.assertEqual(done.returncode, 2)
            self.assertIn("usage: launch/check", done.stderr)

    @unittest.skipUnless(os.geteuid() == 0, "becomes another user")
    def test_without_root_or_sudo(self):
        (self.tree / "build").mkdir()
        (self.tree / "build").chmod(0o777)
        for sudo, word in (("exit 1", "sudo asks for a password"), (None, "needs root or sudo")):
            if sudo:
                self.stub("sudo", sudo)
            elif shutil.which("sudo", path="/usr/bin:/bin"):
                continue
            else:
                (self.folder / "bin" / "sudo").unlink()
            for script, arguments in (("check", ["--install"]), ("quickstart", [])):
                done = self.run_script(script, *arguments, user=NOBODY)
                self.assertEqual(done.returncode, 2, done.stdout)
                self.assertIn(word, done.stderr)
                self.assertIn("--no-install", done.stderr)

    @unittest.skipUnless(os.geteuid() == 0, "becomes another user")
    def test_a_tree_that_cannot_be_written(self):
        for script in ("check", "quickstart"):
            done = self.run_script(script, "--no-install", user=NOBODY)
            self.assertEqual(done.returncode, 2)
            self.assertRegex(done.stderr, r"^error: .* cannot be written to .* copy it to a folder of your own")
            self.assertEqual(done.stderr.count("\n"), 1)


class Readme(unittest.TestCase):
    def test_mpirun_works_as_printed(self):
        """On a machine of two cores, and as root, too: with the line of the README that says so."""
        settings = re.search(r"^export (OMPI_.*)$", (ROOT / "README.md").read_text(), re.MULTILINE).group(1)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OMPI_")}
        environment.update(setting.split("=") for setting in settings.split())
        done = subprocess.run([MPIEXEC, "-np", "4", KVMESH, "info"], capture_output=True, text=True, timeout=60,
                              env=environment)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"this job +4 ranks \(mpi\)")


if __name__ == "__main__":
    unittest.main(verbosity=2)
