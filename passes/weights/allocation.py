"""Mixed precision: which groups of linears get more bits, given how sensitive each one is.

These are pure functions; measuring is the caller's business. To sort by sensitivity and bisect over
how many groups get more bits is the search of arXiv 2306.04879.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """A group of linears that is stored with few bits, unless it is chosen."""

    name: str  # not that of another item
    weights: int  # how many
    low_bits: float  # a weight, scales included
    high_bits: float
    loss: float  # what few bits cost, in a measure in which losses add up

    def __post_init__(self) -> None:
        if self.weights < 1 or not 0 < self.low_bits < self.high_bits:
            raise ValueError(f"a choice needs weights, and more bits than few: {self!r}")

    @property
    def extra(self) -> float:
        """Bits that it costs to be chosen."""
        return self.weights * (self.high_bits - self.low_bits)


def by_sensitivity(items: Sequence[Item]) -> list[Item]:
    """The most loss a bit first; of equal ones the first."""
    return sorted(items, key=lambda item: -item.loss / item.extra)


def bits_a_weight(items: Sequence[Item], chosen: Sequence[str]) -> float:
    """Mean width when the items named in `chosen` have many bits."""
    bits = sum(
        item.weights * (item.high_bits if item.name in chosen else item.low_bits) for item in items
    )
    return bits / sum(item.weights for item in items)


def within_size(items: Sequence[Item], bits: float) -> list[str]:
    """Names of the items that get many bits so that all take at most `bits` a weight on average.

    Items are taken by sensitivity, each that still fits. The loss that this takes away is less than
    the most that can be taken away by no more than the largest of a single item. ValueError where
    not even few bits for all fit.
    """
    least = bits_a_weight(items, ())
    if least > bits:
        raise ValueError(f"{bits:g} bits a weight are too few: {least:g} is the least")
    left = bits * sum(item.weights for item in items) - sum(i.weights * i.low_bits for i in items)
    chosen = []
    for item in by_sensitivity(items):
        if item.extra <= left:
            chosen.append(item.name)
            left -= item.extra
    return chosen


def within_accuracy(
    order: Sequence[str], measure: Callable[[Sequence[str]], float], most: float
) -> list[str]:
    """The shortest run of `order` from its start that gives a loss of at most `most`.

    `measure` gives the loss when the groups of its argument have many bits; more of them must not
    lose more. It is called about log2(len(order)) + 1 times. ValueError where all are not enough.
    """
    fewest, enough = 0, len(order)
    least = measure(order)
    if least > most:
        raise ValueError(f"a loss of {most:g} is out of reach: {least:g} with many bits for all")
    while fewest < enough:
        middle = (fewest + enough) // 2
        if measure(order[:middle]) <= most:
            enough = middle
        else:
            fewest = middle + 1
    return list(order[:enough])
