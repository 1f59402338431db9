"""torch's BlockMask as a map of pages, and back."""

import math

import torch
from torch.nn.attention.flex_attention import BlockMask

PARTIAL, FULL = 1, 2  # a tile of the map; 0 is an empty one


def map_of(block_mask, page_size):
    """Returns [B, H, q blocks, pages] of uint8: the tiles that block_mask lists, in columns of
    page_size."""
    block = block_mask.BLOCK_SIZE[1]
    columns = -(-block_mask.seq_lengths[1] // block)
    partial = _listed(block_mask.kv_num_blocks, block_mask.kv_indices, columns)
    full = torch.zeros_like(partial)
    if block_mask.full_kv_num_blocks is not None:
        full = _listed(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, columns)
    visible = partial | full
    if block != page_size:
        unit = math.gcd(block, page_size)
        visible = _regrouped(visible, block // unit, page_size // unit, False).any(-1)
        full = _regrouped(full, block // unit, page_size // unit, True).all(-1)
    return torch.where(full & visible, FULL, visible * PARTIAL).to(torch.uint8)


def _listed(counts, indices, columns):
    """Returns the columns that a list names, as booleans."""
    place = torch.arange(indices.shape[-1], device=indices.device)
    # Entries past a row's count go to a column that is cut off.
    index = torch.where(place < counts[..., None], indices, columns).long()
    listed = torch.zeros(*indices.shape[:-1], columns + 1, dtype=torch.bool, device=indices.device)
    return listed.scatter_(-1, index, True)[..., :columns]


def _regrouped(tiles, split, join, past_the_end):
    """Divides each column into `split` equal ones, and joins `join` of these at a time: [..., join]."""
    tiles = tiles.repeat_interleave(split, -1)
    missing = -tiles.shape[-1] % join
    tiles = torch.nn.functional.pad(tiles, (0, missing), value=past_the_end)
    return tiles.unflatten(-1, (-1, join))


def fitted(tiles, rows, columns):
    """Returns the map with this many q blocks and pages, cut or with empty tiles added."""
    tiles = tiles[..., :rows, :columns]
    return torch.nn.functional.pad(tiles, (0, columns - tiles.shape[-1], 0, rows - tiles.shape[-2]))


def block_mask_from(tiles, block_size, mask_mod, seq_lengths):
    """Returns torch's BlockMask of a map."""
    return BlockMask.from_kv_blocks(*_lists(tiles == PARTIAL), *_lists(tiles == FULL),
                                    BLOCK_SIZE=block_size, mask_mod=mask_mod,
                                    seq_lengths=seq_lengths)


def _lists(chosen):
    """Returns (number of chosen columns, their indices before those of the others)."""
    order = torch.argsort(chosen.to(torch.int32), dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32), order.to(torch.int32)
