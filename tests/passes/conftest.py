"""The block that tests of passes work on."""

import pytest

from tests.toy_block import ToyBlock


@pytest.fixture
def toy_block() -> type[ToyBlock]:
    """`toy_block(replaced, padding=0.0, …)`: a fresh block, always with the same weights."""
    return ToyBlock
