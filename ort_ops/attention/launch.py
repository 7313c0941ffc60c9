"""launch.h for ctypes: a structure of the same layout."""

import ctypes


class Call(ctypes.Structure):
    """`Attention`."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "batch", "heads", "kv_heads", "queries", "keys", "width", "q_top", "k_top", "v_top",
            "p_top", "type",  # 0: fp32, 1: fp16, 2: bf16
        )
    ]  # fmt: skip
