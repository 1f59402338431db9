"""What the plug-in for vLLM does without vLLM: tests/engines/vllm_cpu.sh runs it inside of vLLM."""

import math
from types import SimpleNamespace

import pytest

import kvmesh

torch = pytest.importorskip("torch")

from kvmesh.vllm import _combine


@pytest.mark.parametrize("unit", [1, math.log(2)])
def test_combine_heads(unit, monkeypatch):
    generator = torch.Generator().manual_seed(4)
    out = torch.randn(2, 3, 4, 8, generator=generator).bfloat16()  # [ranks, tokens, heads, dim]
    lse = torch.randn(2, 3, 4, generator=generator)
    lse[0, 1], out[0, 1] = math.inf, math.nan  # rank 0 has no keys of token 1
    lse[:, 2], out[:, 2] = -math.inf, math.nan  # nobody has keys of token 2
    weights = torch.where(lse.isfinite(), (lse * unit).exp(), 0)[..., None]
    total = weights.sum(0)
    expected = (weights * out.float().nan_to_num()).sum(0) / total.clamp_min(1e-30)
    expected_lse = total[..., 0].log() / unit

    def body(mesh):
        monkeypatch.setattr(_combine, "mesh_of", lambda group, device: group.mesh)
        group = SimpleNamespace(world_size=2, mesh=mesh)
        mine = slice(2 * mesh.rank, 2 * mesh.rank + 2)
        merged, merged_lse = _combine.combine_heads(out[mesh.rank], lse[mesh.rank], group,
                                                    return_lse=True, is_lse_base_on_e=unit == 1)
        assert merged.dtype == torch.bfloat16
        torch.testing.assert_close(merged.float(), expected[:, mine], rtol=0, atol=0.02)
        torch.testing.assert_close(merged_lse, expected_lse[:, mine])

    kvmesh.run_on_threads(2, body)


def test_rows_without_keys_here_may_hold_anything(monkeypatch):
    """Two queries of a sequence, one of another, and a row past them; ranks without keys of one."""
    generator = torch.Generator().manual_seed(5)
    out = torch.randn(2, 4, 2, 8, generator=generator)
    lse = 30 * torch.randn(2, 4, 2, generator=generator)
    starts = torch.tensor([0, 2, 3], dtype=torch.int32)

    def body(mesh):
        monkeypatch.setattr(_combine, "mesh_of", lambda group, device: group.mesh)
        group = SimpleNamespace(world_size=2, mesh=mesh)
        keys = torch.tensor([[0, 7], [5, 0]][mesh.rank], dtype=torch.int32)
        merged, merged_lse = _combine.combine_heads(
            out[mesh.rank], lse[mesh.rank], group, None, True, seq_lens=keys, query_start_loc=starts)
        head = mesh.rank
        for row, rank in enumerate((1, 1, 0)):
            torch.testing.assert_close(merged[row, 0], out[rank, row, head])
            torch.testing.assert_close(merged_lse[row, 0], lse[rank, row, head])
        assert not merged[3].any() and merged_lse[3, 0] == -math.inf
        none = _combine.combine_heads(out[mesh.rank], lse[mesh.rank], group, seq_lens=keys[:0],
                                      query_start_loc=starts[:1])
        assert not none.any()

    kvmesh.run_on_threads(2, body)


def test_one_rank_has_the_whole():
    out, lse = torch.zeros(1, 1, 1), torch.zeros(1, 1)
    assert _combine.combine_heads(out, lse, SimpleNamespace(world_size=1)) is out
