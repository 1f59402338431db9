"""A row's tensors: pages in random order, more copies than any cache holds, and the expected output."""

import math
import random

import torch

BF16 = torch.bfloat16
LARGEST_ERROR = 0.02  # of the largest number of a row of the output; bfloat16 rounds by 0.004


class Wrong(Exception):
    """An output differs from float64."""


def rotated_bytes():
    """Bytes to rotate over, as in kvmesh bench: four times the last-level cache."""
    return 4 * torch.cuda.get_device_properties(0).L2_cache_size


class Case:
    """K and V are [pages, kv_heads, page, dim], one pair per replica; q is [tokens, q_heads, dim]. Latent
    values are a view of their keys. The
    page lists are the same for all replicas, as for the layers of a model."""

    def __init__(self, row, device="cuda", rotate=None):
        self.row = row
        self.lengths = row.sequence_lengths
        counts = [math.ceil(length / row.page) for length in self.lengths]
        order = list(range(sum(counts)))
        random.Random(1).shuffle(order)
        self.pages = [order[sum(counts[:i]):sum(counts[:i + 1])] for i in range(row.batch)]
        planes = 1 if row.latent else 2
        layer = planes * len(order) * row.kv_heads * row.page * row.dim * 2
        rotate = rotated_bytes() if rotate is None else rotate
        # Arithmetic is the cost of a prefill, not the read.
        replicas = math.ceil(rotate / layer) if row.op == "decode" else 1
        torch.manual_seed(1)
        shape = (len(order), row.kv_heads, row.page, row.dim)
        made = [[torch.randn(shape, dtype=BF16, device=device) for _ in range(planes)] for _ in range(replicas)]
        self.replicas = [(each[0], each[-1][..., :row.v_dim]) for each in made]
        self.q = torch.randn((row.rows, row.q_heads, row.dim), dtype=BF16, device=device)
        self.out = torch.full((row.rows, row.q_heads, row.v_dim), math.nan, dtype=BF16, device=device)
        self.scale = row.dim ** -0.5

    def ints(self, values, device=None):
        return torch.tensor(values, dtype=torch.int32, device=device or self.q.device)

    def page_indptr(self):
        return [sum(map(len, self.pages[:i])) for i in range(len(self.pages) + 1)]

    def page_indices(self):
        return [page for pages in self.pages for page in pages]

    def last_page_lengths(self):
        return [(length - 1) % self.row.page + 1 for length in self.lengths]

    def page_table(self):
        """[batch, most pages]; entries past a sequence's pages are 0."""
        most = max(map(len, self.pages))
        return [pages + [0] * (most - len(pages)) for pages in self.pages]

    def contiguous(self, sequence, replica=0):
        """K and V of a sequence: [kv_heads, length, dim]."""
        pages = self.ints(self.pages[sequence])
        flat = [plane[pages].transpose(0, 1).flatten(1, 2) for plane in self.replicas[replica]]
        return [plane[:, :self.lengths[sequence]].contiguous() for plane in flat]

    def expected(self, sequence, query, head, replica):
        """A row of the output in float64."""
        visible = self.lengths[sequence] - self.row.queries + query + 1
        group = self.row.q_heads // self.row.kv_heads
        k, v = (plane[head // group, :visible].double() for plane in self.contiguous(sequence, replica))
        q = self.q[sequence * self.row.queries + query, head].double()
        return torch.softmax(k @ q * self.scale, 0) @ v

    def check(self, out, replica):
        """The last row of the longest sequence and the first row of the last, of `out` [tokens, q_heads,
        dim]. Throws Wrong."""
        row, longest = self.row, self.lengths.index(max(self.lengths))
        for sequence, query, head in ((longest, row.queries - 1, 0), (row.batch - 1, 0, row.q_heads - 1)):
            expected = self.expected(sequence, query, head, replica)
            got = out[sequence * row.queries + query, head].double()
            error = ((got - expected).abs().max() / expected.abs().max()).item()
            if not error <= LARGEST_ERROR:
                raise Wrong(f"sequence {sequence}, query {query}, head {head}: off by {error:.3g} of the largest")
