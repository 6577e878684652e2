"""What rank 0 holds in a round, however many clients take part in it."""

from pathlib import Path

import pytest

from benchmarks.perf.memory import measure


@pytest.mark.slow
def test_the_server_holds_a_few_models_and_not_one_a_client(tmp_path: Path) -> None:
    found = measure(3, 20, 1, tmp_path)
    assert found.model == 4 * (784 * 18_868 + 18_868 + 18_868 * 10 + 10)
    assert 0 < found.models <= 6
