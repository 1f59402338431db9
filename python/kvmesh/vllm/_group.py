"""The meshes over vLLM's groups of ranks."""

import kvmesh

_meshes = {}


def mesh_of(group, device="cpu", threads=0):
    """The mesh over the ranks of a GroupCoordinator, kept as long as the process. The first call for
    a group is collective."""
    key = (group.unique_name, device)
    if key not in _meshes:
        _meshes[key] = kvmesh.Mesh(group=group.cpu_group, device=device, threads=threads)
    return _meshes[key]
