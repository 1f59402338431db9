"""kvmesh's errors: one class for each type, as in kvmesh/error.hpp. A call that raises has changed
nothing, except Timeout, PeerLost, NcclError, BrokenGroup and Error in the middle of a step."""

from __future__ import annotations


class Error(RuntimeError):
    """Base of all errors; by itself mostly an error of a device or of the system."""

    code: int = 1


class InvalidArgument(Error, ValueError):
    code = 2


class Unsupported(Error):
    """This build or this machine lacks a feature."""

    code = 3


class UnknownSequence(Error):
    code = 4


class OutOfPages(Error):
    """The pools have too few free pages; try_plan returns None instead."""

    code = 5
    asked_pages: int
    free_pages_per_rank: list[int]


class OutOfThreads(Error):
    code = 6


class OutOfMemory(Error, MemoryError):
    code = 7


class Timeout(Error, TimeoutError):
    """A peer did not answer within the deadline. late: the ranks; empty if this rank's own device was
    late."""

    code = 8
    waiter: int
    late: list[int]
    operation: str


class PeerLost(Error):
    code = 9
    peer: int
    operation: str


class BrokenGroup(Error):
    code = 10


class DigestMismatch(Error):
    code = 11


class RendezvousError(Error):
    code = 12


class NcclError(Error):
    code = 13


class StreamError(Error):
    """A stream of an exported sequence cannot be read or written."""

    code = 14


BY_CODE: dict[int, type[Error]] = {each.code: each for each in (
    Error, InvalidArgument, Unsupported, UnknownSequence, OutOfPages, OutOfThreads, OutOfMemory,
    Timeout, PeerLost, BrokenGroup, DigestMismatch, RendezvousError, NcclError,
    StreamError)}
