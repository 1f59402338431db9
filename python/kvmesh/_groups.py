"""Finds the place where the ranks of a mesh meet, for the extension module."""

import os
import secrets
import socket

from .errors import InvalidArgument


def meeting_of(group):
    """Returns (rank, size, "host:port", secret): the group's first rank finds a free port, makes a secret,
    and sends both to the others."""
    from torch import distributed
    rank, first = distributed.get_rank(group), distributed.get_global_rank(group, 0)
    meeting = [None, None]
    if rank == 0:
        # MASTER_ADDR is the machine of the world's rank 0.
        host = os.environ.get("MASTER_ADDR") if first == 0 else None
        with socket.socket() as free:
            free.bind(("", 0))
            meeting = [f"{host or socket.gethostname()}:{free.getsockname()[1]}",
                       secrets.token_hex(32)]
    distributed.broadcast_object_list(meeting, src=first, group=group)
    return rank, distributed.get_world_size(group), *meeting


def address_of(comm):
    """Returns the address of an mpi4py communicator's MPI_Comm."""
    from mpi4py import MPI
    if not isinstance(comm, MPI.Comm):  # other objects of MPI have an address, too
        raise TypeError(f"comm is a communicator of mpi4py, not {comm!r}")
    return MPI._addressof(comm)


def host_and_port(rendezvous):
    """Returns (host, port) of "host:port", in which an IPv6 address is in brackets."""
    host, _, port = rendezvous.rpartition(":")
    if not host or not port.isdecimal() or int(port) >= 2**16:
        raise InvalidArgument(f"a rendezvous is \"host:port\", not {rendezvous!r}")
    return host.strip("[]"), int(port)
