"""Hypothesis without deadlines: a busy machine is no fault of the code."""

from hypothesis import settings

settings.register_profile("patient", parent=settings.default, deadline=None)
settings.load_profile("patient")
