"""Random crops and flips of a batch of pictures, as in He et al., CVPR 2016, section 4.2, on CIFAR-10."""

import torch
from torch import Tensor


def crop_and_flip(x: Tensor) -> Tensor:
    """Returns pictures (B, H, W) or (B, H, W, C), each moved at random and, every other one, mirrored.

    They move by up to an eighth of the side each way, 4 pixels of 32, over a border of zeros. Each has draws of its
    own, from torch's stream on the CPU.
    """
    n, height, width = x.shape[:3]
    down, right = height // 8, width // 8
    padded = x.new_zeros(n, height + 2 * down, width + 2 * right, *x.shape[3:])
    padded[:, down : down + height, right : right + width] = x
    top, left = (torch.randint(2 * margin + 1, (n, 1)) for margin in (down, right))
    mirrored = torch.rand(n, 1) < 0.5
    rows = top + torch.arange(height)  # (B, H)
    columns = left + torch.where(mirrored, torch.arange(width).flip(0), torch.arange(width))  # (B, W)
    where = torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]
    return padded[tuple(index.to(x.device) for index in where)]
