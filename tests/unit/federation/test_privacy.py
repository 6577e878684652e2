"""Clipping, equal weights, noise and ε: by hand, against formulas, and as laws; and what is refused."""

import json
import math
import time
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import kstest, norm
from torch import Tensor, nn

from baselines.base import Aggregator, Trainer
from benchmarks.federation import privacy, rounds
from benchmarks.federation.command_line import parser
from benchmarks.federation.experiment import Experiment, Run
from benchmarks.federation.options import settings_of
from benchmarks.federation.participation import Participants
from benchmarks.federation.registry import METHODS, find_method
from benchmarks.federation.rounds import Downlink, Steps
from benchmarks.federation.settings import Settings
from benchmarks.federation.suites import UsageError
from benchmarks.federation.updates import Updates
from data_partitions import open_store, prepare
from pfedpara.streams import stream_seed
from tests.support import run, summary

SIZES = [3, 9, 6]


def test_a_move_is_clipped_by_hand() -> None:
    received = torch.tensor([1.0, 1])
    assert privacy.clip(torch.tensor([4.0, 5]), received, 1).tolist() == pytest.approx([1.6, 1.8])  # moved by (3, 4)
    assert privacy.clip(torch.tensor([4.0, 5]), received, 5).tolist() == [4, 5]
    assert privacy.clip(torch.tensor([math.nan, 5]), received, 1).isnan().any()  # diverged, as without clipping


@hypothesis.settings(max_examples=40)
@given(
    seed=st.integers(0, 99), longest=st.sampled_from([1e-30, 1e-4, 0.3, 1, 7, 1e9]), far=st.sampled_from([0, 1, 1e4])
)
def test_what_arrives_is_never_further_than_the_clip_and_on_the_way(seed: int, longest: float, far: float) -> None:
    stream = torch.Generator().manual_seed(seed)
    received, move = far * torch.randn(50, generator=stream), torch.randn(50, generator=stream)
    arrived = privacy.clip(received + move, received, longest)
    moved = arrived.double() - received.double()
    assert moved.norm() <= longest
    whole = (received + move).double() - received.double()
    share = min(1, longest / float(whole.norm()))
    ulp = 2.0**-23 * float(received.abs().max() + whole.abs().max())
    torch.testing.assert_close(moved, share * whole, rtol=1e-6, atol=2 * ulp + 1e-6 * longest)


def test_normal_numbers_by_hand() -> None:
    bits = np.array([1 << 63, 1 << 63, 0, 1 << 62], "<u8")  # u = ½ twice; angles 0 and π/2
    radius = math.sqrt(2 * math.log(2))
    assert privacy.normal(1, lambda count: bits.tobytes()[:count]) == pytest.approx([(radius + 0 + 0 + radius) / 2])
    with pytest.raises(ValueError, match="reshape"):
        privacy.normal(2, lambda count: bits.tobytes()[:count])  # eight numbers are needed for two


def test_noise_is_normal_of_that_deviation_whatever_it_is_drawn_from() -> None:
    for draw in (np.random.default_rng(3).bytes, privacy.secrets.token_bytes):
        mean = {"w": torch.full((200, 100), 5.0), "b": torch.full((1000,), 5.0)}
        privacy.add_noise(mean, 0.25, draw)
        found = torch.cat([tensor.flatten() for tensor in mean.values()]).numpy()
        assert kstest((found - 5) / 0.25, norm.cdf).pvalue > 1e-6
        assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 5 / math.sqrt(len(found))


def exact_epsilon(noise: float, releases: int, delta: float) -> float:
    """ε of the Gaussian mechanism with sensitivity 2 and deviation ``noise``, by its own δ(ε), which composes exactly.

    Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018, Theorem 8.
    """
    moved = 2 * math.sqrt(releases) / noise  # the sensitivity in deviations

    def surplus(epsilon: float) -> float:
        tail = math.exp(epsilon + norm.logcdf(-moved / 2 - epsilon / moved))
        return float(norm.cdf(moved / 2 - epsilon / moved) - tail - delta)

    return float(brentq(surplus, 0, 200))


@pytest.mark.parametrize(("noise", "releases", "delta"), [(2, 10, 1e-3), (4, 20, 3e-3), (8, 1, 1e-5), (1, 3, 1e-2)])
def test_epsilon_of_the_gaussian_mechanism_is_just_above_its_formula(noise: int, releases: int, delta: float) -> None:
    pytest.importorskip("dp_accounting")
    found, exact = privacy.epsilon(noise, 50, 50, releases, delta), exact_epsilon(noise, releases, delta)
    assert exact <= found < 1.25 * exact + 0.1


