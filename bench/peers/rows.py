"""The rows of the comparison: shapes, their bytes and operations, and kvmesh's flags for them."""

import dataclasses
import fnmatch
import random
import sys

ELEMENT = 2  # bytes of a bfloat16


@dataclasses.dataclass(frozen=True)
class Row:
    op: str  # decode: counted in bytes; prefill: in operations
    batch: int
    context: int  # tokens of each sequence, or their mean
    q_heads: int
    kv_heads: int
    queries: int = 1  # the newest tokens of each sequence, causal
    dim: int = 128  # of keys
    page: int = 16
    lengths: str = "even"  # or ragged, or a list such as 65536,7*4096
    latent: int = 0  # not 0: values are this many first elements of the keys (MLA)

    @property
    def key(self):
        """The name by which --rows selects."""
        shape = self.lengths.replace("*", "x").replace(",", "+") if self.is_listed else f"{self.batch}x{self.context}"
        parts = [self.op, shape, "ragged" * (self.lengths == "ragged"), f"{self.q_heads}/{self.kv_heads}",
                 f"q{self.queries}" * self.has_own_queries, f"d{self.dims}" * (self.dim != 128),
                 f"p{self.page}" * (self.page != 16)]
        return "-".join(filter(None, parts))

    @property
    def title(self):
        shape = f"{self.batch} × {self.context}" + " ragged" * (self.lengths == "ragged")
        if self.is_listed:
            shape = self.lengths.replace("*", " × ").replace(",", " and ")
        parts = [shape, f"{self.q_heads}/{self.kv_heads}", f"{self.queries} queries" * self.has_own_queries,
                 f"dim {self.dims}" * (self.dim != 128), f"page {self.page}" * (self.page != 16)]
        return ", ".join(filter(None, parts))

    @property
    def v_dim(self):
        return self.latent or self.dim

    @property
    def dims(self):
        return f"{self.dim}/{self.latent}" if self.latent else str(self.dim)

    @property
    def is_listed(self):
        return self.lengths not in ("even", "ragged")

    @property
    def has_own_queries(self):
        """True for more queries than a plain decode has, and fewer than the whole sequence."""
        return self.queries not in (1, self.context)

    @property
    def sequence_lengths(self):
        """Tokens of each sequence. A ragged batch is kvmesh's: n sequences of 1/n, 3/n ... (2n - 1)/n of
        the context, shuffled (by another generator than kvmesh's, so in another order)."""
        if self.lengths == "even":
            return [self.context] * self.batch
        if self.lengths == "ragged":
            odd = [self.context * (2 * i + 1) // self.batch for i in range(self.batch // 2)]
            middle = [self.context] * (self.batch % 2)
            lengths = odd + middle + [2 * self.context - length for length in reversed(odd)]
            random.Random(2).shuffle(lengths)
            return lengths
        return expanded(self.lengths)

    @property
    def tokens(self):
        """Keys of the whole batch."""
        return sum(self.sequence_lengths)

    @property
    def rows(self):
        """Query tokens of the whole batch."""
        return self.batch * self.queries

    @property
    def bytes(self):
        """Bytes of K, V, Q and O, each once; latent values are bytes of K."""
        token = self.dim if self.latent else self.dim + self.v_dim
        return ELEMENT * (self.tokens * self.kv_heads * token + self.rows * self.q_heads * (self.dim + self.v_dim))

    @property
    def operations(self):
        """Two operations per multiply-add of both products, visible pairs only."""
        pairs = sum(length - i for length in self.sequence_lengths for i in range(self.queries))
        return 2 * pairs * self.q_heads * (self.dim + self.v_dim)

    @property
    def amount(self):
        return self.bytes if self.op == "decode" else self.operations

    def flags(self):
        """The flags of kvmesh bench."""
        shape = ["--batch", self.batch, "--context", self.context, "--lengths", self.lengths]
        if self.is_listed:
            shape = ["--lengths", self.lengths]
        return [*map(str, ["--op", self.op, *shape, "--queries", self.queries, "--q-heads", self.q_heads,
                           "--kv-heads", self.kv_heads, "--dim", self.dim, "--page-size", self.page,
                           "--dtype", "bfloat16", "--output", "final"]),
                *(["--latent", "--v-dim", str(self.latent)] if self.latent else [])]


def expanded(text):
    """65536,7*4096 -> [65536, 4096, 4096 ...]."""
    lengths = []
    for item in text.split(","):
        count, _, length = item.rpartition("*")
        lengths += [int(length)] * int(count or 1)
    return lengths


def listed(text, q_heads, kv_heads):
    """A decode of sequences with these lengths."""
    lengths = expanded(text)
    return Row("decode", len(lengths), sum(lengths) // len(lengths), q_heads, kv_heads, lengths=text)


ROWS = [
    Row("decode", 64, 8192, 32, 8),
    Row("decode", 1, 131072, 32, 8),
    Row("decode", 256, 1024, 64, 8),
    Row("decode", 16, 8192, 64, 8, lengths="ragged"),
    listed("65536,7*4096", 64, 8),
    Row("decode", 32, 4096, 32, 32),
    Row("decode", 1, 8192, 64, 8),
    Row("decode", 1, 32768, 64, 8),
    Row("decode", 8, 8192, 64, 8),
    Row("decode", 8, 32768, 64, 8),
    Row("decode", 1, 1048576, 64, 8),
    *(Row("decode", 64, 8192, 32, 8, queries=queries) for queries in (2, 4, 8)),
    *(Row("decode", 64, 8192, 32, 8, dim=dim) for dim in (64, 96, 256)),
    *(Row("decode", 64, 8192, heads, 1, dim=576, page=64, latent=512) for heads in (16, 128)),
    Row("prefill", 8, 2048, 32, 8, queries=2048),
    Row("prefill", 2, 8192, 32, 8, queries=8192),
    Row("prefill", 2, 8192, 32, 8, queries=8192, page=1),
    Row("prefill", 1, 16384, 32, 8, queries=16384),
    Row("prefill", 4, 32768, 32, 8, queries=512),
]


def select(patterns):
    """The rows whose key matches one of the shell patterns; all if there are no patterns. Ends the
    program if a pattern matches nothing."""
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(row.key, pattern) for row in ROWS):
            sys.exit(f"no row is '{pattern}'; there are {', '.join(row.key for row in ROWS)}")
    return [row for row in ROWS if not patterns or any(fnmatch.fnmatchcase(row.key, p) for p in patterns)]
