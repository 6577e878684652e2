"""How near a reconstruction is to the true batch."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks.federation.suites import UsageError
from benchmarks.privacy.subject import SMALLEST, Batch

LEAST = 1e-10  # the mean square error of a picture that counts as equal: 100 dB


def check_installed() -> None:
    """Raises UsageError where the package is missing that SSIM comes from."""
    try:
        import torchmetrics  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError("SSIM needs the package torchmetrics; pip install -r requirements-privacy.txt") from None


def align(pictures: Tensor, truth: Tensor) -> Tensor:
    """Returns ``pictures`` (B, …) in the order in which their squared errors to ``truth`` (B, …) sum up to least."""
    errors = (pictures[:, None] - truth[None]).flatten(2).square().mean(-1)  # (B, B)
    rows, columns = linear_sum_assignment(errors)
    return pictures[rows[np.argsort(columns)]]


def psnr(pictures: Tensor, truth: Tensor) -> float:
    """Returns −10 log₁₀ of the mean square error in dB, at most 100, as a mean over pictures (B, …) in [0, 1]."""
    errors = (pictures - truth).flatten(1).square().mean(-1)  # (B,)
    return float((-10 * errors.clamp(min=LEAST).log10()).mean())


def ssim(pictures: Tensor, truth: Tensor) -> float:
    """Returns SSIM (Wang et al., 2004) in windows of 7 × 7, as a mean over pictures (B, H, W) or (B, H, W, C)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    one, other = (t[:, None] if t.dim() == 3 else t.permute(0, 3, 1, 2) for t in (pictures, truth))  # (B, C, H, W)
    found = structural_similarity_index_measure(
        one, other, gaussian_kernel=False, kernel_size=SMALLEST, data_range=1.0, return_full_image=False
    )
    assert isinstance(found, Tensor)
    return found.item()


def recovered(labels: Tensor, truth: Tensor) -> float:
    """Returns the share of the labels (B,) that were found, whichever sample has them."""
    return (Counter(labels.tolist()) & Counter(truth.tolist())).total() / len(truth)


def judge(
    pictures: Tensor, labels: Tensor, batches: Sequence[Batch]
) -> tuple[Tensor, list[float], list[float], list[float]]:
    """Returns the aligned pictures (N, B, …), and PSNR, SSIM and the share of labels of each batch."""
    aligned = torch.stack([align(own, each.pictures) for own, each in zip(pictures, batches, strict=True)])
    pairs = [(own, each.pictures) for own, each in zip(aligned, batches, strict=True)]
    return (
        aligned,
        [psnr(*pair) for pair in pairs],
        [ssim(*pair) for pair in pairs],
        [recovered(own, each.y) for own, each in zip(labels, batches, strict=True)],
    )
