"""Files that anybody may have written are read within bounds, and files that are written are whole."""

import contextlib
import resource
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.federation import files
from tests.support import peak_memory

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
HERE = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A few lines that stand for 9^9 words."""

HOSTILE = [
    LAUGHS,
    "!!python/object/apply:os.system ['touch {mark}']",
    "a: !!python/name:os.system",
    *("[" * 100_000, "{" * 100_000, "a: " * 100_000, '{"a":' * 100_000),
    *("", "7", "[]", "null", "\0", "a: b: c", "2001-99-99: 1", "? [a]\n: 1", "- &a [*a]"),
    "a: " + "x" * files.LARGEST_JSON,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("read", [files.read_yaml, files.read_json])
def test_hostile_text_is_refused_in_a_sentence(tmp_path: Path, read: object, text: str) -> None:
    path, mark = tmp_path / "config", tmp_path / "mark"
    path.write_text(text.replace("{mark}", str(mark)))
    before = peak_memory()
    with pytest.raises(ValueError, match="cannot be read") as refused:
        read(path)  # type: ignore[operator]
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 400
    assert len(str(refused.value).splitlines()) == 1
    assert not mark.exists()
    assert peak_memory() < 2 * before


@HERE
@given(st.binary(max_size=300))
def test_any_bytes_give_names_and_values_or_a_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config"
    path.write_bytes(content)
    for read in (files.read_yaml, files.read_json):
        found: object = {}
        with contextlib.suppress(ValueError):
            found = read(path)
        assert isinstance(found, dict)


@HERE
@given(st.dictionaries(st.text(), PLAIN, max_size=4))
def test_what_this_project_writes_is_read(tmp_path: Path, values: dict[str, object]) -> None:
    path = tmp_path / "config"
    files.write(path, yaml.safe_dump(values, allow_unicode=True).encode())
    assert files.read_yaml(path) == yaml.safe_load(path.read_text())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        files.read_json(tmp_path / "none")


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "table"
    files.write(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        for write in (lambda: files.write(path, b"x" * 2000), lambda: files.append(path, b"x" * 2000, 3)):
            assert path.read_bytes() == b"old"
            with pytest.raises(OSError, match="File too large") as refused:
                write()
            assert str(path) in str(refused.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_appending_never_makes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "table"
    with pytest.raises(FileNotFoundError, match="table"):
        files.append(path, b"row\n", 0)
    assert not path.exists()
    path.write_bytes(b"head\n")
    assert files.append(path, b"row\n", 5) == 9
    assert path.read_bytes() == b"head\nrow\n"


def test_appending_to_what_somebody_else_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table"
    for there in (b"", b"head\nother\n"):
        path.write_bytes(there)
        with pytest.raises(ValueError, match=f"table has {len(there)} bytes instead of 5"):
            files.append(path, b"row\n", 5)
        assert path.read_bytes() == there
