"""What averaging factors apart loses."""

from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.base import Params
from benchmarks.federation.registry import find_method
from benchmarks.federation.settings import Settings
from benchmarks.perf import averaging
from data_partitions import open_store, prepare


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare("digits", Path("data"), "dirichlet:0.5", 3, 0, tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize(("way", "sent"), [("apart", 18 * 320), ("in turn", 36 * 256), ("fixed X", 50 * 64)])
def test_what_each_way_sends_and_loses(store_path: Path, way: str, sent: int) -> None:
    """Digits: hidden 256 × 64, head 2,560, biases 266; the first round in turn sends X."""
    chosen = averaging.WAYS[way]
    hyper = find_method("lowrank").complete({"gamma": chosen.gamma, "epochs": 1})
    settings = Settings(
        algo="lowrank", dataset="digits", rounds=1, dense=["classifier"], alternate=chosen.alternate, hyper=hyper
    )
    with open_store(store_path) as store:
        figures = averaging.simulate(chosen, settings, store)
    assert figures["sent"] == sent + 2560 + 266
    assert figures["lost"] > 1e-3 if way == "apart" else figures["lost"] < 1e-5


def test_the_mean_of_products_is_refactored_to_the_nearest_of_that_rank() -> None:
    def product(params: Params) -> np.ndarray:
        return params[averaging.X].double().numpy() @ params[averaging.Y].double().numpy().T

    shared = {averaging.X: torch.randn(9, 2), averaging.Y: torch.randn(7, 2)}
    mean = torch.randn(9, 7, dtype=torch.float64)
    found = product(averaging.refactored(mean, shared))
    U, S, Vt = np.linalg.svd(mean.numpy())
    np.testing.assert_allclose(found, (U[:, :2] * S[:2]) @ Vt[:2], atol=1e-5)
