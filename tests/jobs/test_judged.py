"""Which model a client is judged on, where not all take part: a real job against the same rounds written out here."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Params, Trainer
from benchmarks.federation.command_line import parser
from benchmarks.federation.options import settings_of
from benchmarks.federation.participation import sample_clients
from benchmarks.federation.registry import METHODS, build_trainer
from data_partitions import open_store
from pfedpara.streams import stream_state
from tests.support import directory, rows, run

CLIENTS, PER_ROUND, ROUNDS = 5, 2, 3
TRAINED = {
    "pfedpara",
    "pfedpara-x",
    "fedsa",
    "fedper",
    "fedselect",
    "pfedme",
    "ditto",
    "apfl",
    "fedpac",
    "spafl",
    "local",
}  # judged on what a client trained last
ALGOS = [algo for algo in METHODS if algo not in ("fedbn", "pooled")]  # another model; other participants
OPTIONS = (
    *("--algo", *ALGOS, "--rounds", str(ROUNDS), "--clients", str(CLIENTS), "--clients-per-round", str(PER_ROUND)),
    *("--fraction", "0.1", "--epochs", "1", "--batch-size", "16", "--lr", "0.1", "--lr-decay", "0.3"),
)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("judged")
    done = run(*OPTIONS, "--out", str(out), ranks=3)
    assert (done.returncode, done.stderr) == (0, "")
    return out


def fine_tune(model: nn.Module, data: TensorDataset, client: int, number: int) -> None:
    """Five epochs of clipped SGD at the rate of round ``number``, counted from 0."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1 * 0.3**number)
    torch.set_rng_state(stream_state("deployment", 0, client, number))
    x, y = data.tensors
    for _ in range(5):
        for batch in torch.randperm(len(y)).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize("algo", ALGOS)
def test_each_client_is_judged_on_what_it_received_or_what_it_trained_last(job: Path, algo: str) -> None:
    (settings,) = (s for s in settings_of(parser().parse_args([*OPTIONS, "--out", str(job)])) if s.algo == algo)
    store = open_store(next((job / "data").rglob(f"*clients{CLIENTS}*.h5")))
    trainer, server = build_trainer(settings, store), build_trainer(settings, store)
    aggregator = server.make_aggregator(CLIENTS)
    fresh = trainer.get_private_state()
    states: dict[int, Params] = {}
    last: dict[int, nn.Module] = {}  # the model that each client trained last

    def data(client: int, split: str) -> TensorDataset:
        return TensorDataset(*map(torch.from_numpy, store.samples(client, split)))

    def take_up(client: int) -> Trainer:
        trainer.set_private_state(states.get(client, fresh))
        trainer.set_model_params(aggregator.get_model_params() | aggregator.for_client(client))
        return trainer

    def deployed(client: int, number: int) -> nn.Module:
        if algo in TRAINED and client in last:
            return last[client]
        model = deepcopy(take_up(client).model)
        if algo in ("fedavg-ft", "fedbabu"):
            fine_tune(model, data(client, "train"), client, number)
        elif algo in ("per-fedavg", "fedala"):
            with trainer.deployed(data(client, "train"), RoundContext(0, client, number)) as adapted:
                model = deepcopy(adapted)
        return model

    expected: list[tuple[int, int, float, float]] = []
    for number in range(ROUNDS):
        updates = []
        for client in sample_clients(0, number + 1, CLIENTS, PER_ROUND):
            take_up(client).fit(data(client, "train"), RoundContext(0, client, number))
            states[client], last[client] = trainer.get_private_state(), deepcopy(trainer.model)
            updates.append((float(len(data(client, "train"))), trainer.get_model_params()))
            aggregator.note(client, updates[-1][1])
        aggregator.set_model_params(aggregator.aggregate(updates))
        for client in range(CLIENTS):
            x, y = data(client, "test").tensors
            logits: Tensor = deployed(client, number).eval()(x).detach()
            loss = nn.functional.cross_entropy(logits, y).item()
            expected.append((number + 1, client, (logits.argmax(1) == y).double().mean().item(), loss))
    assert 0 < len(last) < CLIENTS  # somebody never trained
    found = [
        (int(row["round"]), int(row["client"]), float(row["accuracy"]), float(row["loss"]))
        for row in rows(directory(job, algo) / "clients.csv")
    ]
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[2:] == pytest.approx(theirs[2:], rel=1e-4), ours[:2]
