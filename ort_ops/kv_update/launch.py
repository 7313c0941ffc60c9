"""launch.h for ctypes: a structure of the same layout."""

import ctypes


class Call(ctypes.Structure):
    """`KvUpdate`."""

    _fields_ = [(name, ctypes.c_int32) for name in ("batch", "heads", "capacity", "fed", "bytes")]
