"""Where the ranks of a torch process group meet."""

import os
import socket


def meeting_of(group):
    """(rank, size, "host:port"): the group's first rank finds a free port and tells the others."""
    from torch import distributed
    rank, first = distributed.get_rank(group), distributed.get_global_rank(group, 0)
    place = [None]
    if rank == 0:
        # MASTER_ADDR is where the world's rank 0 is.
        host = os.environ.get("MASTER_ADDR") if first == 0 else None
        with socket.socket() as free:
            free.bind(("", 0))
            place = [f"{host or socket.gethostname()}:{free.getsockname()[1]}"]
    distributed.broadcast_object_list(place, src=first, group=group)
    return rank, distributed.get_world_size(group), place[0]
