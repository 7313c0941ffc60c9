"""launch.h for ctypes: structures of the same layout."""

import ctypes


class Call(ctypes.Structure):
    """`CachedAttention`."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "batch", "heads", "kv_heads", "queries", "capacity", "width", "q_top", "p_top",
            "k_bits", "v_bits", "rotary", "type",  # 0: fp32, 1: fp16
        )
    ]  # fmt: skip


class Operands(ctypes.Structure):
    """`CachedOperands`."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in (
            "q", "k", "v", "k_cache", "k_scales", "v_cache", "start", "key_block", "reach",
            "k_mean", "v_scale", "v_zero", "cos", "sin",
        )
    ]  # fmt: skip


class Results(ctypes.Structure):
    """`CachedResults`."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("y", "k_cache", "k_scales", "v_cache")]
