"""Hypothesis: the same examples every time, or with `FUZZ=1` others; never deadlines, as a busy
machine is no fault of the code.
"""

import os

from hypothesis import settings

settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None)
settings.load_profile("fuzz" if os.environ.get("FUZZ") == "1" else "same")
