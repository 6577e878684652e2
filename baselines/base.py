"""What every method shares: hyper-parameters, the one training loop, and the server's weighted mean.

A method says what travels, what stays, what a step does and what the server does. As it stands here it is FedAvg.
The gradient of each step is clipped to the norm ``clip_norm``, the same for every method.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from fedml.core import ClientTrainer, ServerAggregator
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pfedpara.sharing import split_parameters
from pfedpara.streams import stream_state

EVALUATION_BATCH = 512  # samples

Params = dict[str, Tensor]
JudgedOn = Literal["received", "trained"]
"""The model that a client deploys: the newest that it can receive, perhaps adapted, or the one it trained last."""


class DivergedError(ArithmeticError):
    """Training produced a number that is not finite."""


def search(low: float, high: float, log: bool = True) -> dict[str, Any]:
    """Returns what a hyper-parameter's Field takes for it to be tuned from ``low`` to ``high``, on a log scale."""
    return {"json_schema_extra": {"search": {"low": low, "high": high, "log": log}}}


class Hyper(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Hyper-parameters are checked where they are made: unknown names, types and ranges.

    Those with ``search`` are tuned by benchmarks/tune.py.
    """

    lr: float = Field(0.1, gt=0, description="η, the clients' learning rate", **search(0.03, 3))
    lr_decay: float = Field(1.0, gt=0, le=1, description="factor on η after each round")
    epochs: int = Field(5, ge=1, description="E, local epochs a round")
    batch_size: int = Field(32, ge=1, description="B, samples a local step")
    clip_norm: float = Field(1.0, ge=0, description="largest Euclidean norm of a step's gradient; 0 does not clip")


@torch.no_grad()
def evaluate(model: nn.Module, data: TensorDataset) -> dict[str, float]:
    """Returns FedML's metrics of ``model`` on ``data``: ``test_correct``, ``test_loss`` (a sum) and ``test_total``.

    Leaves weights, gradients, random streams and the training flag as they were.
    """
    training = model.training
    model.eval()
    correct, loss = 0, 0.0
    for x, y in zip(*(tensor.split(EVALUATION_BATCH) for tensor in data.tensors), strict=True):
        logits = model(x)  # (B, classes)
        correct += int((logits.argmax(dim=1) == y).sum())
        loss += F.cross_entropy(logits, y, reduction="sum").item()
    model.train(training)
    return {"test_correct": correct, "test_loss": loss, "test_total": len(data)}


def all_finite(tensor: Tensor) -> bool:
    """Whether every number is finite. Their sum is 20 times as quick to look at; it may overflow, but hides none."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def copy_into(parameters: Mapping[str, Tensor], values: Params) -> None:
    """Copies ``values`` into ``parameters``. Raises ValueError where names or shapes differ."""
    if parameters.keys() != values.keys():
        raise ValueError(f"expected the tensors {sorted(parameters)}, got {sorted(values)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != values[name].shape:
                raise ValueError(f"{name}: expected shape {tuple(parameter.shape)}, got {tuple(values[name].shape)}")
            parameter.copy_(values[name])


def copy_of(parameters: Mapping[str, Tensor]) -> Params:
    """Returns a copy of each tensor, so that no message or state aliases a model in training."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


class Aggregator(ServerAggregator):
    """The server's half: holds the shared tensors and averages what the clients send.

    ``args`` is the trainer's; FedML's ``client_num_in_total`` in it is the number of registered clients. The tensors in
    ``travelling`` go down, and those in a trainer's go up, both with the same names and shapes; a method whose messages
    hold more than the shared parameters adds to both. ``kept`` is what the server keeps beside that between rounds,
    such as moments of an optimizer.
    """

    def __init__(self, model: nn.Module, args: Any) -> None:
        super().__init__(model, args)
        self.shared, _ = split_parameters(model)
        self.travelling: Mapping[str, Tensor] = self.shared
        self.kept: Params = {}

    def get_model_params(self) -> Params:
        return copy_of(self.travelling)

    def set_model_params(self, model_parameters: Params) -> None:
        copy_into(self.travelling, model_parameters)

    def get_server_state(self) -> Params:
        """Returns what the server keeps between rounds beside what it sends."""
        return copy_of(self.kept)

    def set_server_state(self, state: Params) -> None:
        """Takes over what ``get_server_state`` returned. Raises ValueError where names or shapes differ."""
        copy_into(self.kept, state)

    def start_from(self, received: Params) -> None:
        """Makes the model what the clients received of it, where their moves began. What else the server has is exact.

        Under FedML's own server nothing is lost on the way, and nobody calls this.
        """
        copy_into(self.shared, {name: received[name] for name in self.shared})

    def aggregate(self, raw_client_model_or_grad_list: list[tuple[float, Params]]) -> Params:
        """Returns Σ_k (n_k / n) w_k, added in the order of the list in float32."""
        n = sum(weight for weight, _ in raw_client_model_or_grad_list)
        total = {name: torch.zeros_like(tensor) for name, tensor in self.travelling.items()}
        for weight, params in raw_client_model_or_grad_list:
            for name, tensor in total.items():
                tensor.add_(params[name], alpha=weight / n)
        return total

    def test(self, test_data: TensorDataset, device: Any, args: Any) -> dict[str, float]:
        return evaluate(self.model, test_data)

    def test_all(self, train_data_local_dict: Any, test_data_local_dict: Any, device: Any, args: Any) -> bool:
        """Tells FedML's own server that nothing is left to test: each client judges its own model."""
        return True


class Trainer(ClientTrainer):
    """The client's half: one training loop, and what a client sends and keeps."""

    # The tensors that go to the server and those that the client keeps between rounds are in ``travelling`` and
    # ``kept``: the shared and the private parameters, to which a method adds what else it sends or keeps.

    hyper_class: ClassVar[type[Hyper]] = Hyper
    aggregator_class: ClassVar[type[Aggregator]] = Aggregator
    parameterization: ClassVar[str] = "dense"
    judged_on: ClassVar[JudgedOn] = "received"

    def __init__(self, model: nn.Module, args: Any) -> None:
        """``args`` is FedML's namespace; it carries ``random_seed``, ``round_idx`` and the fields of ``Hyper``."""
        super().__init__(model, args)
        self.hyper = self.hyper_class(
            **{name: getattr(args, name) for name in self.hyper_class.model_fields if hasattr(args, name)}
        )
        self.personalize(model)
        self.shared, self.private = split_parameters(model)
        self.travelling: Mapping[str, Tensor] = self.shared
        self.kept: Mapping[str, Tensor] = self.private
        self.differences: Collection[str] = ()  # those in ``travelling`` that go up as changes, not as new values
        self.trained = list(model.parameters())  # what a step changes

    def personalize(self, model: nn.Module) -> None:
        """Changes the fresh ``model`` in place, so that its modules declare what stays private. FedAvg shares all."""

    def check_client(self, samples: int) -> None:
        """Raises ValueError where a client with so many training samples is too small for the method."""

    def get_model_params(self) -> Params:
        return copy_of(self.travelling)

    def set_model_params(self, model_parameters: Params) -> None:
        copy_into(self.travelling, model_parameters)

    def settle(self, arrived: Params) -> None:
        """Brings what the client keeps into line with what the server reads of the message, ``arrived``.

        Quantizing makes the two differ. FedAvg keeps nothing that follows from what it sends.
        """

    def get_private_state(self) -> Params:
        """Returns everything this client keeps between rounds."""
        return copy_of(self.kept)

    def set_private_state(self, state: Params) -> None:
        copy_into(self.kept, state)

    def train(self, train_data: TensorDataset, device: Any, args: Any) -> None:
        """Runs E local epochs on ``train_data``, a pair of inputs (n, …) and labels (n,).

        Raises DivergedError where the loss or a weight is no longer finite.
        """
        self.begin_stream("training", args)
        self.run_epochs(train_data, self.hyper.epochs, self.learning_rate())

    def begin_stream(self, purpose: str, args: Any) -> None:
        """Sets torch's random numbers to this client's in the round that ``args`` tells, whichever process trains it.

        They are all drawn on the CPU.
        """
        torch.set_rng_state(stream_state(purpose, args.random_seed, self.id, args.round_idx))

    def run_epochs(self, train_data: TensorDataset, epochs: int, lr: float) -> None:
        """Takes a step on each batch of ``epochs`` shuffles of ``train_data``, with batches from torch's stream."""
        x, y = train_data.tensors
        self.model.train()
        for _ in range(epochs):
            loss = torch.zeros((), device=y.device)
            for batch in torch.randperm(len(y)).split(self.samples_per_step):
                loss += self.step(x[batch], y[batch], lr)
            if not math.isfinite(loss):
                raise DivergedError(f"the training loss is {loss.item()} at learning rate {lr:g}")
        self.check_finite(lr)

    def check_finite(self, lr: float) -> None:
        """Raises DivergedError where a tensor of the model is not finite."""
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if not all_finite(tensor.detach()):
                raise DivergedError(f"a weight is not finite at learning rate {lr:g}")

    @property
    def samples_per_step(self) -> int:
        """How many samples a local step takes: B, or several times B where a method needs several batches for one."""
        return self.hyper.batch_size

    def learning_rate(self) -> float:
        """η in the round that ``args.round_idx`` tells."""
        return self.hyper.lr * self.hyper.lr_decay**self.args.round_idx

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        """One local step on a batch x (B, …), y (B,). Returns the batch's loss before the step, detached."""
        loss, gradients = self.gradients(x, y)
        with torch.no_grad():
            self.correct(gradients)
            for parameter, gradient in zip(self.trained, gradients, strict=True):
                parameter.add_(gradient, alpha=-lr)
        return loss

    def correct(self, gradients: tuple[Tensor, ...]) -> None:
        """Adds what a method adds to the loss's gradients, in place; one for each of ``self.trained``."""

    def of_shared(self, gradients: tuple[Tensor, ...]) -> Params:
        """Returns those of ``gradients`` that belong to the shared parameters, by name; no copies."""
        found = {id(parameter): gradient for parameter, gradient in zip(self.trained, gradients, strict=True)}
        return {name: found[id(parameter)] for name, parameter in self.shared.items() if id(parameter) in found}

    def gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the detached mean loss of a batch and its clipped gradients, one for each of ``self.trained``."""
        loss, gradients = self.loss_gradients(x, y)
        self.clip(gradients)
        return loss, gradients

    def loss_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the detached mean loss of a batch and its gradients, one for each of ``self.trained``."""
        loss = F.cross_entropy(self.model(x), y)
        return loss.detach(), torch.autograd.grad(loss, self.trained)

    def clip(self, gradients: tuple[Tensor, ...]) -> None:
        """Scales ``gradients`` in place to the norm ``clip_norm`` where they are longer, all together."""
        if self.hyper.clip_norm:
            norm = math.hypot(*torch._foreach_norm(gradients))
            if norm > self.hyper.clip_norm:
                torch._foreach_mul_(gradients, self.hyper.clip_norm / norm)

    def deploy(self) -> None:
        """Turns the model, which holds what was received or trained last, into the one that this client would use.

        FedAvg uses it as it is. A method that adapts it first does so here, on ``self.local_train_dataset``, and
        changes nothing but the model's tensors. Raises DivergedError as ``train`` does.
        """

    @contextmanager
    def deployed(self) -> Iterator[nn.Module]:
        """Within the block ``self.model`` is what ``deploy`` makes of it; afterwards all is as it was."""
        before = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        try:
            with torch.random.fork_rng(devices=[]):
                self.begin_stream("deployment", self.args)
                self.deploy()
            yield self.model
        finally:
            self.model.load_state_dict(before)

    def test(self, test_data: TensorDataset, device: Any, args: Any) -> dict[str, float]:
        """Returns the metrics of ``evaluate`` for the model that this client would deploy."""
        with self.deployed() as model:
            return evaluate(model, test_data)
