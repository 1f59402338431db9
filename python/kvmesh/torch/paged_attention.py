"""PyTorch's PagedAttention over kvmesh."""

from __future__ import annotations

import atexit
import functools
import operator
from typing import Any, Callable, Iterable, Optional, Tuple, Union

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from .. import Mesh, _kvmesh
from . import _blocks
from ._tracing import mask_mod_of, score_mod_of

_Integer = Union[int, Tensor]  # a tensor of one element
_Integers = Union[Tensor, Iterable[int]]
_Mod = Optional[Callable[..., Any]]


@functools.lru_cache(maxsize=None)
def _mesh_on(device: str) -> Mesh:
    """Returns the mesh of the launcher's ranks that all PagedAttentions without one share."""
    mesh = Mesh(device=device)
    atexit.register(mesh.close)
    return mesh


class PagedAttention:
    """The class of this name in torch.nn.attention.experimental, method for method, computed by
    kvmesh, on the CPU or a GPU, on one rank or spread over many.

    The caller owns the caches, [1, H, n_pages * page_size, D]. Rank r owns the physical pages
    [r * n, (r + 1) * n) with n = pages_per_rank, writes and reads these alone, and leaves the rest of
    the cache as it is; it may also pass a cache of its share, [1, H, n * page_size, D]. Every rank
    makes the same calls with the same arguments; forward is collective and gives all of them the
    whole output.

    mesh: None is the mesh of the launcher's ranks (docs/launching.md), on `device`. n_pages is a
    multiple of the ranks. Calls return when the GPU has done the work of torch's current stream and
    their own.
    """

    def __init__(self, n_pages: int, page_size: int, max_batch_size: int,
                 device: str | torch.device = "cuda", *, mesh: Mesh | None = None,
                 placement: str = "balanced") -> None:
        self.mesh = mesh if mesh is not None else _mesh_on(torch.device(device).type)
        self.device = torch.device(self.mesh.device)
        self.n_pages = n_pages
        self.page_size = page_size
        self.max_batch_size = max_batch_size
        self._pages = _kvmesh.PagedAttention(self.mesh, n_pages, page_size, max_batch_size,
                                             placement)
        self.pages_per_rank = self._pages.pages_per_rank

    # ---- Its end ----

    def close(self) -> None:
        """Frees the page tables and buffers; the mesh and the caches stay. Using it afterwards is an
        error."""
        self._pages.close()

    @property
    def closed(self) -> bool:
        return self._pages.closed

    def __enter__(self) -> PagedAttention:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<kvmesh.torch.PagedAttention: closed>"
        return (f"<kvmesh.torch.PagedAttention: {self._pages.free_pages} of {self.n_pages} pages of "
                f"{self.page_size} tokens free, {self.max_batch_size} rows, {self.mesh!r}>")

    # ---- The page table, as torch's class shows it ----

    @property
    def page_table(self) -> Tensor:
        """[max_batch_size, n_pages]: the physical page of each logical one; -1: none."""
        table = torch.full((self.max_batch_size, self.n_pages), -1, dtype=torch.int64, device="cpu")
        for row in range(self.max_batch_size):
            pages = self._pages.pages(row)
            table[row, :len(pages)] = torch.tensor(pages, dtype=torch.int64, device="cpu")
        return table.to(self.device)

    @property
    def physical_to_logical(self) -> Tensor:
        """[max_batch_size, n_pages]: the logical page of each physical one; -1: not this row's."""
        table = torch.full((self.max_batch_size, self.n_pages), -1, dtype=torch.int64, device="cpu")
        for row in range(self.max_batch_size):
            pages = torch.tensor(self._pages.pages(row), dtype=torch.int64, device="cpu")
            table[row, pages] = torch.arange(len(pages), device="cpu")
        return table.to(self.device)

    @property
    def capacity(self) -> Tensor:
        """[max_batch_size]: the tokens that each row has pages for."""
        return torch.tensor([len(self._pages.pages(row)) * self.page_size
                             for row in range(self.max_batch_size)], device=self.device)

    @property
    def empty_pages(self) -> list[int]:
        """The physical pages that no row has."""
        taken = {page for row in range(self.max_batch_size) for page in self._pages.pages(row)}
        return [page for page in range(self.n_pages - 1, -1, -1) if page not in taken]

    # ---- torch's methods ----

    def reserve(self, batch_idx: _Integer, seq_len: _Integer) -> None:
        """Makes room for at least seq_len tokens in row batch_idx (integer tensors of one element, or
        ints). Raises kvmesh.OutOfPages."""
        self._pages.reserve(operator.index(batch_idx), operator.index(seq_len))

    def erase(self, batch_idx: _Integer) -> None:
        """Frees all pages of row batch_idx."""
        self._pages.erase(operator.index(batch_idx))

    def assign(self, batch_idx: _Integers, input_pos: Tensor, k_val: Tensor, v_val: Tensor,
               k_cache: Tensor, v_cache: Tensor) -> None:
        """Writes k_val and v_val [B, H, S, D] to positions input_pos [B, S] of rows batch_idx [B] in
        the caches, if this rank has their pages."""
        if k_val.requires_grad or v_val.requires_grad:
            raise RuntimeError("assign: k_val and v_val must not require gradient")
        rows = _integers(batch_idx).tolist()
        self._pages.assign(rows, _integers(input_pos), _dense(k_val), _dense(v_val),
                           k_cache.detach(), v_cache.detach())

    def convert_logical_block_mask(self, block_mask: BlockMask, batch_idx: Tensor | None = None,
                                   kv_len: Tensor | None = None) -> BlockMask:
        """Returns block_mask over physical pages, for torch's own flex_attention over a full cache: on
        several ranks over this rank's pages, which gives its partial. batch_idx [B]: the rows of
        block_mask's batch; None: 0, 1, ... kv_len [B]: their lengths."""
        tiles = _blocks.map_of(block_mask, self.page_size)[..., :self.n_pages]
        if batch_idx is None:
            batch_idx = torch.arange(tiles.shape[0], device=tiles.device)
        table = self.page_table[batch_idx.to(self.device)][:, :tiles.shape[-1]].to(tiles.device)
        first = self._pages.first_page
        is_mine = (table >= first) & (table < first + self.pages_per_rank)
        # Pages of other ranks and missing ones go to a column that is cut off.
        table = torch.where(is_mine, table, self.n_pages)[:, None, None, :]
        shape = (len(batch_idx), *tiles.shape[1:])
        physical = tiles.new_zeros(*shape[:-1], self.n_pages + 1)
        physical.scatter_(-1, table.expand(shape), tiles.expand(shape))
        return _blocks.block_mask_from(
            physical[..., :self.n_pages], (block_mask.BLOCK_SIZE[0], self.page_size),
            self.get_mask_mod(block_mask.mask_mod, kv_len, batch_idx),
            (block_mask.seq_lengths[0], self.n_pages * self.page_size))

    def get_mask_mod(self, mask_mod: _Mod, kv_len: Tensor | None = None,
                     batch_idx: Tensor | None = None) -> Callable[..., Tensor]:
        """Returns mask_mod over physical positions in a full cache: False where the position is not row b's
        or is past kv_len[b]. It keeps the present page table; batch_idx as in
        convert_logical_block_mask."""
        logical = self._logical_positions(kv_len, batch_idx)
        mask_mod = noop_mask if mask_mod is None else mask_mod

        def physical_mask_mod(b, h, q_idx, physical_kv_idx):
            is_there, kv_idx = logical(b, physical_kv_idx)
            return torch.where(is_there, mask_mod(b, h, q_idx, kv_idx), False)

        return physical_mask_mod

    def get_score_mod(self, score_mod: _Mod, kv_len: Tensor | None = None,
                      batch_idx: Tensor | None = None) -> Callable[..., Tensor]:
        """Returns score_mod over physical positions, as get_mask_mod; -inf where that is False."""
        logical = self._logical_positions(kv_len, batch_idx)

        def physical_score_mod(score, b, h, q_idx, physical_kv_idx):
            is_there, kv_idx = logical(b, physical_kv_idx)
            changed = score if score_mod is None else score_mod(score, b, h, q_idx, kv_idx)
            return torch.where(is_there, changed, float("-inf"))

        return physical_score_mod

    def forward(self, query: Tensor, k_cache: Tensor, v_cache: Tensor, kv_lens: _Integers,
                block_mask: BlockMask | None = None, batch_indices: _Integers | None = None,
                score_mod: _Mod = None, scale: float | None = None, enable_gqa: bool = False, *,
                return_lse: bool = False) -> Tensor | Tuple[Tensor, Tensor]:
        """Computes attention of query [B, H, Q_LEN, D] over the first kv_lens[b] tokens of each row: a new
        [B, H, Q_LEN, V_D], with return_lse (that, [B, H, Q_LEN] float32).

        Query i has position i. block_mask: torch's, over logical positions, with any block size;
        None: causal, i >= kv. batch_indices [B]: the rows; None: 0 .. B-1. Mods are traced
        (docs/python.md) and get b as the place in the batch. Collective."""
        if query.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("forward: kvmesh computes no gradients: call it under no_grad")
        batch, heads, q_len, _ = query.shape
        rows = _integers(range(batch) if batch_indices is None else batch_indices).tolist()
        lengths = _integers(kv_lens)
        mask = None if block_mask is None else self._logical_mask(block_mask, q_len, lengths)
        # The kernels take the tokens of the batch as rows.
        q = query.detach().transpose(1, 2).contiguous().transpose(1, 2)
        out = query.new_empty(batch, q_len, heads, v_cache.shape[-1]).transpose(1, 2)
        lse = None
        if return_lse:
            lse = query.new_empty(batch, q_len, heads, dtype=torch.float32).transpose(1, 2)
        self._pages.forward(q, k_cache.detach(), v_cache.detach(), lengths, out, lse, rows, mask,
                            score_mod_of(score_mod), scale, enable_gqa)
        return out if lse is None else (out, lse)

    # ---- Conversions ----

    def _logical_mask(self, block_mask, q_len, lengths):
        if q_len > block_mask.seq_lengths[0]:
            raise ValueError(f"forward: the block mask is for {block_mask.seq_lengths[0]} queries, "
                             f"query has {q_len}")
        kv_len = max([1, *lengths.tolist()])
        q_block = block_mask.BLOCK_SIZE[0]
        tiles = _blocks.fitted(_blocks.map_of(block_mask, self.page_size), -(-q_len // q_block),
                               -(-kv_len // self.page_size))
        return _kvmesh.block_mask_of(tiles.cpu().contiguous(), q_len=q_len, kv_len=kv_len,
                                     q_block=q_block, kv_block=self.page_size,
                                     mask=mask_mod_of(block_mask.mask_mod))

    def _logical_positions(self, kv_len, batch_idx):
        logical_page = self.physical_to_logical
        if batch_idx is not None:
            logical_page = logical_page[batch_idx.to(self.device)]
        page_size = self.page_size

        def positions(b, physical_kv_idx):
            page = logical_page[b, physical_kv_idx // page_size]
            kv_idx = page * page_size + physical_kv_idx % page_size
            is_there = page >= 0
            return (is_there if kv_len is None else is_there & (kv_idx < kv_len[b])), kv_idx

        return positions


def _integers(values):
    """Returns the values as int64 in host memory."""
    if not isinstance(values, torch.Tensor):
        return torch.tensor([operator.index(each) for each in values], dtype=torch.int64, device="cpu")
    if values.is_floating_point() or values.is_complex():
        raise TypeError(f"integers are wanted, not a tensor of {values.dtype}")
    return values.to("cpu", torch.int64).contiguous()


def _dense(values):
    """Returns the tensor with a contiguous last dimension."""
    values = values.detach()
    return values if values.stride(-1) == 1 else values.contiguous()
