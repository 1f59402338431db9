"""Times of CUDA graphs that go through the replicas, as kvmesh bench takes them."""

import math

import torch

TURN_SECONDS = 0.002  # the shortest graph
MOST_CALLS = 256
WARM_SECONDS = 0.1


class Graph:
    """Calls of `run(replica)`, a round of all replicas or several, captured once. `last` is the output of
    the last call, which is on the last replica."""

    def __init__(self, run, replicas):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run(0)  # compiles missing kernels
            seconds = min(self.seconds_of(lambda: [run(i) for i in range(replicas)]) for _ in range(3)) / replicas
        torch.cuda.current_stream().wait_stream(stream)
        rounds = min(TURN_SECONDS / (seconds * replicas), MOST_CALLS / replicas)
        self.calls = max(1, int(rounds)) * replicas
        self.warm_replays = math.ceil(WARM_SECONDS / (seconds * self.calls))
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for call in range(self.calls):
                self.last = run(call % replicas)

    def replay(self):
        self.graph.replay()
        torch.cuda.synchronize()

    @staticmethod
    def seconds_of(work):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    def turns(self, count):
        """Seconds per call of each replay. Untimed replays before them raise the clocks and bring the host
        ahead of the device."""
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        for _ in range(self.warm_replays):
            self.graph.replay()
        marks[0].record()
        for mark in marks[1:]:
            self.graph.replay()
            mark.record()
        marks[-1].synchronize()
        return [begin.elapsed_time(end) * 1e-3 / self.calls for begin, end in zip(marks, marks[1:])]
