"""Clients that take no part in training: what they are given, what they make of it, and what a run says of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from benchmarks.federation.registry import METHODS, build_trainer
from benchmarks.federation.settings import Settings
from data_partitions import open_store
from data_partitions.partitioners import draw_last
from tests.support import directory, refusal, rows, run, same_findings, summary

LATER = RoundContext(seed=0, client=7, round=3)

AS_RECEIVED = {"fedavg", "fedprox", "scaffold", "feddyn", "fedavgm", "fedadam", "fedyogi", "fedpara", "lowrank"}
AS_RECEIVED |= {"fedala", "fedluar", "fedmud", "fedlmt", "pooled"}
BY_THEIR_OWN_MEANS = {"fedavg-ft", "fedbabu", "per-fedavg"}  # of ``deploy``
BY_A_ROUND = {
    "pfedpara",
    "pfedpara-x",
    "fedsa",
    "fedper",
    "fedpac",
    "fedselect",
    "spafl",
    "local",
    "pfedme",
    "ditto",
    "apfl",
}  # and judged on what they trained
BY_WHAT_THEY_KEEP_OF_A_ROUND = {"fedrep", "lg-fedavg", "fedbn", "feddbe", "pfedlmt"}


def data() -> TensorDataset:
    stream = torch.Generator().manual_seed(7)
    y = torch.randint(0, 3, (20,), generator=stream)
    return TensorDataset(torch.randn(20, 12, generator=stream) + y[:, None], y)


def states(algo: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Returns the model of a client that joined, and by hand: after a round, and as received or of its own means."""

    def fresh() -> tuple[nn.Module, dict[str, Tensor]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))
        trainer = METHODS[algo].build(model, epochs=2, batch_size=4)
        stream = torch.Generator().manual_seed(1)
        sent = {
            name: tensor + 0.1 * torch.randn(tensor.shape, generator=stream)
            for name, tensor in trainer.get_model_params().items()
        }
        trainer.set_model_params(sent)
        return trainer, sent

    trainer, _ = fresh()
    with trainer.joined(data(), LATER) as model:
        joined = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer, _ = fresh()
    trainer.fit(data(), LATER)
    trained = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer, _ = fresh()
    with trainer.deployed(data(), LATER) as model:
        deployed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return joined, trained, deployed


def test_each_method_is_in_one_group() -> None:
    groups = (AS_RECEIVED, BY_THEIR_OWN_MEANS, BY_A_ROUND, BY_WHAT_THEY_KEEP_OF_A_ROUND)
    assert sorted(name for group in groups for name in group) == sorted(METHODS)


@pytest.mark.parametrize("algo", sorted(METHODS))
def test_a_new_client_adapts_as_the_method_says(algo: str) -> None:
    joined, trained, deployed = states(algo)
    kept = {
        "fedrep": {"3.weight", "3.bias"},
        "lg-fedavg": {"0.weight", "0.bias"},
        "fedbn": {"1.weight", "1.bias"},
        "feddbe": {"3.domain_bias"},
        "pfedlmt": {"3.weight", "3.bias"},
    }.get(algo, set())
    for name, tensor in joined.items():
        source = trained if algo in BY_A_ROUND or name in kept else deployed
        assert torch.equal(tensor, source[name]), name
    assert any(not torch.equal(tensor, deployed[name]) for name, tensor in joined.items()) == (
        algo in BY_A_ROUND | BY_WHAT_THEY_KEEP_OF_A_ROUND
    )


def test_pfedpara_starts_where_all_began() -> None:
    """W2 = X2 Y2ᵀ is 0 at the start, so that what a new client receives is W1 alone."""
    torch.manual_seed(0)
    trainer = METHODS["pfedpara"].build(nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 3)), gamma=0.5)
    trainer.set_private_state(trainer.get_private_state())
    x1, y1 = (trainer.get_model_params()[f"0.parametrizations.weight.original{i}"] for i in (0, 1))
    torch.testing.assert_close(trainer.model[0].weight, x1 @ y1.mT)


def test_the_last_clients_are_drawn_and_the_others_keep_their_order() -> None:
    owner = np.array([0, 3, -1, 1, 4, 2, 0, 4])  # -1: unused
    found = draw_last(owner, 2, np.random.default_rng(5))
    drawn = set(np.random.default_rng(5).choice(5, 2, replace=False).tolist())
    expected = dict(zip([*sorted({*range(5)} - drawn), *sorted(drawn)], range(5), strict=True)) | {-1: -1}
    assert found.tolist() == [expected[client] for client in owner.tolist()]
    assert {tuple(draw_last(owner, 2, np.random.default_rng(seed))) for seed in range(50)} > {tuple(found)}


