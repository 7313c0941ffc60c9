"""Problems with many right answers, of which one is drawn at random.

What is right at one place depends on what was chosen at the others, so tokens that a decoder
commits together can contradict each other: here order and number of unmasking steps show.
"""

import random

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIDE = 4  # of a Latin square
REDUCED = (  # the Latin squares whose first row and first column are 1234
    ("1234", "2143", "3412", "4321"),
    ("1234", "2143", "3421", "4312"),
    ("1234", "2341", "3412", "4123"),
    ("1234", "2413", "3142", "4321"),
)


def split(rng: random.Random) -> tuple[str, str]:
    """`D0537=` → `123+414`: two numbers of three digits with that sum."""
    total = rng.randrange(1999)
    left = rng.randint(max(0, total - 999), min(999, total))
    return f"D{total:04}=", f"{left:03}+{total - left:03}"


def split_answers(prompt: str) -> list[str]:
    """Every right answer to a prompt of split(), filled or not; split() draws them alike often."""
    total = int(prompt.lstrip("_")[1:-1])
    return [f"{n:03}+{total - n:03}" for n in range(max(0, total - 999), min(999, total) + 1)]


def permute(rng: random.Random) -> tuple[str, str]:
    """`Pckmnswxz=` → `mzwsnkxc`: eight different letters, sorted, in any order."""
    letters = rng.sample(LETTERS, 8)
    return f"P{''.join(sorted(letters))}=", "".join(letters)


def complete_latin(rng: random.Random) -> tuple[str, str]:
    """`L` + a 4 × 4 square row by row, 7 to 13 of its cells `.`, + `=` → the whole square.

    Each of 1, 2, 3, 4 stands once in every row and column.
    """
    # Orders of the columns and of the rows below the first make each of the 576 squares once.
    columns, lower = rng.sample(range(SIDE), SIDE), rng.sample(range(1, SIDE), SIDE - 1)
    square = rng.choice(REDUCED)
    cells = [square[row][column] for row in (0, *lower) for column in columns]
    blank = set(rng.sample(range(SIDE * SIDE), rng.randint(7, 13)))
    given = "".join("." if place in blank else cell for place, cell in enumerate(cells))
    return f"L{given}=", "".join(cells)
