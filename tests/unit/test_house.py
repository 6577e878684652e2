"""How the house is built: what a reader may rely on in every file."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support import ROOT

CLASSES = {
    f"{path.stem}.{node.name}": node
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.ClassDef)
}


def name_of(node: ast.expr) -> str:
    """The last part of a name such as ``dataclasses.dataclass``, called or not."""
    return ast.unparse(node).partition("(")[0].rpartition(".")[2]


def assigned_to_self(function: ast.AST) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def born(tree: ast.ClassDef) -> set[str]:
    """The attributes that an instance has from the start: of ``__init__``, of the class with a value, and of fields."""
    bases = {name_of(base) for base in tree.bases}
    fields = bool(bases & {"NamedTuple", "BaseModel"}) or any(map(name_of, tree.decorator_list))
    known = [each for each in CLASSES.values() if each.name in bases - {tree.name}]
    names = {name for base in known for name in born(base)}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names.update(name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name))
        elif isinstance(node, ast.AnnAssign) and (node.value or fields):
            names.add(ast.unparse(node.target))
        elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
            names.update(assigned_to_self(node))
    return names


@pytest.mark.parametrize("name", CLASSES)
def test_no_attribute_is_born_outside_init(name: str) -> None:
    assert set(assigned_to_self(CLASSES[name])) <= born(CLASSES[name])


def test_an_update_is_looked_at_for_finite_numbers_once_a_side() -> None:
    """By the trainer when it has trained, and by the server as it comes; then the new aggregate is, once."""
    files = [path for room in ("pfedpara", "baselines", "benchmarks") for path in (ROOT / room).rglob("*.py")]
    looking = {str(path.relative_to(ROOT)) for path in files if re.search(r"(?<!def )all_finite\b", path.read_text())}
    assert looking == {"baselines/base.py", "benchmarks/federation/updates.py"}


@pytest.mark.parametrize("call", ["pickle.load", "yaml.load(", "yaml.unsafe", " eval(", " exec(", "weights_only=False"])
def test_no_source_executes_what_a_file_says(call: str) -> None:
    rooms = ("benchmarks", "baselines", "pfedpara", "data_partitions")
    assert not [path for room in rooms for path in (ROOT / room).rglob("*.py") if call in path.read_text()]
