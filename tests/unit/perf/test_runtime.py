"""What measures the runtime beside FedML's own."""

from pathlib import Path

import pytest

from benchmarks.perf import runtime


def test_without_the_extra_one_sentence_names_a_package_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb.py").write_text("raise ModuleNotFoundError(name='wandb')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sentence = "FedML's own runtime needs the package wandb; pip install -r requirements-stock.txt"
    with pytest.raises(SystemExit, match=sentence):
        runtime.check_stock()
    monkeypatch.delenv("PYTHONPATH")
    runtime.check_stock()
