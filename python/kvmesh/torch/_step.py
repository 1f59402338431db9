"""A step's calls as operators of torch."""

import itertools
import weakref
from typing import Dict, Optional, Tuple, Union

import torch
from torch import Tensor

from .._kvmesh import StepPlan

_plans: Dict[int, StepPlan] = {}
_numbers = itertools.count(1)


class Step:
    """A StepPlan for torch.compile: its calls are the operators kvmesh::run and its parts, which have
    fake implementations. They keep their order and are never removed. Make it once and plan later batches
    in place (KvCache.replan): a graph is compiled for one Step.

        step = kvmesh.torch.Step(cache.plan(batch, limits=(32, 1)))
        decode = torch.compile(lambda q, k, v: model(step, q, k, v), fullgraph=True)
        cache.replan(step.plan, batch)
    """

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan
        self._number = next(_numbers)
        # Every operator changes this tensor, so torch keeps them all, in order.
        self._order = torch.zeros((), dtype=torch.int64, device="cpu")
        _plans[self._number] = plan
        weakref.finalize(self, _plans.pop, self._number, None)

    def __repr__(self) -> str:
        return f"<kvmesh.torch.Step: {self.plan!r}>"

    def run(self, layer: int, q: Tensor, k: Optional[Tensor] = None, v: Optional[Tensor] = None, *,
            sinks: Optional[Tensor] = None,
            lse: bool = False) -> Union[Tensor, Tuple[Tensor, Tensor]]:
        """StepPlan.run: out, with lse (out, lse)."""
        out, lse_of_out = _run(self._order, self._number, layer, q, k, v, sinks, lse)
        return (out, lse_of_out) if lse else out

    def append(self, layer: int, k: Tensor, v: Tensor) -> None:
        """StepPlan.append."""
        _append(self._order, self._number, layer, k, v)

    def attend_partial(self, layer: int, q: Tensor, *,
                       sinks: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """StepPlan.attend_partial: (o, lse)."""
        return _attend_partial(self._order, self._number, layer, q, sinks)

    def gather_queries(self, layer: int, share: Tensor) -> Tensor:
        """StepPlan.gather_queries: q with the heads of all ranks."""
        return _gather_queries(self._order, self._number, layer, share)

    def combine(self, o: Tensor, lse: Tensor, *, out_lse: bool = False,
                layer: int = 0) -> Union[Tensor, Tuple[Tensor, Tensor]]:
        """StepPlan.combine, of `layer` or another layer of its group: out, with out_lse (out, out_lse).
        The output is in float32."""
        out, lse_of_out = _combine(self._order, self._number, layer, o, lse, out_lse)
        return (out, lse_of_out) if out_lse else out


def _plan(number):
    """Returns the plan; its number may be symbolic in torch.compile."""
    return _plans[int(number)]


def _output(plan, layer, like, lse):
    """Makes empty tensors for merged rows of a layer; without an LSE its tensor has no elements."""
    tokens, heads, v_dim = plan.output_shape(layer)
    if tokens == plan.query_tokens:
        tokens = like.shape[0]  # which may be symbolic
    return (like.new_empty(tokens, heads, v_dim),
            like.new_empty((tokens, heads) if lse else (0,), dtype=torch.float32))


def _partial(plan, layer, like):
    tokens, heads, _ = like.shape
    return (like.new_empty(tokens, heads, plan.output_shape(layer)[2], dtype=torch.float32),
            like.new_empty(tokens, heads, dtype=torch.float32))


def _queries(plan, layer, share):
    _, heads, k_dim = plan.query_shape(layer)
    return share.new_empty(share.shape[0], heads, k_dim)


@torch.library.custom_op("kvmesh::run", mutates_args={"order"})
def _run(order: Tensor, plan: int, layer: int, q: Tensor, k: Optional[Tensor], v: Optional[Tensor],
         sinks: Optional[Tensor], with_lse: bool) -> Tuple[Tensor, Tensor]:
    out, lse = _output(_plan(plan), layer, q, with_lse)
    _plan(plan).run(layer, q, k, v, out=out, lse=lse if with_lse else None, sinks=sinks)
    return out, lse


@torch.library.custom_op("kvmesh::append", mutates_args={"order"})
def _append(order: Tensor, plan: int, layer: int, k: Tensor, v: Tensor) -> None:
    _plan(plan).append(layer, k, v)


@torch.library.custom_op("kvmesh::attend_partial", mutates_args={"order"})
def _attend_partial(order: Tensor, plan: int, layer: int, q: Tensor,
                    sinks: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
    o, lse = _partial(_plan(plan), layer, q)
    _plan(plan).attend_partial(layer, q, o, lse, sinks=sinks)
    return o, lse


@torch.library.custom_op("kvmesh::gather_queries", mutates_args={"order"})
def _gather_queries(order: Tensor, plan: int, layer: int, share: Tensor) -> Tensor:
    q = _queries(_plan(plan), layer, share)
    _plan(plan).gather_queries(layer, share, q)
    return q


@torch.library.custom_op("kvmesh::combine", mutates_args={"order"})
def _combine(order: Tensor, plan: int, layer: int, o: Tensor, lse: Tensor,
             with_lse: bool) -> Tuple[Tensor, Tensor]:
    out, out_lse = _output(_plan(plan), layer, o, with_lse)
    _plan(plan).combine(o, lse, out=out, out_lse=out_lse if with_lse else None, layer=layer)
    return out, out_lse


@_run.register_fake
def _(order, plan, layer, q, k, v, sinks, with_lse):
    return _output(_plan(plan), layer, q, with_lse)


@_append.register_fake
def _(order, plan, layer, k, v):
    return None


@_attend_partial.register_fake
def _(order, plan, layer, q, sinks):
    return _partial(_plan(plan), layer, q)


@_gather_queries.register_fake
def _(order, plan, layer, share):
    return _queries(_plan(plan), layer, share)


@_combine.register_fake
def _(order, plan, layer, o, lse, with_lse):
    return _output(_plan(plan), layer, o, with_lse)
