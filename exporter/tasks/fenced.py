"""The program in an answer that may be prose around a fenced block."""

import re
import textwrap

# Markdown: ``` and a language, up to ``` at the start of a line, or the end of a cut answer
BLOCK = re.compile(
    r"^([ \t]*)```[ \t]*([^\s`]*)[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE
)
LANGUAGES = ("", "py", "python", "python3")


def program_in(text: str) -> str:
    """The first fenced block of Python or of no language; without one, all of `text`."""
    for indent, language, program in BLOCK.findall(text):
        if language.lower() in LANGUAGES:
            return textwrap.dedent(program) if indent else str(program)
    return text
