"""The meshes over vLLM's groups of ranks."""

import kvmesh

_meshes = {}


def mesh_of(group, device="cpu", threads=0):
    """Returns the mesh over the ranks of a GroupCoordinator. It lives as long as the process, and keeps
    the `threads` of the first call. That call is collective in the group."""
    key = (group.unique_name, device)
    if key not in _meshes:
        _meshes[key] = kvmesh.Mesh(group=group.cpu_group, device=device, threads=threads)
    return _meshes[key]