def test_sampling_helps_and_never_harms() -> None:
    pytest.importorskip("dp_accounting")
    found = [privacy.epsilon(4, 400, m, 20, 1e-3) for m in (20, 100, 399, 400)]
    assert found == sorted(found)
    assert found[0] < found[3] / 10
    assert found[2] == found[3]  # the bound with sampling is worse there: the one without holds as well
    # Wang et al., Theorem 27, at order 2 alone, with RDP of the Gaussian ε(2) = 2 / (2 (σ/2)²) = ¼ at σ = 4
    q, rdp = 20 / 400, 2 / (2 * (4 / 2) ** 2)
    at_two = math.log1p(q**2 * min(4 * math.expm1(rdp), 2 * math.exp(rdp)))
    converted = 20 * at_two + math.log(1 - 1 / 2) - math.log(1e-3 * 2) / (2 - 1)  # Canonne et al., Proposition 12
    assert found[0] <= converted


class Constant:
    """Clients that send 1, 2, 3 … for each number, whatever they receive."""

    def train(self, run: Run, participants: Participants, downlink: Downlink, updates: Updates) -> Steps[None]:
        for client in participants.arriving:
            shapes = run.trainer.changing(run.progress.round - 1)
            updates.take(client, {name: torch.full(t.shape, client + 1.0) for name, t in shapes.items()})
        yield


def experiment(out: Path, **options: Any) -> Experiment:
    clients = {"clients": 3, "clients_per_round": 3, "rounds": 9, "eval_every": 0, "checkpoint_every": 0}
    s = Settings(algo="fedavg", out=out, hyper=find_method("fedavg").complete({}), **clients | options)
    store = prepare(s.dataset, s.data_dir, s.partition, s.clients, s.seed, out / "data", 0.1)
    with open_store(store) as opened:
        return Experiment(s, store, opened.sha256)


def take(found: Run, number: int) -> Tensor:
    """Returns the model after that many more rounds, all numbers end to end."""
    for _ in range(number):
        for _ in rounds.take_round(found, Constant()):  # type: ignore[arg-type]
            pass
    found.recorder.close()
    return torch.cat([tensor.flatten() for tensor in found.aggregator.get_model_params().values()])


def test_clients_count_alike_and_the_mean_gets_noise_of_that_scale(tmp_path: Path) -> None:
    plain = experiment(tmp_path / "plain")
    sizes = Run(plain, time.monotonic()).sizes
    assert len(set(sizes)) > 1
    weighted = sum((client + 1) * size for client, size in enumerate(sizes)) / sum(sizes)
    np.testing.assert_allclose(take(Run(plain, time.monotonic()), 1), weighted, rtol=1e-6)
    clipped = take(Run(experiment(tmp_path / "clipped", dp_clip=0.5), time.monotonic()), 1)
    np.testing.assert_allclose(clipped, 2, rtol=1e-6)  # (1 + 2 + 3) / 3
    noised = experiment(tmp_path / "noised", dp_clip=0.5, dp_noise=6, dp_seed=7)
    found = take(Run(noised, time.monotonic()), 1)
    draw = np.random.default_rng(stream_seed("noise", 7, 0, 1)).bytes
    of_first = privacy.normal(256 * 784, draw)  # of the first weight; σ C / m is 1
    np.testing.assert_allclose(found[: 256 * 784], 2 + of_first, rtol=0, atol=1e-6)
    assert abs(float((found - 2).std()) - 1) < 0.01
    assert torch.equal(take(Run(noised, time.monotonic()), 1), found)  # the same again
    assert not torch.equal(
        take(Run(experiment(tmp_path / "other", dp_clip=0.5, dp_noise=6), time.monotonic()), 1), found
    )


def test_noisy_means_that_a_stop_undid_count_as_well(tmp_path: Path) -> None:
    half = experiment(tmp_path, dp_clip=1, dp_noise=2, clients_per_round=2)
    first = Run(half, time.monotonic())
    take(first, 2)
    assert first.noise
    drawn = [first.participants(number).drawn for number in range(1, 30)]
    assert first.holders(2) == frozenset(drawn[1])
    again = Run(half, time.monotonic())  # without a checkpoint: from the beginning
    take(again, 3)
    assert again.noise
    assert (again.progress.round, again.noise.releases) == (3, 5)
    assert json.loads((half.settings.directory / privacy.NAME).read_text()) == {"releases": 5}
    assert [again.participants(number).drawn for number in range(1, 30)] != drawn  # from a secret of its own
    seeded = [Run(experiment(tmp_path / "seeded", dp_clip=1, dp_noise=2, dp_seed=1), time.monotonic()) for _ in "ab"]
    assert seeded[0].participants(1) == seeded[1].participants(1)
    again.noise.first = 3  # as where a checkpoint after round 3 was taken up
    assert again.holders(3) == frozenset()  # an earlier job drew them
    with pytest.raises(ValueError, match="says 5 noisy means after 6 rounds, so that ε is not known"):
        privacy.Noise(half.settings, 6)


