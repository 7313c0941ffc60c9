"""Where twins run: Triton's interpreter (TRITON_INTERPRET=1), or a GPU."""

import os

import pytest


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Of the tensors that a twin takes."""
    pytest.importorskip("triton")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if interpreted != (request.param == "cpu"):
        pytest.skip(f"TRITON_INTERPRET=1 is {'' if interpreted else 'not '}set")
    return str(request.param)
