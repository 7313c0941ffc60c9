"""Which answer tokens training masks: how many of them, in which order, and what each weighs."""

import torch

from tools.reference_data import MASK
from tools.reference_network import Network


@torch.no_grad()
def places(
    network: Network,
    clean: torch.Tensor,
    width: int,
    surest: float,
    bf16: bool,
    generator: torch.Generator,
) -> torch.Tensor:
    """Ranks (B, width) of the answer's places: who is masked first, 0, to who is masked last.

    Random in most rows. In the first `surest` of them a place ranks the later the surer the network
    is of it while all of the answer is masked: these are the states that decoding by confidence
    goes through, and few of them come about by chance. The rank depends on the prompt alone, so
    what is right at a masked place stays as likely as it was.
    """
    order = torch.rand(len(clean), width, generator=generator)
    rows = round(surest * len(clean))
    if rows:
        blank = clean[:rows].clone()
        blank[:, -width:] = MASK
        with torch.autocast(clean.device.type, torch.bfloat16, enabled=bf16):
            logits = network(blank)[:, -width:].float()
        order[:rows] = logits.softmax(-1).max(-1).values.cpu()
    return order.argsort(1).argsort(1)


def corrupt(
    clean: torch.Tensor, hidden_first: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks answers, the last ids of rows (B, T), in the order of `hidden_first` (B, width).

    Returns noisy ids (B, T), and the weights (B, T): width / l where masked, 0 elsewhere. Rows take
    l = 1, 2, … in turn from a random one on: a batch sees all of them equally often.
    """
    rows, width = hidden_first.shape
    first = torch.randint(width, (1,), generator=generator)
    count = 1 + (first + torch.arange(rows))[:, None] % width  # (B, 1), in 1 … width
    masked = hidden_first < count
    noisy, weight = clean.clone(), torch.zeros(clean.shape)
    noisy[:, -width:][masked] = MASK
    weight[:, -width:] = masked * (width / count)
    return noisy, weight


def corrupt_block(
    clean: torch.Tensor, width: int, block: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks part of one block of each row of clean ids (B, T) whose last `width` are the answer.

    Returns noisy ids and weights as `corrupt` does. Blocks are counted from position 0 and drawn by
    how many tokens of the answer they hold; what stands behind is masked too and weighs nothing,
    since a block-causal model does not see it (arXiv 2503.09573, section 3).
    """
    rows, length = clean.shape
    number = torch.arange(length) // block
    drawn = length - 1 - torch.randint(width, (rows, 1), generator=generator)
    own = (number == number[drawn]) & (torch.arange(length) >= length - width)  # (B, T)
    size = own.sum(1, keepdim=True)
    first = torch.randint(block, (1,), generator=generator)
    count = 1 + (first + torch.arange(rows))[:, None] % size  # (B, 1), in 1 … size
    rank = torch.rand(rows, length, generator=generator).masked_fill(~own, 2).argsort(1).argsort(1)
    masked = rank < count
    noisy = clean.masked_fill(masked | (number > number[drawn]), MASK)
    return noisy, masked * (width / count)
