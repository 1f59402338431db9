"""The combine, with the parameters by which vLLM calls cp_lse_ag_out_rs and dcp_a2a_lse_reduce."""

import math

import torch

import kvmesh

from ._group import mesh_of

_combiners = {}


def combine_heads(out, lse, group, ctx=None, return_lse=False, is_lse_base_on_e=True, seq_lens=None,
                  query_start_loc=None):
    """Merges the ranks' partials `out` [tokens, heads, dim] and `lse` [tokens, heads] exactly. Returns
    this rank's part of the heads in `out`'s type, with return_lse also their lse, in the base of
    `lse`. With seq_lens [sequences], this rank's keys of each sequence, and query_start_loc
    [sequences + 1] (vLLM 0.32 and later), rows of sequences without keys here, and rows past the last
    sequence's, may hold anything. `ctx` is not used. Collective in the GroupCoordinator `group`."""
    if group.world_size == 1:
        return (out, lse) if return_lse else out
    unit = 1 if is_lse_base_on_e else math.log(2)
    # Where a query sees no key, kernels write +inf or -inf, and anything for the output.
    empty = ~lse.isfinite()
    if seq_lens is not None:
        empty |= _has_no_keys(len(lse), seq_lens, query_start_loc)[:, None]
    lse = (lse.float() * unit).masked_fill(empty, -math.inf).contiguous()
    partial = out.float().masked_fill(empty[..., None], 0)
    merged, merged_lse = _combiner_of(group, out.device.type)(partial, lse, scatter="heads",
                                                              out_lse=True)
    merged = merged.to(out.dtype)
    return (merged, merged_lse / unit) if return_lse else merged


def _has_no_keys(rows, seq_lens, query_start_loc):
    sequence = torch.bucketize(torch.arange(rows, device=seq_lens.device), query_start_loc[1:],
                               right=True)
    past_the_last = seq_lens.new_zeros(1)
    return torch.cat((seq_lens, past_the_last))[sequence] == 0


def _combiner_of(group, device):
    mesh = mesh_of(group, device)
    if mesh not in _combiners:
        _combiners[mesh] = kvmesh.Combiner(mesh)
    return _combiners[mesh]
