"""transformers' Cache over a KvCache."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from .. import _kvmesh
from ..errors import InvalidArgument, Unsupported
from ._attention import forget, leave
from ._step import Step

_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}


class _Layer(CacheLayerMixin):
    """Counts a layer's tokens, with padding, as transformers does. The cache has the rest."""

    is_croppable = True
    supports_early_init = False
    is_sliding = False  # to transformers: the window is in the mask

    def __init__(self):
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states, value_states):
        pass

    def update(self, key_states, value_states, *args, **kwargs):
        self.length += key_states.shape[-2]
        return key_states, value_states

    def get_seq_length(self):
        return self.length

    def get_mask_sizes(self, query_length):
        return self.length + query_length, 0

    def get_max_length(self):
        return -1

    def get_max_cache_shape(self):
        return -1


class KvmeshCache(Cache):
    """The KV cache of a model with attn_implementation="kvmesh", over all ranks of a mesh.

    For one batch at a time, until reset(): its rows are sequences of `kv`, a KvCache that the first
    forward makes. Padding on the left is in transformers' lengths and not in the cache. Beams share
    pages. config: the model's. One of pages_per_rank, bytes and memory_fraction says how much memory
    a rank gives. dtype: of the pages, by default that of the keys. window_page_share: the layers with
    a window have pages of their own, this many per page of the other layers, and free those behind it;
    0: they keep all keys. options: more of KvCache's.

    With tensor parallelism the mesh's head_parallel is its size: a rank has its heads alone.

    Every rank makes the same calls. After an error in the middle of a forward, reset().
    """

    def __init__(self, config: Any, mesh: _kvmesh.Mesh, *, page_size: int = 16, pages_per_rank: int = 0,
                 bytes: int = 0, memory_fraction: float = 0.0, dtype: str | None = None,
                 window_page_share: float = 0.0, **options: Any) -> None:
        config = config.get_text_config(decoder=True)
        unknown = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
        if unknown:
            raise Unsupported(f"a KvmeshCache has no layers of {', '.join(sorted(unknown))}")
        super().__init__(layers=[_Layer() for _ in range(config.num_hidden_layers)])
        self.mesh = mesh
        self.kv: _kvmesh.KvCache | None = None
        self.rows: list[int] = []
        self._options = dict(options, page_size=page_size, pages_per_rank=pages_per_rank, bytes=bytes,
                             memory_fraction=memory_fraction, dtype=dtype)
        self._plans, self._now, self._done = {}, None, set()
        self._windowed = _windowed_layers(config) if window_page_share else []
        self._window, self._share = getattr(config, "sliding_window", None), window_page_share

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any,
               **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the new tokens alone: the attention function appends and attends."""
        leave(self, layer_idx)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def _step(self, layer, q, k, v, padding):
        """Returns the step of the forward that has come to this layer."""
        if self._now is None or layer in self._done:
            self._begin(layer, q, k, v, padding)
        self._done.add(layer)
        return self._now

    def _begin(self, layer, q, k, v, padding):
        self._now, self._done = None, set()
        if self.kv is None:
            self.kv = self._make(q, k, v)
        if not self.rows:
            self.rows = [self.kv.create() for _ in range(len(q))]
        if len(self.rows) != len(q):
            raise InvalidArgument(f"a batch of {len(q)}, and a cache with {len(self.rows)} rows: "
                                  "reset() it before another batch")
        earlier = self.layers[layer].length - q.shape[2]  # which update has counted
        self._now = Step(self.kv, self._plans, self.rows, earlier, q.shape[2], padding)

    def _make(self, q, k, v):
        share = self.mesh.head_parallel
        options = dict(self._options)
        options["dtype"] = options["dtype"] or str(k.dtype).removeprefix("torch.")
        if len(self._windowed) == len(self.layers):
            options["window"] = self._window
        elif self._windowed:
            options["groups"] = [{"layers": self._windowed, "window": self._window,
                                  "page_share": self._share}]
        return _kvmesh.KvCache(self.mesh, layers=len(self.layers), q_heads=q.shape[1] * share,
                               kv_heads=k.shape[1] * share, k_dim=k.shape[3], v_dim=v.shape[3],
                               **options)

    def _check_window(self, layer, mask):
        """Checks that the queries of a layer that frees pages see no further than its window."""
        if layer in self._windowed and not mask.is_window(self._window):
            raise Unsupported(f"layer {layer} attends further than its window of {self._window}: "
                              "a cache for it has window_page_share=0")

    # ---- What generate does with a batch's rows ----

    def _select(self, rows):
        """Makes the batch these of its rows: a row that comes again is forked, a row left out is erased."""
        if not self.rows:
            return
        self._now = None
        taken, selected = set(), []
        for row in rows:
            selected.append(self.kv.fork(self.rows[row]) if row in taken else self.rows[row])
            taken.add(row)
        for row, sequence in enumerate(self.rows):
            if row not in taken:
                self.kv.erase(sequence)
        self.rows = selected

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select([row for row in range(len(self.rows)) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._select(torch.arange(len(self.rows))[indices.cpu()].tolist())

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the newest -tokens_to_remove tokens; a positive number, as transformers had it until
        5.18, is the length to keep."""
        length = self.get_seq_length()
        drop = length - tokens_to_remove if tokens_to_remove > 0 else -tokens_to_remove
        drop = min(max(drop, 0), length)
        if drop == 0:
            return
        self._now = None
        for layer in self.layers:
            layer.length -= drop
        for sequence in self.rows:
            self.kv.truncate(sequence, max(self.kv.length(sequence) - drop, 0))

    def reset(self) -> None:
        """Empties the cache, for another batch."""
        forget()
        self._select([])
        for layer in self.layers:
            layer.length = 0

    # ---- Looking at it ----

    @property
    def batch_size(self) -> int:
        return len(self.rows) or -1

    def stats(self) -> dict[str, Any]:
        """Returns the tokens, without padding; pages in use on each rank, shared ones once; bytes that this
        rank has sent."""
        groups = 2 if 0 < len(self._windowed) < len(self.layers) else 1
        pages = {(group, page) for sequence in self.rows for group in range(groups)
                 for page in self.kv.pages(sequence, group) if page is not None}
        on_rank = [0] * self.mesh.kv_parallel
        for _, (rank, _) in pages:
            on_rank[rank] += 1
        return {"tokens": sum(self.kv.length(each) for each in self.rows), "pages": on_rank,
                "sent_bytes": self.mesh.sent_bytes}

    def close(self) -> None:
        """Frees the pages. Collective, as KvCache.close is."""
        self.rows, self._now = [], None
        for plan in self._plans.values():
            plan.close()
        self._plans = {}
        if self.kv is not None:
            self.kv.close()
        self.kv = None

    def __enter__(self) -> KvmeshCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"KvmeshCache({len(self.rows)} rows, {self.kv!r})"


def _windowed_layers(config):
    """Returns the layers that see no further than config.sliding_window, by their configuration."""
    if not getattr(config, "sliding_window", None):
        raise Unsupported("window_page_share is for models with layers that have a sliding window")
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [layer for layer, each in enumerate(types) if each == "sliding_attention"]
