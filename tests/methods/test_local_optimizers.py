"""The clients' optimizers against torch.optim's own classes, used by hand in a loop of a few lines, in float64."""

import os
import signal
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.augment import crop_and_flip
from baselines.base import Hyper, Trainer
from baselines.pfedme import PFedMeHyper
from benchmarks.federation.registry import METHODS, build_trainer
from benchmarks.federation.settings import Settings
from pfedpara.streams import stream_state
from tests.support import directory, refusal, run, same_findings, start, wait_for_round

LR, EPOCHS, BATCH, CLIP = 0.02, 2, 4, 0.6
COMMON = {"lr": LR, "epochs": EPOCHS, "batch_size": BATCH, "clip_norm": CLIP}
CLASSES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda *args, **options: torch.optim.SGD(*args, momentum=0.9, **options),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
STATEFUL = ("momentum", "adam", "adamw")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)).double()


def data(client: int = 0) -> TensorDataset:
    stream = torch.Generator().manual_seed(client)
    y = torch.randint(0, 3, (10 + client,), generator=stream)
    return TensorDataset(torch.randn(len(y), 6, generator=stream, dtype=torch.float64) + y[:, None], y)


def batches(number: int, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
    """What client 0 draws in that round."""
    x, y = data().tensors
    torch.set_rng_state(stream_state("training", 0, 0, number))
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(y)).split(size):
            yield x[batch], y[batch]


