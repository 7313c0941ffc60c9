"""Programs are found in prose, and left alone where there is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.tasks.fenced import program_in

PROGRAM = "def f(x):\n    return x\n"


@given(st.text().filter(lambda text: "```" not in text))
def test_text_without_a_fence_is_the_program(text: str) -> None:
    assert program_in(text) == text


@given(st.text(st.characters(exclude_characters="`\r", exclude_categories=["Cs"])))
def test_a_fenced_program_comes_back_whole(program: str) -> None:
    program += "\n"
    for language in ("", "python", "py", "Python3", " python "):
        assert program_in(f"Sure:\n```{language}\n{program}```\nDone.") == program
    assert program_in(f"```python\n{program}") == program  # cut at the answer's end


@pytest.mark.parametrize(
    "text",
    [
        f"```\n{PROGRAM}```\n```\nprint(f(1))\n```",
        f"Run\n```bash\nls\n```\nand\n```python\n{PROGRAM}```",
        "1. So:\n   ```python\n   def f(x):\n       return x\n   ```",
        f"```python title=x\r\n{PROGRAM}```",
    ],
)
def test_the_first_python_block_counts(text: str) -> None:
    assert program_in(text) == PROGRAM
