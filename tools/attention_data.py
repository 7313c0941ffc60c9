"""Queries, keys and values on which attention is judged, and what is right for them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

KINDS = ("normal", "key outliers", "diffuse rows")
OUTLIERS = 4  # channels of each key head
JUDGED = 256  # queries of each row, at most: in fp64 they take time


def operands(
    kind: str,
    rows: int,
    queries: int,
    keys: int,
    heads: int,
    kv_heads: int,
    width: int,
    seed: int = 0,
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """q (B, H, Q, K), k and v (B, G, S, K) on torch's default device, fp16.

    `key outliers`: some channels of all keys are about 20 times as large and far from 0, as keys
    of language models are (KIVI, arXiv 2402.02750); `diffuse rows`: queries so small that no key
    has more than a few times its even share.
    """
    import torch

    torch.manual_seed(seed)
    q = torch.randn(rows, heads, queries, width)
    k = torch.randn(rows, kv_heads, keys, width)
    v = torch.randn(rows, kv_heads, keys, width)
    if kind == "key outliers":
        at = torch.randperm(width)[:OUTLIERS]
        k[..., at] = 20 + 2 * k[..., at]
    elif kind == "diffuse rows":
        q *= 0.1
    return q.half(), k.half(), v.half()


def exact(q: "torch.Tensor", k: "torch.Tensor", v: "torch.Tensor") -> "torch.Tensor":
    """y (B, H, Q, K) in fp64 of the first queries, a head at a time; every query sees every key."""
    import torch

    queries = q[:, :, :JUDGED].double()
    shared = q.shape[1] // k.shape[1]
    heads = []
    for head in range(q.shape[1]):
        key, value = (x[:, head // shared].double() for x in (k, v))
        scores = queries[:, head] @ key.mT / q.shape[3] ** 0.5
        heads.append(scores.softmax(-1) @ value)
    return torch.stack(heads, 1)


def errors(y: "torch.Tensor", right: "torch.Tensor") -> tuple[float, float]:
    """Relative L2 error of y (B, H, Q, K), and 1 - its cosine with what is right."""
    import torch

    found = y[:, :, :JUDGED].double()
    off = float((found - right).norm() / right.norm())
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), right.flatten(), dim=0)
    return off, 1 - float(cosine)
