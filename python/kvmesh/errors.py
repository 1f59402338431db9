"""kvmesh's errors: one class for each type, as in kvmesh/error.hpp. A call that raises has changed
nothing, except Timeout, PeerLost, NcclError, BrokenGroup and Error in the middle of a step."""


class Error(RuntimeError):
    """Base of all errors; by itself mostly an error of a device or of the system."""

    code = 1


class InvalidArgument(Error, ValueError):
    code = 2


class Unsupported(Error):
    """This build or this machine lacks a feature."""

    code = 3


class UnknownSequence(Error):
    code = 4


class OutOfPages(Error):
    """Has asked_pages and free_pages_per_rank. try_plan returns None instead."""

    code = 5


class OutOfThreads(Error):
    code = 6


class OutOfMemory(Error, MemoryError):
    code = 7


class Timeout(Error, TimeoutError):
    """Has waiter, late (ranks; empty: this rank's own device) and operation."""

    code = 8


class PeerLost(Error):
    """Has peer and operation."""

    code = 9


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


BY_CODE = {each.code: each for each in (
    Error, InvalidArgument, Unsupported, UnknownSequence, OutOfPages, OutOfThreads, OutOfMemory,
    Timeout, PeerLost, BrokenGroup, DigestMismatch, RendezvousError, NcclError,
    StreamError)}
