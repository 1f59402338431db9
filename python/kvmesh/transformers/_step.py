"""One forward of a model: the tokens that its layers append, and the plans by which they attend."""

import torch

from .. import _kvmesh
from ..errors import InvalidArgument, Unsupported


class Step:
    """The new tokens of a batch of sequences, which each layer appends. Padding is left out."""

    def __init__(self, kv, plans, sequences, earlier, tokens, padding):
        """plans: those of earlier steps by kind, which are planned anew in place. earlier, tokens: how
        many a row has had and gets now, with padding."""
        self._kv, self._plans = kv, plans
        self._plan_of, self._appends = {}, None
        self._kept = None  # rows of [batch * tokens] that are no padding; None: all
        lengths, new = [kv.length(each) for each in sequences], [tokens] * len(sequences)
        if padding is not None:
            new = _count_new_tokens(padding, lengths, tokens)
            if min(new) < tokens:
                self._kept = padding[:, -tokens:].flatten().nonzero().flatten()
        self._is_padded = any(length + count < earlier + tokens for length, count in zip(lengths, new))
        self._batch = [(each, count) for each, count in zip(sequences, new) if count > 0]

    def plan(self, mask, window, softcap, scale):
        """Returns this step's plan for layers of a kind, which all have the same mask object."""
        layers = (mask, window, softcap, scale)
        if layers not in self._plan_of:
            self._plan_of[layers] = self._find(*layers)
        return self._plan_of[layers]

    def _find(self, mask, window, softcap, scale):
        plain = mask.of_window(window)
        if plain is None and self._is_padded:
            raise Unsupported("a KvmeshCache takes padding with masks that are causal, with a window "
                              f"or without, not with\n{mask.text}")
        options = {"mask": plain or mask.mod, "scale": scale,
                   "score": None if softcap is None else _kvmesh.soft_cap(softcap)}
        if plain is None and "buffer" in mask.text:  # whose numbers no text has
            return self._make(None, options)
        kind = (options["mask"].text, softcap, scale)
        plan = self._plans[kind] = self._make(self._plans.get(kind), options)
        return plan

    def _make(self, plan, options):
        """Makes a plan of this step, in place if there is one; the step's first plan appends."""
        batch = self._batch
        if self._appends is not None:
            batch = [(each, 0, count) for each, count in batch]
        if plan is None:
            plan = self._kv.plan(batch, **options)
        else:
            self._kv.replan(plan, batch)
        self._appends = self._appends or plan
        return plan

    def run(self, plan, layer, q, k, v, sinks):
        """Appends and attends. q, k, v [batch, heads, tokens, dim]; returns [batch, tokens, heads,
        v_dim], zeros for padding."""
        batch, heads, tokens, _ = q.shape
        q, k, v = (self._rows(each) for each in (q, k, v))
        if sinks is not None:
            sinks = sinks.detach().float()
        if plan is self._appends:
            out = plan.run(layer, q, k, v, sinks=sinks)
        else:
            self._appends.append(layer, k, v)
            out = plan.run(layer, q, sinks=sinks)
        if self._kept is not None:
            out = out.new_zeros(batch * tokens, *out.shape[1:]).index_copy_(0, self._kept, out)
        return out.view(batch, tokens, heads, -1)

    def _rows(self, values):
        """Returns [batch, heads, tokens, dim] as [tokens that are no padding, heads, dim]."""
        values = values.transpose(1, 2).flatten(0, 1)
        return values if self._kept is None else values.index_select(0, self._kept)


def _count_new_tokens(padding, lengths, tokens):
    """Returns how many of each row's newest `tokens` are no padding. Waits for the device, once."""
    new = padding[:, -tokens:].sum(1)
    is_left = (padding[:, 1:] >= padding[:, :-1]).all(1)
    new, earlier, is_left = torch.stack([new, padding.sum(1) - new, is_left]).tolist()
    if not all(is_left):
        raise Unsupported("a KvmeshCache takes batches that are padded on the left: "
                          "tokenizer.padding_side = \"left\"")
    if earlier != lengths:
        raise InvalidArgument(f"the attention mask has {earlier} tokens before the new ones, the cache "
                              f"{lengths}: reset() it before another batch")
    return new
