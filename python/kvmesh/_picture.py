"""Draws which rank holds which page, as a picture for a notebook or a file."""

from __future__ import annotations

import os
from typing import Mapping

from ._kvmesh import KvCache

_SIDE, _GAP, _LEFT, _TOP = 22, 4, 64, 34
_COLOURS = ["#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d", "#bab0ac"]


class Picture:
    """An SVG picture, which notebooks show."""

    def __init__(self, svg: str) -> None:
        self.svg = svg

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | os.PathLike[str]) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.svg)


def draw_pages(cache: KvCache, sequences: Mapping[str, int], *, group: int = 0) -> Picture:
    """Returns a Picture of a KvCache's pages: a row of squares per rank, in the colours of the sequences
    that hold them, with the page's number in the sequence. A page that sequences share has stripes.
    sequences: dict of names and sequences. Every rank can draw it: no message is sent."""
    holders: dict = {}  # (rank, page) -> [(number of the sequence, the page's number in it)]
    for number, sequence in enumerate(sequences.values()):
        for at, page in enumerate(cache.pages(sequence, group)):
            if page is not None:
                holders.setdefault(page, []).append((number, at))
    pools = [cache.pool_pages(rank, group) for rank in range(cache.kv_parallel)]
    step = _SIDE + _GAP
    width = _LEFT + max(max(pools) * step, 90 * len(sequences))
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_TOP + len(pools) * step}" '
             'font-family="sans-serif" font-size="12">',
             f'<rect width="{width}" height="{_TOP + len(pools) * step}" fill="white"/>']
    for number, name in enumerate(sequences):
        x = _LEFT + 90 * number
        parts.append(f'<rect x="{x}" y="8" width="12" height="12" fill="{_colour(number)}"/>'
                     f'<text x="{x + 17}" y="18">{_escape(str(name))}</text>')
    for rank, pages in enumerate(pools):
        y = _TOP + rank * step
        parts.append(f'<text x="4" y="{y + 16}">rank {rank}</text>')
        for index in range(pages):
            parts += _square(_LEFT + index * step, y, holders.get((rank, index), []))
    return Picture("\n".join([*parts, "</svg>", ""]))


def _square(x, y, holders):
    yield (f'<rect x="{x}" y="{y}" width="{_SIDE}" height="{_SIDE}" fill="#f4f4f4" '
           'stroke="#cccccc"/>')
    height = _SIDE / max(len(holders), 1)
    for i, (number, _) in enumerate(holders):
        yield (f'<rect x="{x}" y="{y + i * height:g}" width="{_SIDE}" height="{height:g}" '
               f'fill="{_colour(number)}"/>')
    if holders:
        yield (f'<text x="{x + _SIDE / 2:g}" y="{y + 15}" font-size="10" text-anchor="middle" '
               f'fill="white">{holders[0][1]}</text>')


def _colour(number):
    return _COLOURS[number % len(_COLOURS)]


def _escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;")
