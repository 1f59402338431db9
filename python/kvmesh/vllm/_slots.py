"""Replaces vLLM's slot mapping on CPUs, which refuses decode context parallelism. kvmesh finds the
slots of new tokens in the block table itself, so with several ranks no token gets one here."""

import inspect


def leave_slots_out():
    from vllm.utils import cpu_triton_utils
    stock = cpu_triton_utils._compute_slot_mapping_kernel_impl
    signature = inspect.signature(stock)

    def compute_slot_mapping(*arguments, **options):
        given = signature.bind(*arguments, **options)
        given.apply_defaults()
        if given.arguments["TOTAL_CP_WORLD_SIZE"] > 1:
            given.arguments["slot_mapping"].fill_(given.arguments["PAD_ID"])
        else:
            stock(*arguments, **options)

    cpu_triton_utils._compute_slot_mapping_kernel_impl = compute_slot_mapping
