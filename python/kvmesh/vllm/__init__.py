"""A plug-in for vLLM (entry point vllm.general_plugins): see docs/vllm.md."""


def register() -> None:
    """Registers kvmesh's attention. vLLM calls it in each of its processes."""
    import vllm.envs
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CUSTOM, "kvmesh.vllm._flash.Backend")
    # On CPUs vLLM has one backend, which this replaces: only if the user names kvmesh, not wherever
    # it is installed.
    if current_platform.is_cpu() and "kvmesh" in (vllm.envs.VLLM_PLUGINS or ()):
        from ._slots import leave_slots_out
        register_backend(AttentionBackendEnum.CPU_ATTN, "kvmesh.vllm._backend.Backend")
        leave_slots_out()