def clipped(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Gives each parameter the gradient of a batch."""
    model.zero_grad()
    cross_entropy(model(x), y).backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    for parameter in model.parameters():
        parameter.grad *= min(1.0, CLIP / float(norm))


def close(ours: Trainer | dict[str, Tensor], theirs: nn.Module) -> None:
    found = ours.get_model_params() if isinstance(ours, Trainer) else ours
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(("name", "decay"), [("sgd", 0.1), *product(STATEFUL, (0.0, 0.1))])
def test_steps_are_those_of_torch_within_a_round_and_over_two(name: str, decay: float, kept: bool) -> None:
    kept = kept and name in STATEFUL
    trainer = METHODS["fedavg"].build(net(), **COMMON, optimizer=name, weight_decay=decay, keep_optimizer=kept)
    model = net()
    for number in range(2):
        trainer.fit(data(), RoundContext(0, 0, number))
        if not number or not kept:
            optimizer = CLASSES[name](model.parameters(), lr=LR, weight_decay=decay)
        for batch in batches(number):
            clipped(model, *batch)
            optimizer.step()
        close(trainer, model)


def test_a_gradient_of_other_strides_than_its_weight_counts_in_the_right_place() -> None:
    model, theirs = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    theirs.load_state_dict(model.state_dict())
    trainer = METHODS["fedavg"].build(model, optimizer="adam", lr=LR)
    gradient = (torch.arange(6.0) - 2.5).view(3, 2).mT  # as backward of a matrix product may give it
    trainer.optimizer.step([model.weight], [gradient], LR)
    theirs.weight.grad = gradient.contiguous()
    torch.optim.Adam(theirs.parameters(), lr=LR).step()
    torch.testing.assert_close(model.weight, theirs.weight)


def test_the_two_models_of_ditto_have_an_optimizer_each() -> None:
    trainer = METHODS["ditto"].build(net(), **COMMON, lam=0.7, optimizer="adam", keep_optimizer=True)
    start, v = net(), net()
    optimizer = torch.optim.Adam(v.parameters(), lr=LR)
    for number in range(2):
        trainer.set_model_params(dict(start.state_dict()))
        trainer.fit(data(), RoundContext(0, 0, number))
        for batch in batches(number):
            clipped(v, *batch)
            for parameter, anchor in zip(v.parameters(), start.parameters(), strict=True):
                parameter.grad += 0.7 * (parameter.detach() - anchor.detach())
            optimizer.step()
        close(trainer.get_private_state(), v)


def test_apfl_gives_its_own_model_the_gradient_of_the_mixture() -> None:
    trainer = METHODS["apfl"].build(net(), **COMMON, alpha=0.3, optimizer="adam", weight_decay=0.1)
    w, v, mixture = net(), net(), net()
    of_w, of_v = (torch.optim.Adam(model.parameters(), lr=LR, weight_decay=0.1) for model in (w, v))
    trainer.fit(data(), RoundContext(0, 0, 0))
    for batch in batches(0):
        clipped(w, *batch)
        mixture.load_state_dict({k: 0.3 * t + 0.7 * w.state_dict()[k] for k, t in v.state_dict().items()})
        clipped(mixture, *batch)
        for parameter, mixed in zip(v.parameters(), mixture.parameters(), strict=True):
            parameter.grad = 0.3 * mixed.grad
        of_w.step()
        of_v.step()
    close(trainer, w)
    close({name.removeprefix("v."): tensor for name, tensor in trainer.get_private_state().items()}, v)


def test_per_fedavg_adapts_by_sgd_and_moves_its_start_by_the_optimizer() -> None:
    trainer = METHODS["per-fedavg"].build(net(), **COMMON, inner_lr=0.3, optimizer="adamw")
    w, ahead = net(), net()
    optimizer = torch.optim.AdamW(w.parameters(), lr=LR)  # with the weight decay of its own default
    trainer.fit(data(), RoundContext(0, 0, 0))
    for x, y in batches(0, 2 * BATCH):
        if len(y) > BATCH:
            ahead.load_state_dict(w.state_dict())
            clipped(ahead, x[:BATCH], y[:BATCH])
            torch.optim.SGD(ahead.parameters(), lr=0.3).step()
            clipped(ahead, x[BATCH:], y[BATCH:])
            for parameter, other in zip(w.parameters(), ahead.parameters(), strict=True):
                parameter.grad = other.grad
            optimizer.step()
    close(trainer, w)


def test_pfedme_takes_the_optimizer_for_its_steps_on_the_personal_model() -> None:
    hyper = {**COMMON, "lr": 0.05, "personal_lr": LR, "lam": 4.0, "steps": 3, "beta": 1.0}
    trainer = METHODS["pfedme"].build(net(), **hyper, optimizer="adam")
    theta, w = net(), net()
    optimizer = torch.optim.Adam(theta.parameters(), lr=LR)
    trainer.fit(data(), RoundContext(0, 0, 0))
    for batch in batches(0):
        for _ in range(3):
            clipped(theta, *batch)
            for parameter, pull in zip(theta.parameters(), w.parameters(), strict=True):
                parameter.grad += 4.0 * (parameter.detach() - pull.detach())
            optimizer.step()
        for parameter, goal in zip(w.parameters(), theta.parameters(), strict=True):
            parameter.data += 0.05 * 4.0 * (goal.detach() - parameter.detach())
    close(trainer.get_private_state(), theta)
    close(trainer, w)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("algo", sorted(METHODS.keys() - {"scaffold"}))
def test_a_client_goes_on_with_its_own_moments_whoever_trained_meanwhile(algo: str, kept: bool) -> None:
    def train(others: tuple[int, ...]) -> dict[str, Tensor]:
        trainer = METHODS[algo].build(net(), **COMMON, optimizer="adam", keep_optimizer=kept)
        shared, states = trainer.get_model_params(), {}
        fresh = trainer.get_private_state()
        for client, number in ((0, 0), *((c, 0) for c in others), (0, 1)):
            trainer.set_private_state(states.get(client, fresh))
            trainer.set_model_params(shared)
            trainer.fit(data(client), RoundContext(0, client, number))
            states[client] = trainer.get_private_state()
            with trainer.deployed(data(client), RoundContext(0, client, number)):
                pass
            for name, tensor in trainer.get_private_state().items():
                assert torch.equal(tensor, states[client][name])
        return trainer.get_model_params() | states[0]

    alone, among_others = train(()), train((1, 2))
    assert any(name.startswith("optimizer.") for name in alone) == kept
    for name, tensor in alone.items():
        assert torch.equal(tensor, among_others[name]), name


def test_fine_tuning_starts_afresh_and_leaves_the_moments() -> None:
    trainer = METHODS["fedavg-ft"].build(net(), **COMMON, finetune_epochs=EPOCHS, optimizer="adam", keep_optimizer=True)
    trainer.fit(data(), RoundContext(0, 0, 0))
    model, kept = net(), trainer.get_private_state()
    trainer.set_model_params(dict(model.state_dict()))
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    x, y = data().tensors
    with trainer.deployed(data(), RoundContext(0, 0, 0)) as deployed:
        torch.set_rng_state(stream_state("deployment", 0, 0, 0))
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(y)).split(BATCH):
                clipped(model, x[batch], y[batch])
                optimizer.step()
        close(dict(deployed.state_dict()), model)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in trainer.get_private_state().items())


def test_the_default_rate_follows_the_optimizer_and_what_is_said_holds() -> None:
    rates = {name: Hyper(optimizer=name).lr for name in CLASSES}
    assert rates == {"sgd": 0.1, "momentum": pytest.approx(0.01), "adam": 0.001, "adamw": 0.001}
    assert [Hyper(optimizer=name).weight_decay for name in CLASSES] == [0, 0, 0, 0.01]
    assert (Hyper(optimizer="adamw", lr=0.3, weight_decay=0).lr, PFedMeHyper(optimizer="adam").lr) == (0.3, 0.05)
    assert (PFedMeHyper(optimizer="adam").personal_lr, Hyper.rate("adam")[1:]) == (0.001, (0.0001, 0.03))


@pytest.mark.parametrize(
    ("algo", "values", "said"),
    [
        ("scaffold", {"optimizer": "adam"}, "a control variate is the mean gradient .* got adam"),
        ("fedavg", {"keep_optimizer": True}, "sgd has no state to keep; take --optimizer momentum, adam or adamw"),
        ("fedavg", {"optimizer": "rmsprop"}, "Input should be 'sgd', 'momentum', 'adam' or 'adamw'"),
        ("fedavg", {"weight_decay": -1}, "greater than or equal to 0"),
    ],
)
def test_what_makes_no_sense_is_refused(algo: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        METHODS[algo].complete(values)


class Texts:
    task = "text"


def test_texts_are_not_cropped() -> None:
    settings = Settings(dataset="shakespeare", hyper=METHODS["fedavg"].complete({"augment": True}))
    with pytest.raises(ValueError, match="--augment crops and flips pictures, but shakespeare holds text"):
        build_trainer(settings, Texts())  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [(), (2,)])
def test_a_picture_is_moved_by_an_eighth_at_most_and_mirrored_or_not(channels: tuple[int, ...]) -> None:
    """Of 8 × 16 pixels: 3 × 5 places, two ways round."""
    picture = torch.arange(1, 1 + 8 * 16).view(8, 16, *(1 for _ in channels)).expand(8, 16, *channels).to(torch.uint8)
    bordered = torch.zeros(10, 20, *channels, dtype=torch.uint8)
    bordered[1:9, 2:18] = picture
    windows = [bordered[top : top + 8, left : left + 16] for top in range(3) for left in range(5)]
    expected = {window.numpy().tobytes() for each in windows for window in (each.contiguous(), each.flip(1))}
    torch.manual_seed(0)
    found = crop_and_flip(picture.expand(600, *picture.shape))
    assert {one.contiguous().numpy().tobytes() for one in found} == expected


def test_augmented_batches_are_new_in_each_epoch_and_follow_from_the_stream() -> None:
    x = torch.randint(0, 255, (6, 8, 8), dtype=torch.uint8)
    seen: list[Tensor] = []

    class Seeing(METHODS["fedavg"].trainer):  # type: ignore[name-defined, misc]
        def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
            seen.append(x)
            return torch.zeros(())

    trainer = Seeing(nn.Linear(2, 2), Hyper(epochs=2, batch_size=6, augment=True))
    for _ in range(2):
        trainer.fit(TensorDataset(x, torch.zeros(6)), RoundContext(0, 0, 0))
    torch.set_rng_state(stream_state("training", 0, 0, 0))
    expected = [crop_and_flip(x[torch.randperm(6)]) for _ in range(2)]
    assert not torch.equal(*expected)
    assert all(torch.equal(one, other) for one, other in zip(seen, 2 * expected, strict=True))


@pytest.mark.slow
def test_kept_moments_are_the_same_at_any_number_of_ranks_and_after_a_stop(tmp_path: Path) -> None:
    """Clients move between the ranks; the job that goes on imports in each rank by itself."""
    line = ("--algo", "pfedpara", "ditto", "--optimizer", "adam", "--keep-optimizer", "--augment", "--rounds", "5")
    line += ("--epochs", "1", "--clients", "5", "--clients-per-round", "3", "--checkpoint-every", "1")
    stopped, alone = tmp_path / "stopped", tmp_path / "alone"
    job = start(*line, "--out", str(stopped), ranks=3)
    wait_for_round(job, directory(stopped, "pfedpara-adam") / "rounds.csv", 2)
    os.killpg(job.pid, signal.SIGKILL)
    job.communicate()
    done = run(*line, "--out", str(stopped), ranks=3, PFL_FORK="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert run(*line, "--out", str(alone)).returncode == 0
    for algo in ("pfedpara-adam", "ditto-adam"):
        same_findings(directory(stopped, algo), directory(alone, algo))


def test_a_job_refuses_in_a_sentence(tmp_path: Path) -> None:
    assert "scaffold: --optimizer: a control variate" in refusal(
        tmp_path, "--algo", "fedavg", "scaffold", "--optimizer", "adam"
    )
