from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pfedpara.hadamard import Method
from pfedpara.inspect import WeightStatistics, load_state, main, rank_experiment, weight_statistics
from pfedpara.parameterize import parameterize, split_parameters

torch.set_num_threads(1)


def model(method: Method, tanh: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(16, 24, 3), nn.GroupNorm(2, 24), nn.Flatten(), nn.Linear(24, 3), nn.Linear(48, 32))
    return parameterize(layers, method, 0.5, tanh=tanh)


def test_statistics_by_hand() -> None:
    weight = torch.diag(torch.tensor([4.0, 4.0, 0.0]))
    row = WeightStatistics("w", weight, torch.linalg.svdvals(weight), (1.0, 4.0))
    assert row.rank == 2
    assert row.effective_rank == pytest.approx(2.0)
    assert row.balance == 0.25


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("method", ["pfedpara", "fedpara", "lowrank"])
def test_weights_are_composed_as_the_model_does(method: Method, tanh: bool) -> None:
    factored = model(method, tanh)
    rows = {row.name: row.weight for row in weight_statistics(factored.state_dict(), method, tanh)}
    assert rows.keys() == {"0.weight", "3.weight", "4.weight"}
    for name, weight in rows.items():
        torch.testing.assert_close(weight, factored.get_submodule(name[0]).weight)


def test_shared_tensors_alone_are_the_shared_half() -> None:
    factored = model("pfedpara")  # starts at W2 = 0
    shared = {name: tensor.detach() for name, tensor in split_parameters(factored)[0].items()}
    rows = {row.name: row.weight for row in weight_statistics(shared, "pfedpara")}
    torch.testing.assert_close(rows["4.weight"], factored.get_submodule("4").weight)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_command_line(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"model{suffix}"
    state = model("fedpara").state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    picture = tmp_path / "new" / "picture.pdf"
    main([str(path), "--method", "fedpara", "--plot", str(picture)])
    lines = capsys.readouterr().out.splitlines()
    names_and_shapes = {tuple(line.split()[:2]) for line in lines[1:4]}
    assert names_and_shapes == {("0.weight", "24×16×3×3"), ("3.weight", "3×24"), ("4.weight", "32×48")}
    assert picture.read_bytes().startswith(b"%PDF")
    assert {found.name for found in tmp_path.iterdir()} == {path.name, "new"}  # nothing beside the checkpoint
    with pytest.raises(SystemExit):
        main([str(path), "--method", "fedpara", "--plot", str(picture.with_suffix(".what"))])
    assert "what" in capsys.readouterr().err


def test_what_cannot_be_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pt"
    torch.save(model("fedpara").state_dict(), path)
    with pytest.raises(SystemExit):
        main([str(path), "--method", "lowrank"])
    assert "0.weight has 6 factors, which lowrank does not; give the right --method" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path / "none.pt")])
    assert "No such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])
    torch.save({"round": 3}, path)
    with pytest.raises(ValueError, match="does not hold a state dict"):
        load_state(path)


def test_the_papers_rank_experiment() -> None:
    assert rank_experiment(50) == {"fedpara": [100] * 50, "lowrank": [20] * 50}
