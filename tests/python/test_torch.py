"""kvmesh.torch.PagedAttention: the class that it takes the place of, its test, and what that lacks."""

import contextlib
import io
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.nn.attention.experimental._paged_attention import PagedAttention as TorchsPagedAttention
from torch.nn.attention.flex_attention import (BlockMask, and_masks, create_block_mask,
                                               flex_attention, noop_mask)

import kvmesh
from kvmesh.torch import PagedAttention

SEED = Path(__file__).with_name("seed_paged_attention.py")
HEADS, KV_HEADS, DIM, PAGE, PAGES = 4, 2, 8, 4, 36
LENGTHS = [23, 4, 12, 31]


def run_seed(source):
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            exec(compile(source, str(SEED), "exec"), {"__name__": "__main__"})
    finally:
        torch.set_default_device(None)
    assert "SUCCESS: Paged Attention matches Reference Implementation." in said.getvalue()
    assert said.getvalue().count("PASSED") == 4


def test_the_seed_s_test_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    run_seed(SEED.read_text().replace('"cuda"', '"cpu"'))


@pytest.mark.skipif(not (torch.cuda.is_available() and kvmesh.cuda_device_count()),
                    reason="no GPU here")
def test_the_seed_s_test_on_a_gpu():
    run_seed(SEED.read_text())


