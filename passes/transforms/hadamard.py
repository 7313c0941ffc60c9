"""Hadamard matrices of any width, as a Kronecker product of two small factors.

A Hadamard matrix holds 1 and -1 and has orthogonal rows: H H^T = n I. Turning a vector by
H / sqrt(n) spreads every entry evenly over all n. They exist for n = 1, 2 and multiples of 4, as
far as is known; built here are those of Sylvester (twice a known one), of Paley from primes, and
products of these. That covers 12, 20, 28, 36, 44, 68, 76, 140, 148 and so most widths of models.

Where none is known, as for 43 * 256, a Hartley matrix takes the place of one factor: it is just as
orthogonal, exists for every n, and its largest entry is sqrt(2) times that of a Hadamard matrix.
"""

import math

import torch
from torch import Tensor

from passes.transforms.online import Rotation


def hadamard(n: int, dtype: torch.dtype = torch.float32) -> Rotation:
    """A rotation of n channels that spreads each over all: the cheapest split into two factors.

    Entries of the whole are 1 / sqrt(n) in size if `hadamard_split(n)` holds orders of Hadamard
    matrices, else at most sqrt(2 / n), or 2 / sqrt(n) if both factors are Hartley matrices.
    """
    a, b = hadamard_split(n)
    return Rotation(None if a == 1 else flat_orthogonal(a, dtype), flat_orthogonal(b, dtype))


def hadamard_dense(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same as one orthogonal matrix (n, n), for widths as small as a head."""
    a, b = hadamard_split(n)
    left, right = flat_orthogonal(a, torch.float64), flat_orthogonal(b, torch.float64)
    return torch.kron(left, right).to(dtype)


def hadamard_split(n: int) -> tuple[int, int]:
    """(a, b) with a * b = n: the most Hadamard factors, and of those the least cost a + b."""
    if n < 1:
        raise ValueError(f"a rotation turns at least one channel, not {n}")
    pairs = [(a, n // a) for a in range(1, math.isqrt(n) + 1) if n % a == 0]
    return min(pairs, key=lambda pair: (sum(not is_hadamard_order(m) for m in pair), sum(pair)))


def flat_orthogonal(n: int, dtype: torch.dtype) -> Tensor:
    """An orthogonal matrix (n, n) of entries about as large: Hadamard's, or else Hartley's."""
    if is_hadamard_order(n):
        return (hadamard_matrix(n).double() / math.sqrt(n)).to(dtype)
    return hartley_matrix(n).to(dtype)


def is_hadamard_order(n: int) -> bool:
    """Whether `hadamard_matrix` can build this order."""
    if n in (1, 2):
        return True
    return n % 4 == 0 and (
        is_hadamard_order(n // 2)
        or is_prime(n - 1)
        or is_second_paley(n)
        or product_of_orders(n) is not None
    )


def hadamard_matrix(n: int) -> Tensor:
    """H (n, n) int8 of 1 and -1 with H H^T = n I; ValueError if none is known here."""
    if not is_hadamard_order(n):
        raise ValueError(f"no Hadamard matrix of order {n} can be built")
    if n == 1:
        return torch.ones(1, 1, dtype=torch.int8)
    if n == 2 or is_hadamard_order(n // 2):
        two = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
        return torch.kron(two, hadamard_matrix(n // 2))
    if is_prime(n - 1):
        return first_paley(n - 1)
    if is_second_paley(n):
        return second_paley(n // 2 - 1)
    factors = product_of_orders(n)
    assert factors is not None
    return torch.kron(hadamard_matrix(factors[0]), hadamard_matrix(factors[1]))


def product_of_orders(n: int) -> tuple[int, int] | None:
    """Two orders of Hadamard matrices above 2 with product n."""
    pairs = ((a, n // a) for a in range(4, math.isqrt(n) + 1, 4) if n % a == 0)
    return next((p for p in pairs if is_hadamard_order(p[0]) and is_hadamard_order(p[1])), None)


def is_prime(n: int) -> bool:
    """Whether n is a prime."""
    return n > 1 and all(n % divisor for divisor in range(2, math.isqrt(n) + 1))


def is_second_paley(n: int) -> bool:
    """Whether n = 2 (q + 1) for a prime q = 1 modulo 4."""
    q = n // 2 - 1
    return n % 2 == 0 and q % 4 == 1 and is_prime(q)


def jacobsthal(q: int) -> Tensor:
    """Q (q, q) int8 for a prime q > 2: 0 on i = j, 1 if i - j is a square modulo q, else -1."""
    kind = torch.full((q,), -1, dtype=torch.int8)
    kind[torch.arange(1, q).square() % q] = 1
    kind[0] = 0
    place = torch.arange(q)
    return kind[(place[:, None] - place) % q]


def bordered(q: int, corner: int) -> Tensor:
    """(q + 1, q + 1) int8: Jacobsthal's matrix under a row of 1, beside a column of `corner`."""
    framed = torch.zeros(q + 1, q + 1, dtype=torch.int8)
    framed[0, 1:], framed[1:, 0] = 1, corner
    framed[1:, 1:] = jacobsthal(q)
    return framed


def first_paley(q: int) -> Tensor:
    """Order q + 1 for a prime q = 3 modulo 4: I + S, S being skew with S S^T = q I."""
    return bordered(q, -1) + torch.eye(q + 1, dtype=torch.int8)


def second_paley(q: int) -> Tensor:
    """Order 2 (q + 1) for a prime q = 1 modulo 4: C symmetric with C C^T = q I, each 0 on its
    diagonal made [[1, -1], [-1, -1]] and each other entry c made c [[1, 1], [1, -1]].
    """
    off = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    on = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8)
    eye = torch.eye(q + 1, dtype=torch.int8)
    return torch.kron(bordered(q, 1), off) + torch.kron(eye, on)


def hartley_matrix(n: int) -> Tensor:
    """(cos + sin)(2 pi i j / n) / sqrt(n), (n, n) fp64: symmetric, orthogonal."""
    place = torch.arange(n)
    angle = (place[:, None] * place % n).double() * (2 * math.pi / n)
    return (angle.cos() + angle.sin()) / math.sqrt(n)
