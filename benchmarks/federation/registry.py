"""The methods that the harness knows, by the name that ``--algo`` takes, each on the weights that it is asked for."""

from pkgutil import resolve_name

import torch

from baselines.base import Trainer
from baselines.fedavg import FedAvgTrainer
from benchmarks.federation import codec, names
from benchmarks.federation.models import build_model
from benchmarks.federation.settings import FACTORS, UNQUANTIZED, Settings
from data_partitions import Store, plugins
from pfedpara.streams import stream_state
from pfedpara.trainer import Method


def _method(found: Method | type[Trainer]) -> Method:
    """Returns a method, on dense weights where it has none of its own."""
    return found if isinstance(found, Method) else Method(found)


METHODS = {name: _method(resolve_name(place)) for name, place in names.METHODS.items()}
METHODS |= {factors: Method(FedAvgTrainer, factors) for factors in FACTORS}


def find_method(algo: str, parameterization: str | None = None) -> Method:
    """Returns the method of that name on weights of that ``parameterization``, by default its own.

    Raises PluginError where there is none of that name, and ValueError where it stands for FedAvg on other weights.
    """
    method = METHODS.get(algo) or _plugin(algo)
    if parameterization in (None, method.parameterization):
        return method
    if method.factors:
        raise ValueError(
            f"--parameterization: {algo} is on {method.parameterization} weights of its own; "
            f"take --algo fedavg for {parameterization} ones"
        )
    return method._replace(factors=parameterization)  # type: ignore[arg-type]


def _plugin(algo: str) -> Method:
    """Returns a method from outside this repository: a ``Trainer``, or a ``Method`` where it has weights of its own."""
    found = plugins.find("algo", algo, METHODS)
    if not isinstance(found, Method) and not (isinstance(found, type) and issubclass(found, Trainer)):
        raise plugins.wrong("algo", algo, found, f"{found!r:.60} is no method; a subclass of Trainer is right")
    return _method(found)


def build_trainer(settings: Settings, store: Store, device: str = "cpu") -> Trainer:
    """Returns the method's trainer on a fresh model, equal on every rank: the start depends on the seed alone.

    Raises ValueError where the method or its hyper-parameters do not suit the model or the data.
    """
    if settings.hyper.get("augment") and store.task != "image":
        raise ValueError(f"--augment crops and flips pictures, but {settings.dataset} holds {store.task}")
    torch.set_rng_state(stream_state("start", settings.seed))
    model = build_model(settings.model, store.input_shape, len(store.classes), store.mean, store.std, store.task)
    method = find_method(settings.algo, settings.parameterization)
    trainer = method.build(model.to(device), settings.dense, settings.alternate, **settings.hyper)
    if trainer.adds_up and settings.quantize_down != UNQUANTIZED:
        raise ValueError(
            "--quantize-down: clients add up what they receive, and rounding would let them drift; leave it out"
        )
    if trainer.marks and settings.uplink != UNQUANTIZED:
        raise ValueError("--quantize and --codec: clients leave numbers out of what they send already; leave it out")
    trainer.feedback = codec.feedback(trainer, settings.codec)
    return trainer
