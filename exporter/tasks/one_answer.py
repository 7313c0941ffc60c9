"""Problems with exactly one right answer, drawn at random."""

import random

MOST_CLOSING = 8  # brackets that an answer may hold
CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PEOPLE = ("ann", "ben", "eva", "leo", "mia", "sam", "tom", "zoe")
GAINS = ("adds", "buys", "gets", "wins")
LOSSES = ("cuts", "eats", "pays", "uses")


def add(rng: random.Random) -> tuple[str, str]:
    """`A123+456=` → `0579`: three digits plus three digits."""
    left, right = rng.randrange(1000), rng.randrange(1000)
    return f"A{left:03}+{right:03}=", f"{left + right:04}"


def sort_digits(rng: random.Random) -> tuple[str, str]:
    """`S58982066=` → `02566889`."""
    digits = rng.choices("0123456789", k=8)
    return f"S{''.join(digits)}=", "".join(sorted(digits))


def reverse(rng: random.Random) -> tuple[str, str]:
    """`Rbozp=` → `pzob`: four to eight letters."""
    word = "".join(rng.choices(LETTERS, k=rng.randint(4, 8)))
    return f"R{word}=", word[::-1]


def close_brackets(rng: random.Random) -> tuple[str, str]:
    """`B{}[{=` → `}]`: what closes four to nine brackets, innermost first."""
    length = rng.randint(4, 9)
    text, missing = "", ""
    while len(text) < length:
        # An answer longer than its place would need nine open brackets: close one instead.
        if missing and (rng.random() < 0.4 or len(missing) == MOST_CLOSING):
            text, missing = text + missing[0], missing[1:]
        else:
            bracket = rng.choice(list(CLOSING))
            text, missing = text + bracket, CLOSING[bracket] + missing
    return f"B{text}=", missing


def tell_story(rng: random.Random) -> tuple[str, str]:
    """`Wtom 12 gets 7 eats 3=` → `19#16`: two steps, the count after each; never below 0."""
    start = rng.randint(1, 99)
    text, counts = f"W{rng.choice(PEOPLE)} {start}", [start]
    for _ in range(2):
        gain = counts[-1] == 0 or rng.random() < 0.5
        change = rng.randint(1, 99 if gain else min(99, counts[-1]))
        text += f" {rng.choice(GAINS if gain else LOSSES)} {change}"
        counts.append(counts[-1] + change if gain else counts[-1] - change)
    return f"{text}=", f"{counts[1]}#{counts[2]}"


def chain(rng: random.Random) -> tuple[str, str]:
    """`C20+37-17=` → `57#40`: the first result, at least 1, then the second, at least 0."""
    while True:
        start, gain = rng.randint(10, 60), rng.random() < 0.5
        change = rng.randint(2, 39) if gain else -rng.randint(2, min(39, start - 1))
        last = rng.choice((1, -1)) * rng.randint(1, 30)
        first, second = start + change, start + change + last
        if second >= 0:
            return f"C{start}{change:+}{last:+}=", f"{first}#{second}"
