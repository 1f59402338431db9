"""The combine, with the parameters by which vLLM calls cp_lse_ag_out_rs and dcp_a2a_lse_reduce."""

import math

import kvmesh

from ._group import mesh_of

_combiners = {}


def combine_heads(out, lse, group, ctx=None, return_lse=False, is_lse_base_on_e=True):
    """Merges the ranks' partials `out` [tokens, heads, dim] and `lse` [tokens, heads] exactly. Returns
    this rank's part of the heads in `out`'s type, with return_lse also their lse, in the base of
    `lse`. `ctx` is not used. Collective in the GroupCoordinator `group`."""
    if group.world_size == 1:
        return (out, lse) if return_lse else out
    unit = 1 if is_lse_base_on_e else math.log(2)
    # Where a query sees no key, kernels write +inf or -inf, and anything for the output.
    empty = ~lse.isfinite()
    lse = (lse.float() * unit).masked_fill(empty, -math.inf).contiguous()
    partial = out.float().masked_fill(empty[..., None], 0)
    merged, merged_lse = _combiner_of(group, out.device.type)(partial, lse, scatter="heads",
                                                              out_lse=True)
    merged = merged.to(out.dtype)
    return (merged, merged_lse / unit) if return_lse else merged


def _combiner_of(group, device):
    mesh = mesh_of(group, device)
    if mesh not in _combiners:
        _combiners[mesh] = kvmesh.Combiner(mesh)
    return _combiners[mesh]
