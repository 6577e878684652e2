"""Keeps eleven ranks from importing what the MPI runtime never uses.

``import fedml`` loads its cloud agent, and through it wandb, boto3, SQLAlchemy, FastAPI, Docker and torchvision's model
zoo: three quarters of a rank's start-up and a third of its memory. Deferring the ``__init__`` of three packages is
enough, and of boto3's, which TensorBoard imports wherever it is. Their submodules import as ever, and the first access
to a name of the package itself runs its ``__init__``, so nothing behaves differently; it only happens when somebody
needs it.
"""

import importlib
import multiprocessing
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

DEFERRED = frozenset({"boto3", "fedml", "fedml.core.mlops", "torchvision"})


class _DeferredLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        def load(attribute: str) -> Any:
            if attribute.startswith("__"):
                raise AttributeError(attribute)
            if PathFinder.find_spec(f"{module.__name__}.{attribute}", list(module.__path__)):
                return importlib.import_module(f"{module.__name__}.{attribute}")
            del module.__dict__["__getattr__"]
            self.loader.exec_module(module)
            return getattr(module, attribute)

        module.__dict__["__getattr__"] = load


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in DEFERRED:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _DeferredLoader(spec.loader)
        return spec


def defer_packages() -> None:
    """Defers the ``__init__`` of ``DEFERRED`` packages not imported yet. Call it before FedML's first import."""
    sys.meta_path.insert(0, _Finder())
    # FedML makes a lock as it is imported. By the methods that are the default on macOS and since Python 3.14 it has a
    # name: a process would watch over it, and warn at the end that no rank took it away.
    if multiprocessing.get_start_method(allow_none=True) is None:
        multiprocessing.set_start_method("fork")