class Case:
    """Rows of LENGTHS tokens in caches that are NaN elsewhere."""

    def __init__(self, paged, seed=0, pages=PAGES, empty=math.nan):
        random = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(shape, generator=random)
        self.paged = paged
        self.k_cache, self.v_cache = torch.full((2, 1, KV_HEADS, pages * PAGE, DIM), empty)
        self.k = [draw(KV_HEADS, length, DIM) for length in LENGTHS]
        self.v = [draw(KV_HEADS, length, DIM) for length in LENGTHS]
        self.query = draw(len(LENGTHS), HEADS, 6, DIM)
        self.kv_lens = torch.tensor(LENGTHS)
        for row, length in enumerate(LENGTHS):
            paged.reserve(torch.tensor([row]), torch.tensor([length]))
            # In two halves, the second one first.
            for begin, end in ((length // 2, length), (0, length // 2)):
                paged.assign(torch.tensor([row]), torch.arange(begin, end)[None],
                             self.k[row][None, :, begin:end], self.v[row][None, :, begin:end],
                             self.k_cache, self.v_cache)

    def forward(self, rows=None, **options):
        """(out, lse), of some rows of the batch."""
        rows = torch.arange(len(LENGTHS)) if rows is None else torch.tensor(rows)
        return self.paged.forward(self.query[rows], self.k_cache, self.v_cache, self.kv_lens[rows],
                                  enable_gqa=True, return_lse=True, batch_indices=rows, **options)

    def expected(self, mask, score=lambda s, b, h, q, kv: s, scale=1 / math.sqrt(DIM)):
        """The same in float64, every pair by itself."""
        queries = self.query.shape[2]
        o = torch.zeros(len(LENGTHS), HEADS, queries, DIM, dtype=torch.float64)
        lse = torch.full(o.shape[:3], -math.inf, dtype=torch.float64)
        for b, length in enumerate(LENGTHS):
            for h in range(HEADS):
                for q in range(queries):
                    at = [(torch.tensor(b), torch.tensor(h), torch.tensor(q), torch.tensor(kv))
                          for kv in range(length)]
                    seen = [i for i, where in enumerate(at) if mask(*where)]
                    if not seen:
                        continue
                    keys = self.k[b][h // 2, seen].double()
                    scores = keys @ self.query[b, h, q].double() * scale
                    scores = torch.stack([score(s, *at[i]) for s, i in zip(scores, seen)])
                    lse[b, h, q] = scores.logsumexp(0)
                    o[b, h, q] = scores.softmax(0) @ self.v[b][h // 2, seen].double()
        return o, lse


def case(**options):
    return Case(PagedAttention(PAGES, PAGE, len(LENGTHS), device="cpu"), **options)


def close(results, expected, bound=1e-5):
    for result, of in zip(results, expected):
        torch.testing.assert_close(result.double(), of, atol=bound, rtol=0)


def causal(b, h, q, kv):
    return q >= kv


# ---- Mods and masks ----

DOCUMENT = torch.randint(0, 3, (len(LENGTHS), 40), generator=torch.Generator().manual_seed(5))
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
TABLE = torch.randn(2, HEADS, 40, generator=torch.Generator().manual_seed(6))
FIRST = torch.tensor(LENGTHS) - 6
CAP = torch.tensor(2.0)


def documents(b, h, q, kv):
    return (q + FIRST[b] >= kv) & ((DOCUMENT[b, kv] == DOCUMENT[b][q]) | torch.lt(kv, 3))


def everything(score, b, h, q, kv):
    capped = CAP * torch.tanh(score / CAP)
    near = torch.where(kv < 10, capped * SLOPES[h] + TABLE[1, h, kv], torch.clamp(score, max=1.0))
    return near - SLOPES[-1] * (q - kv).abs().to(torch.float32)


@pytest.mark.parametrize("block", [PAGE, 2, 128, (4, 8), (3, 6)])
def test_torch_s_mods_and_block_masks_of_any_block_size(block):
    c = case()
    mask = create_block_mask(and_masks(documents, noop_mask), len(LENGTHS), None, 6, max(LENGTHS),
                             device="cpu", BLOCK_SIZE=block)
    close(c.forward(block_mask=mask, score_mod=everything), c.expected(documents, everything))


def test_without_a_mask_attention_is_causal_over_query_indices():
    c = case()
    close(c.forward(), c.expected(causal))


@pytest.mark.parametrize("scale", [0.9, 0.0])
def test_a_scale_takes_the_place_of_the_usual_one(scale):
    c = case()
    close(c.forward(scale=scale, score_mod=everything), c.expected(causal, everything, scale))


def test_torch_s_flex_attention_is_not_called(monkeypatch):
    from torch.nn.attention import flex_attention as module
    from torch._higher_order_ops import flex_attention as operator  # what it ends in

    def refuse(*arguments, **options):
        raise AssertionError("a call of torch's attention")

    c = case()
    mask = create_block_mask(documents, len(LENGTHS), None, 6, max(LENGTHS), device="cpu",
                             BLOCK_SIZE=8)
    for owner, name in ((module, "flex_attention"), (type(operator), "__call__"),
                        (torch.nn.functional, "scaled_dot_product_attention")):
        monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(AssertionError, match="torch's attention"):
        operator(c.query)
    close(c.forward(block_mask=mask, score_mod=everything), c.expected(documents, everything))


def test_a_block_mask_s_lists_count_where_its_mod_does_not():
    c = case()
    # Queries 0..3 see keys 0..7; of the last block (4..7) those that are even. Queries 4..7: none.
    lists = [torch.tensor(each, dtype=torch.int32)[None, None]
             for each in ([1, 0], [[1, 0], [0, 1]], [1, 0], [[0, 1], [0, 1]])]
    mask = BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=(4, 4), mask_mod=lambda b, h, q, kv: kv % 2 == 0,
                                    seq_lengths=(6, 8))
    close(c.forward(block_mask=mask),
          c.expected(lambda b, h, q, kv: q < 4 and kv < 8 and (kv < 4 or kv % 2 == 0)))


def test_batch_indices_reach_pages_and_mods():
    c = case()
    mask = create_block_mask(lambda b, h, q, kv: kv < 3 + 5 * b, 2, None, 6, max(LENGTHS),
                             device="cpu", BLOCK_SIZE=PAGE)
    o, lse = c.forward([3, 0], block_mask=mask)
    expected = [c.expected(lambda b, h, q, kv, n=n: kv < n) for n in (3, 8)]
    close((o[0], lse[0]), [each[3] for each in expected[0]])
    close((o[1], lse[1]), [each[0] for each in expected[1]])


def test_negative_indices_count_from_the_end():
    bias = torch.randn(40, generator=torch.Generator().manual_seed(7))

    def relative(score, b, h, q, kv):
        inner = TABLE[1, h - HEADS, kv - q] + TABLE[0][h][kv - q - 1]
        return score + bias[kv - q] + bias[-1] * kv + TABLE[-1, h, kv] + inner

    c = case()
    close(c.forward(score_mod=relative), c.expected(causal, relative))


def test_mods_compute_in_int32_and_float32():
    forward = case().forward
    large = torch.tensor([2**40])
    with pytest.raises(OverflowError, match="int32: 1099511627776 does not fit"):
        forward(score_mod=lambda s, b, h, q, kv: s + large[kv * 0])
    with pytest.raises(IndexError):
        forward(score_mod=lambda s, b, h, q, kv: s + SLOPES[HEADS])
    for convert in (lambda s: s.to(torch.float16), lambda s: s.bfloat16(), lambda s: s.half(),
                    lambda s: s.to(torch.int8), lambda s: s.type(torch.uint8)):
        with pytest.raises(TypeError, match="cannot convert to torch"):
            forward(score_mod=lambda s, b, h, q, kv: s + convert(s))


def test_what_cannot_be_traced_says_so():
    forward = case().forward
    with pytest.raises(TypeError, match="traced"):
        forward(score_mod=lambda s, b, h, q, kv: s if q > kv else -s)
    with pytest.raises(TypeError, match="cannot trace .*sort"):
        forward(score_mod=lambda s, b, h, q, kv: torch.sort(s))
    with pytest.raises(TypeError, match="needs more indices"):
        forward(score_mod=lambda s, b, h, q, kv: TABLE[0][h])
    with pytest.raises(TypeError, match="one element"):
        forward(score_mod=lambda s, b, h, q, kv: s + TABLE[0, h, :])


# ---- Ranks ----

@pytest.mark.parametrize("ranks, placement, share", [(2, "balanced", False), (2, "striped", True),
                                                     (3, "striped", False)])
def test_ranks_hold_parts_of_the_pages_and_give_what_one_gives(ranks, placement, share):
    mask = create_block_mask(documents, len(LENGTHS), None, 6, max(LENGTHS), device="cpu",
                             BLOCK_SIZE=8)
    alone = case().forward(block_mask=mask, score_mod=everything)
    held = []

    def body(mesh):
        paged = PagedAttention(PAGES, PAGE, len(LENGTHS), device="cpu", mesh=mesh,
                               placement=placement)
        c = Case(paged, pages=paged.pages_per_rank if share else PAGES)
        close(c.forward(block_mask=mask, score_mod=everything), [each.double() for each in alone],
              2e-6)
        close(c.forward(), c.expected(causal))
        held.append(int((~c.k_cache[0, 0, :, 0].isnan()).sum()))

    kvmesh.run_on_threads(ranks, body)
    assert sum(held) == sum(LENGTHS) and len(held) == ranks and min(held) > 0


# ---- The methods of torch's class ----

def test_pages_are_handed_out_as_torch_s_class_does():
    ours = PagedAttention(8, 16, 3, device="cpu")
    torchs = TorchsPagedAttention(8, 16, 3, device="cpu")
    calls = [("reserve", 0, 1), ("reserve", 1, 40), ("reserve", 0, 17), ("reserve", 1, 48),
             ("reserve", 0, 0), ("erase", 1), ("reserve", 2, 80), ("erase", 0), ("reserve", 1, 33)]
    for name, row, *length in calls:
        for paged in (ours, torchs):
            getattr(paged, name)(torch.tensor([row]), *[torch.tensor([n]) for n in length])
        assert ours.capacity.tolist() == torchs.capacity.tolist()
        assert len(ours.empty_pages) == len(torchs.empty_pages)
        assert ((ours.page_table >= 0) == (torchs.page_table >= 0)).all()
        taken = ours.page_table[ours.page_table >= 0].tolist()
        assert sorted(taken + ours.empty_pages) == list(range(8))
        for row in range(3):
            for logical, page in enumerate(ours.page_table[row]):
                assert page < 0 or ours.physical_to_logical[row, page] == logical
        assert (ours.physical_to_logical >= 0).sum() == len(taken)
    with pytest.raises(kvmesh.OutOfPages):
        ours.reserve(torch.tensor([0]), torch.tensor([1]))


def test_physical_masks_and_scores_in_torch_s_own_attention():
    c = case(empty=0.0)
    c.paged.erase(2)
    rows = torch.tensor([3, 0, 1])
    keep = lambda b, h, q, kv: kv <= q + 9 * b
    score = lambda s, b, h, q, kv: s * SLOPES[h] + kv
    mask = create_block_mask(keep, 3, None, 6, max(LENGTHS), device="cpu", BLOCK_SIZE=8)
    kv_lens = c.kv_lens[rows]
    theirs = flex_attention(
        c.query[rows], c.k_cache, c.v_cache,
        block_mask=c.paged.convert_logical_block_mask(mask, rows, kv_lens),
        score_mod=c.paged.get_score_mod(score, kv_lens, rows), enable_gqa=True)
    ours, _ = c.forward(rows.tolist(), block_mask=mask, score_mod=score)
    close([ours], [theirs.double()])
    mod = c.paged.get_mask_mod(None, torch.tensor(LENGTHS))
    seen = [int(mod(torch.tensor(b), torch.tensor(0), torch.tensor(0),
                    torch.arange(PAGES * PAGE)).sum()) for b in range(4)]
    assert seen == [23, 4, 0, 31]


def test_lengths_and_rows_are_integers():
    c = case()
    capacity = c.paged.capacity.tolist()
    one = torch.tensor([1])
    for wrong in ((one, torch.tensor([1.5])), (one, 1.5), (torch.tensor([1.0]), one), (one, math.nan)):
        with pytest.raises(TypeError):
            c.paged.reserve(*wrong)
    with pytest.raises(TypeError):
        c.paged.erase(1.0)
    for lengths in (c.kv_lens + 0.5, [2.5] * 4):
        with pytest.raises(TypeError):
            c.paged.forward(c.query, c.k_cache, c.v_cache, lengths, enable_gqa=True)
    c.paged.reserve(1, one)
    assert c.paged.capacity.tolist() == capacity


def test_errors_change_nothing():
    c = case()
    before = c.forward()
    row, there = torch.tensor([0]), torch.tensor([[0]])
    k = torch.zeros(1, KV_HEADS, 1, DIM)
    for wrong in ((torch.tensor([0, 1]), there, k, k), (row, torch.tensor([[0, 1]]), k, k),
                  (row, torch.tensor([[PAGES * PAGE]]), k, k), (row, there, k[..., :4], k),
                  (row, there, k, k[:, :1]), (row, there, k, k.requires_grad_())):
        with pytest.raises(RuntimeError):
            c.paged.assign(*wrong, c.k_cache, c.v_cache)
    with pytest.raises(RuntimeError, match="enable_gqa"):
        c.paged.forward(c.query, c.k_cache, c.v_cache, c.kv_lens)
    with pytest.raises(RuntimeError, match="room"):
        c.paged.forward(c.query, c.k_cache, c.v_cache, c.kv_lens + 5, enable_gqa=True)
    with pytest.raises(RuntimeError, match="gradients"):
        c.paged.forward(c.query.clone().requires_grad_(), c.k_cache, c.v_cache, c.kv_lens)
    close(c.forward(), [each.double() for each in before], 0)


def test_half_types_and_other_strides():
    c = case()
    expected = c.expected(causal)
    c.k_cache, c.v_cache = c.k_cache.bfloat16(), c.v_cache.half().bfloat16()
    query = c.query.transpose(1, 2).contiguous().transpose(1, 2).bfloat16()
    out = c.paged.forward(query, c.k_cache, c.v_cache, c.kv_lens, enable_gqa=True)
    assert out.dtype == torch.bfloat16
    close([out], expected, 0.1)


def test_it_can_be_closed_and_the_mesh_stays():
    with kvmesh.Mesh() as mesh:
        with PagedAttention(8, 4, 2, device="cpu", mesh=mesh) as paged:
            paged.reserve(1, 5)
            assert repr(paged) == ("<kvmesh.torch.PagedAttention: 6 of 8 pages of 4 tokens free, 2 rows, "
                                   f"{mesh!r}>")
        assert paged.closed and repr(paged) == "<kvmesh.torch.PagedAttention: closed>"
        with pytest.raises(kvmesh.InvalidArgument, match="closed"):
            paged.reserve(0, 1)
        mesh.barrier()