NATURAL = ("--partition", "natural", "--clients", "4", "--new-clients", "3", "--clients-per-round", "3")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight writers, whose digits are the brighter the higher their number."""
    stream = np.random.default_rng(0)
    client = np.repeat(np.arange(8), 30)
    path = tmp_path_factory.mktemp("written") / "written.npz"
    x = stream.integers(0, 20 + 20 * client[:, None, None], (240, 8, 8)).astype(np.uint8)
    np.savez(path, x=x, y=stream.integers(0, 4, 240), client=client)
    return path


@pytest.mark.slow
def test_new_clients_are_judged_and_change_nothing_else(written: Path, tmp_path: Path) -> None:
    line = ("--algo", "pfedpara", "fedavg", "--dataset", f"npz:{written}", *NATURAL, "--rounds", "3", "--epochs", "2")
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    for out, ranks, fork in ((alone, 1, "1"), (spread, 3, "0")):
        done = run(*line, "--out", str(out), ranks=ranks, PFL_FORK=fork)
        assert (done.returncode, done.stderr) == (0, "")
        assert "3 new clients: accuracy" in done.stdout
    folders = [next(alone.glob(f"*/{algo}/seed0")) for algo in ("pfedpara", "fedavg")]
    for folder in folders:
        same_findings(folder, spread / folder.relative_to(alone))
        assert {row["client"] for row in rows(folder / "ledger.csv")} <= set("0123")
        found = json.loads((folder / "summary.json").read_text())
        assert found["clients"] == len(found["accuracy"]["per_client"]) == 4

        # By hand, from the checkpoint of the last round.
        config = Settings(
            **{"algo": found["algo"], "dataset": f"npz:{written}", "model": "mlp", "partition": "natural"},
            clients=4, new_clients=3, clients_per_round=3, hyper=METHODS[found["algo"]].complete({"epochs": 2}),
        )  # fmt: skip
        store = open_store(next((alone / "data").glob("*natural*-new3*.h5")))
        trainer = build_trainer(config, store)
        fresh, shared = trainer.get_private_state(), load_file(folder / "checkpoint/round-000003/shared.safetensors")
        received, adapted = [], []
        for client in (4, 5, 6):
            (x, y), test = store.samples(client, "train"), store.samples(client, "test")
            trainer.set_private_state(fresh)
            trainer.set_model_params(shared)
            for figures in (received, adapted):
                if figures is adapted and found["algo"] == "pfedpara":
                    trainer.fit(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), RoundContext(0, client, 3))
                guesses = trainer.model(torch.from_numpy(test[0])).argmax(dim=1).numpy()
                figures.append((guesses == test[1]).mean())
        assert found["new_clients"]["received"]["per_client"] == pytest.approx(received)
        assert found["new_clients"]["adapted"]["per_client"] == pytest.approx(adapted)
        # All that travels comes to each; pFedPara takes two epochs over their samples, and FedAvg nothing.
        samples = 2 * sum(store.sizes("train")[4:7].tolist()) if found["algo"] == "pfedpara" else 0
        assert found["new_clients"]["gradients"] == samples
        assert (found["new_clients"]["flops"] > 0) == (samples > 0)
        sent = found["new_clients"]["transmitted"]
        assert sent["parameters_down"] == 3 * sum(tensor.numel() for tensor in trainer.travelling.values())
        assert sent["bytes_down"] == 3 * found["transmitted"]["bytes_down"] / 9  # three clients, three rounds

    # A job that stopped before it wrote its summary.
    for folder in folders:
        path = folder / "summary.json"
        before = json.loads(path.read_text())
        path.unlink()
        assert run(*line, "--out", str(alone)).returncode == 0
        assert json.loads(path.read_text())["new_clients"] == before["new_clients"]


def test_a_partition_has_clients_for_both(tmp_path: Path) -> None:
    line = ("--algo", "local", "--clients", "3", "--new-clients", "2", "--rounds", "1", "--epochs", "1")
    assert run(*line, "--out", str(tmp_path)).returncode == 0
    found = summary(tmp_path, "local")
    assert (found["clients"], len(found["new_clients"]["adapted"]["per_client"])) == (3, 2)
    assert len(rows(directory(tmp_path, "local") / "clients.csv")) == 3


def test_more_clients_than_there_are_is_a_sentence(written: Path, tmp_path: Path) -> None:
    line = ("--algo", "local", "--dataset", f"npz:{written}", "--partition", "natural", "--clients", "6")
    assert "9 natural clients asked for, but the data set has 8" in refusal(tmp_path, *line, "--new-clients", "3")
    assert "--new-clients: input should be greater than or equal to 0, got '-1'" in refusal(
        tmp_path, *line, "--new-clients", "-1"
    )