def check(algo: str, model: nn.Module | None = None, **options: Any) -> None:
    method = find_method(algo)
    s = Settings(algo=algo, dp_clip=1, clients=3, clients_per_round=3, **options)
    model = model or nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    privacy.check(s, method.build(model, **method.complete({})), SIZES)


REFUSED = {
    "local": "nothing travels",
    "pooled": "one place has the samples of all clients",
    "scaffold": "control.0.bias travels, another message beside the parameters",
    "feddbe": "feature_mean travels, another message",
    "fedluar": "recycled travels, running statistics beside",
    "fedselect": "clients say which numbers they leave out",
    "fedpac": "centroids travels, another message beside the parameters",
    "fedmud": "update_number travels, running statistics beside",
    "fedbn": "the model has no norm layer",
}


@pytest.mark.parametrize("algo", METHODS)
def test_each_method_is_private_or_refused(algo: str) -> None:
    """What those do that are not refused: send shared parameters alone, of which the server sees the mean alone."""
    if algo not in REFUSED:
        return check(algo)
    with pytest.raises(ValueError, match=REFUSED[algo]):
        check(algo)


def test_what_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))
    with pytest.raises(ValueError, match=r"1\.running_mean travels, running statistics beside the parameters"):
        check("fedavg", norms)
    check("fedbn", norms)  # keeps them

    class Median(Aggregator):
        def aggregate(self, updates: Any) -> Any:
            return updates[0][1]

    monkeypatch.setattr(Trainer, "aggregator_class", Median)
    with pytest.raises(ValueError, match="takes no mean of the updates"):
        check("fedavg")
    monkeypatch.undo()
    monkeypatch.setitem(privacy.terms.__globals__, "able_clients", lambda sizes: [2])
    with pytest.raises(ValueError, match="hides one client among others, and a single one"):
        check("fedavg", dp_noise=2)


def test_epsilon_above_100_is_refused() -> None:
    pytest.importorskip("dp_accounting")
    check("fedavg", dp_noise=0.5, rounds=1)
    with pytest.raises(ValueError, match=r"--dp-noise 0.5: ε would be \d+ after 20 rounds, and above 100 it promises"):
        check("fedavg", dp_noise=0.5, rounds=20)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--dp-noise 1", "--dp-noise 1 needs a --dp-clip above 0"),
        ("--dp-clip 1 --dp-seed 3", "--dp-seed 3 draws noise: give a --dp-noise above 0"),
        ("--dp-clip -1", "--dp-clip: .*greater than or equal to 0, got '-1'"),
        ("--dp-clip 1 --dp-noise inf", "--dp-noise: .*finite number"),
        ("--dp-clip 1 --quantize 8", "--dp-clip: --quantize 8 changes an update after it was clipped; take 32"),
        ("--dp-clip 1 --codec sign", "--dp-clip: --codec sign changes an update"),
        ("--dp-clip 1 --dropout 0.1", "with --dropout 0.1 not every client takes part with the same chance"),
        ("--dp-clip 1 --deadline 2", "with --deadline 2 not every client"),
        ("--dp-clip 1 --runtime fedml", "--runtime fedml has no --dp-clip 1.0"),
    ],
)
def test_nonsense_is_told(line: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        settings_of(parser().parse_args(line.split()))


def test_a_job_says_what_it_spent(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    options = ("--algo", "fedavg", "--clients", "4", "--fraction", "0.1", "--epochs", "1", "--out", str(tmp_path))
    done = run(*options, "--rounds", "2", "--dp-clip", "1", "--dp-noise", "4", ranks=3)
    assert (done.returncode, done.stderr) == (0, "")
    found = summary(tmp_path, "fedavg-dp1-noise4")["privacy"]
    delta = 4**-1.1
    assert found == {
        **{"epsilon": privacy.epsilon(4, 4, 4, 2, delta), "delta": delta, "private": True, "releases": 2},
        **{"noise": 4, "clip": 1, "clients": 4, "participants": 4, "neighbours": "replace one client"},
    }
    assert f"  ε = {found['epsilon']:.3g} at δ = 0.22, one of 4 clients replaced (2 noisy means)\n" in done.stdout
