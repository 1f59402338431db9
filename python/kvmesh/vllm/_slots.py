"""vLLM's slot mapping on CPUs, which refuses decode context parallelism. kvmesh finds the slots of new
tokens in the block table itself, so here no token gets one."""


def leave_slots_out():
    from vllm.utils import cpu_triton_utils
    stock = cpu_triton_utils._compute_slot_mapping_kernel_impl

    def compute_slot_mapping(num_tokens, max_num_tokens, query_start_loc, positions, block_table,
                             stride, slot_mapping, *rest, TOTAL_CP_WORLD_SIZE=1, PAD_ID=-1,
                             **options):
        if TOTAL_CP_WORLD_SIZE > 1:
            slot_mapping.fill_(PAD_ID)
            return
        stock(num_tokens, max_num_tokens, query_start_loc, positions, block_table, stride,
              slot_mapping, *rest, PAD_ID=PAD_ID, **options)

    cpu_triton_utils._compute_slot_mapping_kernel_impl = compute_slot_mapping
