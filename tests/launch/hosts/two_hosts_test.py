"""Ranks on two hosts. A host is a network and UTS namespace, the link between two is a veth pair, and its counters
tell the bytes that cross it. They vanish with this process; no root is needed where users may make namespaces.

two_hosts_test.py KVMESH MPIEXEC
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest

SKIPPED = 77
RANKS_PER_HOST = 3
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def enter_namespaces():
    """Runs this program again as the root of a user namespace with a network of its own."""
    again = ["unshare", "--user", "--map-root-user", "--net", sys.executable, __file__, "--inside", *sys.argv[1:]]
    try:
        allowed = subprocess.run([*again[:4], "ip", "link", "add", "test", "type", "veth"], capture_output=True)
    except FileNotFoundError as missing:
        print(f"skipped: {missing}")
        sys.exit(SKIPPED)
    if allowed.returncode != 0:
        print(f"skipped: no network namespaces here: {allowed.stderr.decode().strip()}")
        sys.exit(SKIPPED)
    os.execvp(again[0], again)


class Host:
    def __init__(self, number):
        self.link = f"link{number}"
        script = f"hostname host-{number} && echo ready && exec sleep infinity"
        self.keeper = subprocess.Popen(["unshare", "--net", "--uts", "sh", "-c", script], stdout=subprocess.PIPE)
        self.keeper.stdout.readline()
        self.enter = ["nsenter", "--target", str(self.keeper.pid), "--net", "--uts"]

    def run(self, *command):
        return subprocess.run([*self.enter, *command], check=True, capture_output=True, text=True).stdout

    def bring_up(self, address):
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "addr", "add", f"{address}/24", "dev", self.link)
        self.run("ip", "link", "set", self.link, "up")

    def close(self):
        self.keeper.kill()
        self.keeper.wait()
        self.keeper.stdout.close()


class TwoHosts(unittest.TestCase):
    def setUp(self):
        self.hosts = [Host(number) for number in range(2)]
        for host in self.hosts:
            self.addCleanup(host.close)
        first, second = self.hosts
        subprocess.run(["ip", "link", "add", first.link, "netns", str(first.keeper.pid), "type", "veth", "peer",
                        "name", second.link, "netns", str(second.keeper.pid)], check=True)
        for host, address in zip(self.hosts, ADDRESSES):
            host.bring_up(address)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def bytes_on_the_link(self):
        shown = json.loads(self.hosts[0].run("ip", "-statistics", "-json", "link", "show", self.hosts[0].link))
        return sum(shown[0]["stats64"][way]["bytes"] for way in ("rx", "tx"))

    def start(self, host, command, **variables):
        """The processes of a host get their own session folder, as on a machine of their own."""
        environment = {**os.environ, "TMPDIR": str(self.folder), "OMPI_ALLOW_RUN_AS_ROOT": "1",
                       "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", **variables}
        return subprocess.Popen([*host.enter, *map(str, command)], env=environment, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

    def outcomes(self, processes):
        texts = [process.communicate(timeout=100) for process in processes]
        return [(process.returncode, out, err) for process, (out, err) in zip(processes, texts)]

    def start_over_tcp(self, *arguments, **variables):
        size = 2 * RANKS_PER_HOST
        return [self.start(self.hosts[rank // RANKS_PER_HOST], [KVMESH, *arguments], KVMESH_RANK=str(rank),
                           KVMESH_SIZE=str(size), KVMESH_RENDEZVOUS=f"{ADDRESSES[0]}:29500", **variables)
                for rank in range(size)]

    def start_under_mpirun(self, *arguments, **variables):
        """mpirun reaches the other host by a command in the place of ssh."""
        agent, hostfile = self.folder / "agent", self.folder / "hostfile"
        agent.write_text(f'#!/bin/sh\nshift\nexec {" ".join(self.hosts[1].enter)} sh -c "$*"\n')
        agent.chmod(0o755)
        hostfile.write_text("".join(f"{address} slots={RANKS_PER_HOST}\n" for address in ADDRESSES))
        exports = [word for name in variables for word in ("-x", name)]
        return [self.start(self.hosts[0], [
            MPIEXEC, "--hostfile", hostfile, "-np", 2 * RANKS_PER_HOST, "--map-by", "slot", "--bind-to", "none",
            "--mca", "plm_rsh_agent", agent, "--mca", "btl_vader_single_copy_mechanism", "none", *exports,
            KVMESH, *arguments], **variables)]

    def bytes_of(self, start, way):
        """Of four cases, with some larger combines that the hierarchical way takes: to all ranks, for example."""
        before = self.bytes_on_the_link()
        done = self.outcomes(start("verify", "--device", "cpu", "--threads", "1", "--seed", "13", "--count", "4",
                                   KVMESH_COMBINE_WAY=way))
        for code, out, err in done:
            self.assertEqual(code, 0, out + err)
        self.assertIn(f"on {2 * RANKS_PER_HOST} ranks", done[0][1])
        return self.bytes_on_the_link() - before

    def expect_fewer_bytes_within_hosts_first(self, start):
        flat, hierarchical = (self.bytes_of(start, way) for way in ("host", "hierarchical"))
        self.assertGreater(flat, 1 << 20)
        # A third of such a combine's bytes (hierarchical_way_test counts them exactly). Other combines, gathers of
        # queries and what the ranks agree on are the same for both.
        self.assertLess(hierarchical, 0.85 * flat)

    def test_over_tcp(self):
        self.expect_fewer_bytes_within_hosts_first(self.start_over_tcp)

    def test_under_mpirun_with_a_hostfile(self):
        self.expect_fewer_bytes_within_hosts_first(self.start_under_mpirun)

    def test_the_bench_counts_what_crosses_the_link(self):
        """Of large combines, beside which messages' headers and what the ranks agree on are little."""
        for way in ("flat", "hierarchical"):
            file, before = self.folder / f"{way}.json", self.bytes_on_the_link()
            for code, out, err in self.outcomes(self.start_over_tcp(
                    "bench", "--device", "cpu", "--op", "combine", "--ways", way.replace("flat", "host"), "--batch", "16",
                    "--context", "6000", "--q-heads", "48", "--kv-heads", "1", "--dim", "16", "--v-dim", "128",
                    "--repeats", "5", "--layers", "1", "--rotate-mib", "1", "--json", str(file))):
                self.assertEqual(code, 0, out + err)
            crossed = self.bytes_on_the_link() - before
            [row] = json.loads(file.read_text())["rows"]
            counted = row["between_hosts"]
            # All six ranks have keys of each row, and a host owns half of them.
            self.assertEqual(counted["hierarchical"], 16 * 48 * 4 * (128 + 1))
            self.assertEqual(counted["flat"], RANKS_PER_HOST * counted["hierarchical"])
            # Two combines to warm up; the exchange beside each is flat.
            expected = (2 + row["calls"] * row["turns"]) * (counted[way] + counted["flat"])
            self.assertGreater(crossed, expected)
            self.assertLess(crossed, 1.1 * expected)

    def test_ranks_choose_by_a_measured_table(self):
        cache = self.folder / "cache"

        def verify(**variables):
            for code, out, err in self.outcomes(self.start_over_tcp(
                    "verify", "--device", "cpu", "--threads", "1", "--seed", "5", "--count", "5",
                    KVMESH_CACHE_DIR=str(cache), **variables)):
                self.assertEqual(code, 0, out + err)
            return list(cache.glob("combine-*.table"))

        self.assertEqual(verify(), [], "on CPUs only if it is asked for")
        [table] = verify(KVMESH_COMBINE_TABLE="on")
        measured = table.read_text()
        self.assertIn("6 ranks on 2 hosts over tcp", measured)
        self.assertIn("host-0, host-1", measured)
        for way in ("host", "hierarchical"):
            for scatter in ("heads", "all"):
                self.assertRegex(measured, rf"(?m)^{way} all_to_all {scatter} \d+:[\d.]+ \d+:[\d.]+ \d+:[\d.]+$")
        self.assertEqual(verify(KVMESH_COMBINE_TABLE="on"), [table])
        self.assertEqual(table.read_text(), measured, "it is read")
        table.write_text(measured.replace("hosts", "ghosts"))
        self.assertEqual(verify(KVMESH_COMBINE_TABLE="on"), [table])
        self.assertIn("6 ranks on 2 hosts over tcp", table.read_text(), "a damaged file is replaced")

    def test_a_cut_link_ends_all_ranks_at_the_deadline(self):
        ranks = self.start_over_tcp("verify", "--device", "cpu", "--threads", "1", "--seconds", "60", "--timeout", "3")
        deadline = time.monotonic() + 30
        while self.bytes_on_the_link() < 1 << 20:  # they work
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.1)
        self.hosts[0].run("ip", "link", "set", self.hosts[0].link, "down")
        for rank, (code, _, err) in enumerate(self.outcomes(ranks)):
            self.assertNotEqual(code, 0, f"rank {rank}")
            self.assertRegex(err, r"rank \d", f"rank {rank}")


if __name__ == "__main__":
    if sys.argv[1] != "--inside":
        enter_namespaces()
    KVMESH, MPIEXEC = sys.argv[2:4]
    unittest.main(argv=sys.argv[:1], verbosity=2)
