"""launch.h for ctypes: structures of the same layout."""

import ctypes


class Call(ctypes.Structure):
    """`Linear`."""

    _fields_ = [
        ("rows", ctypes.c_int64), ("depth", ctypes.c_int32), ("width", ctypes.c_int32),
        ("group", ctypes.c_int32), ("activation_group", ctypes.c_int32), ("step", ctypes.c_float),
        ("weight_bits", ctypes.c_int32), ("activation_bits", ctypes.c_int32),
        ("channel", ctypes.c_bool), ("gated", ctypes.c_bool),
        ("type", ctypes.c_int32), ("scales", ctypes.c_int32),  # 0: fp32, 1: fp16, 2: bf16
    ]  # fmt: skip


class Plan(ctypes.Structure):
    """`Plan`; `path` is a place in PATHS."""

    _fields_ = [(name, ctypes.c_int32) for name in ("path", "rows", "parts")]


PATHS = ("dp4a", "mma8", "mma4", "halves", "floats", "wgmma")


class WeightPointers(ctypes.Structure):
    """`LinearWeight`."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("codes", "scales", "steps")]
