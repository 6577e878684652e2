"""What every method shares: hyper-parameters, the one training loop, and the server's weighted mean.

A method says what travels, what stays, what a step does and what the server does. As it stands here it is FedAvg.
The gradient of each step is clipped to the norm ``clip_norm``, the same for every method.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.adapter import FedMLTrainer, RoundContext
from baselines.aggregator import Aggregator
from baselines.augment import crop_and_flip
from baselines.hyper import Hyper, search
from baselines.local_optimizer import LocalOptimizer
from baselines.tensors import Params, all_finite, copy_into, copy_of
from pfedpara.sharing import split_parameters
from pfedpara.streams import stream_state

__all__ = [
    "Aggregator",
    "DivergedError",
    "Hyper",
    "Params",
    "Trainer",
    "Work",
    "all_finite",
    "copy_into",
    "copy_of",
    "search",
]

Work = dict[str, tuple[int, int]]
"""How many gradients were taken, of a batch's loss and of how many samples in all, by the numbers of the model's
parameters that they are of."""
JudgedOn = Literal["received", "trained"]
"""The model that a client deploys: the newest that it can receive, perhaps adapted, or the one it trained last."""


class DivergedError(ArithmeticError):
    """Training produced a number that is not finite."""


def clip_there(gradients: tuple[Tensor, ...], norms: Sequence[Tensor], longest: float) -> None:
    """Scales ``gradients`` in place to the norm ``longest`` where they are longer, on their device.

    A number brought to the CPU would have each step wait for the device. ``norms``: of each gradient.
    """
    factor = (longest / torch.stack(list(norms)).norm()).clamp(max=1)
    torch._foreach_mul_(gradients, factor)


class Trainer(FedMLTrainer):
    """The client's half: one training loop, and what a client sends and keeps."""

    # The tensors that go to the server and those that the client keeps between rounds are in ``travelling`` and
    # ``private_state``: the shared and the private parameters, to which a method adds what else it sends or keeps.
    # The state of its optimizers is apart: it is kept where the user asks for it.

    hyper_class: ClassVar[type[Hyper]] = Hyper
    aggregator_class: ClassVar[type[Aggregator]] = Aggregator
    adds_up: ClassVar[bool] = False  # whether clients add up what they receive, which rounding would let drift
    pools: ClassVar[bool] = False  # whether one client trains on the samples of all

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        """``hyper`` is of ``hyper_class``. Raises ValueError where the method does not suit the model."""
        super().__init__(model)
        self.hyper = hyper
        self.declare_private(model)
        self.shared, self.private = split_parameters(model)
        self.travelling: Mapping[str, Tensor] = self.shared
        self.private_state: Mapping[str, Tensor] = self.private
        self.differences: Collection[str] = ()  # those that go up as changes, or are no newer values of what came
        self.addressed: Collection[str] = ()  # those in ``travelling`` of which the server sends each client its own
        self.marks: Mapping[str, str] = {}  # of what goes up in part: by the name of its marks, 0 or 1, its name
        self.feedback: Params = {}  # what messages have left out of some in ``travelling`` so far, by their names
        self.trainable = list(model.parameters())  # what a step changes
        self.work: Work = {}
        self.counted: tuple[list[nn.Parameter], str] = ([], "")  # what ``count`` last saw, and its key
        self.private_rate = 1.0  # of the private parameters, in parts of η
        self.private_from = 0  # the round from which they learn at all
        self.slowed: set[int] = set()  # those that learn at another rate, by id
        self.round = 0  # of what is trained or deployed
        self.optimizers: dict[str, LocalOptimizer] = {}  # a method with a second model has one for that as well
        self.optimizer = self.add_optimizer("shared", dict(model.named_parameters()))

    def add_optimizer(self, owner: str, parameters: Mapping[str, Tensor]) -> LocalOptimizer:
        """Returns an optimizer as the user chose it, which remembers its own moments of ``parameters``."""
        self.optimizers[owner] = LocalOptimizer(self.hyper.optimizer, self.hyper.weight_decay, parameters)
        return self.optimizers[owner]

    def make_aggregator(self, clients: int) -> Aggregator:
        """Returns the server's half for so many registered clients, on the same model."""
        return self.aggregator_class(self.model, self.hyper, clients)

    @property
    def judged_on(self) -> JudgedOn:
        """FedAvg deploys what a client receives; where weights have private parts, what it trained last (pFedPara).

        A method that makes the clients' models differ by itself says which, for any weights.
        """
        return "trained" if self.private else "received"

    def declare_private(self, model: nn.Module) -> None:
        """Lets the modules of ``model`` declare what stays private, beside what they do anyhow. FedAvg adds none."""

    def check_client(self, samples: int) -> None:
        """Raises ValueError where a client with so many training samples is too small for the method."""

    def get_model_params(self) -> Params:
        return copy_of(self.travelling)

    def set_model_params(self, model_parameters: Params) -> None:
        copy_into(self.travelling, model_parameters)

    def changing(self, round: int) -> Mapping[str, Tensor]:
        """Returns what clients send in that round, from 0 on: those in ``travelling`` that they train, FedAvg's all.

        A method may add what goes up alone, named in ``differences``.
        """
        return self.travelling

    def parts(self, round: int) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Returns those in ``travelling`` that changed in the round before that one, and those that did not.

        A client that took part then has the latter. What the first round begins with has all changed.
        """
        changed = self.changing(round - 1) if round else self.travelling
        return changed, {name: tensor for name, tensor in self.travelling.items() if name not in changed}

    def settle(self, arrived: Params) -> None:
        """Brings what the client keeps into line with what the server reads of the message, ``arrived``.

        Quantizing makes the two differ. FedAvg keeps nothing that follows from what it sends.
        """

    def get_private_state(self) -> Params:
        """Returns everything this client keeps between rounds."""
        return copy_of(self.kept)

    def set_private_state(self, state: Params) -> None:
        copy_into(self.kept, state)

    @property
    def kept(self) -> Mapping[str, Tensor]:
        """What a client keeps between rounds, no copies: its ``private_state``, its ``feedback``, and its optimizers'
        state where it should.
        """
        waiting = {f"feedback.{name}": tensor for name, tensor in self.feedback.items()}
        return {**self.private_state, **waiting, **self.kept_moments}

    @property
    def kept_moments(self) -> Params:
        return {
            f"optimizer.{owner}.{name}": tensor
            for owner, optimizer in self.optimizers.items()
            if self.hyper.keep_optimizer
            for name, tensor in optimizer.state.items()
        }

    def forget_moments(self) -> None:
        """Lets every optimizer start afresh."""
        for optimizer in self.optimizers.values():
            optimizer.forget()

    def fit(self, data: TensorDataset, context: RoundContext) -> None:
        """Runs E local epochs on ``data``, a pair of inputs (n, …) and labels (n,).

        All random numbers are drawn on the CPU, from the client's stream of this round, whichever process trains it.
        Raises DivergedError where the loss or a weight is no longer finite.
        """
        self.round = context.round
        torch.set_rng_state(stream_state("training", *context))
        if not self.hyper.keep_optimizer:
            self.forget_moments()
        self.run_epochs(data, self.hyper.epochs, self.learning_rate(context))

    def run_epochs(self, data: TensorDataset, epochs: int, lr: float) -> None:
        """Takes a step on each batch of ``epochs`` shuffles of ``data``, with batches from torch's stream."""
        x, y = data.tensors
        self.model.train()
        for _ in range(epochs):
            loss = torch.zeros((), device=y.device)
            for batch in torch.randperm(len(y)).to(y.device).split(self.samples_per_step):
                inputs = crop_and_flip(x[batch]) if self.hyper.augment else x[batch]
                loss += self.step(inputs, y[batch], lr)
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

    def learning_rate(self, context: RoundContext) -> float:
        """η in that round."""
        return self.hyper.lr * self.hyper.lr_decay**context.round

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        """One local step on a batch x (B, …), y (B,). Returns the batch's loss before the step, detached."""
        loss, gradients = self.gradients(x, y)
        with torch.no_grad():
            self.correct(gradients)
            if self.slowed:
                for parameter, gradient in zip(self.trainable, gradients, strict=True):
                    if id(parameter) in self.slowed:
                        gradient.mul_(self.private_rate if self.round >= self.private_from else 0.0)
        self.optimizer.step(self.trainable, gradients, lr)
        return loss

    def slow_down_private(self, rate: float, start: int = 0) -> None:
        """Makes the private parameters learn at ``rate`` times η, and from round ``start`` on alone.

        Raises ValueError where steps are not plain SGD's.
        """
        name = "private_lr" if rate != 1 else "private_from" if start else ""
        if name and type(self).step is not Trainer.step:
            raise ValueError(f"{name}: the method has a step of its own; take fedavg or fedper")
        if name and self.hyper.optimizer != "sgd":
            raise ValueError(f"{name} scales the steps of --optimizer sgd alone, not of {self.hyper.optimizer}")
        self.private_rate, self.private_from = rate, start
        self.slowed = {id(tensor) for tensor in self.private.values()} if name else set()

    def correct(self, gradients: tuple[Tensor, ...]) -> None:
        """Adds what a method adds to the loss's gradients, in place; one for each of ``self.trainable``."""

    def of_shared(self, gradients: tuple[Tensor, ...]) -> Params:
        """Returns those of ``gradients`` that belong to the shared parameters, by name; no copies."""
        found = {id(parameter): gradient for parameter, gradient in zip(self.trainable, gradients, strict=True)}
        return {name: found[id(parameter)] for name, parameter in self.shared.items() if id(parameter) in found}

    def gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the detached mean loss of a batch and its clipped gradients, one for each of ``self.trainable``."""
        loss, gradients = self.loss_gradients(x, y)
        self.clip(gradients)
        return loss, gradients

    def loss_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the detached mean loss of a batch and its gradients, one for each of ``self.trainable``."""
        self.count(len(y))
        loss = F.cross_entropy(self.model(x), y)
        return loss.detach(), torch.autograd.grad(loss, self.trainable)

    def count(self, samples: int) -> None:
        """Adds a gradient for ``self.trainable`` on so many samples to ``self.work``."""
        if self.counted[0] is not self.trainable:
            chosen = set(map(id, self.trainable))
            numbers = (str(number) for number, each in enumerate(self.model.parameters()) if id(each) in chosen)
            self.counted = self.trainable, " ".join(numbers)
        key = self.counted[1]
        gradients, so_far = self.work.get(key, (0, 0))
        self.work[key] = gradients + 1, so_far + samples

    def take_work(self) -> Work:
        """Returns what has been computed since the last call."""
        taken, self.work = self.work, {}
        return taken

    def clip(self, gradients: tuple[Tensor, ...]) -> None:
        """Scales ``gradients`` in place to the norm ``clip_norm`` where they are longer, all together."""
        if not self.hyper.clip_norm:
            return
        norms = torch._foreach_norm(gradients)
        if gradients[0].device.type != "cpu":
            clip_there(gradients, norms, self.hyper.clip_norm)
        elif (norm := math.hypot(*norms)) > self.hyper.clip_norm:
            torch._foreach_mul_(gradients, self.hyper.clip_norm / norm)

    def deploy(self, data: TensorDataset, context: RoundContext) -> None:
        """Turns the model, which holds what was received or trained last, into the one that this client would use.

        FedAvg uses it as it is. A method that adapts it first does so here, on the client's training ``data``, and
        changes nothing but the model's tensors. Its optimizer starts afresh. Raises DivergedError as ``fit`` does.
        """

    @contextmanager
    def joined(self, data: TensorDataset, context: RoundContext) -> Iterator[nn.Module]:
        """As ``deployed``, for a client that never took part and has just received the shared tensors.

        It first takes the round of ``context`` where it is judged on what it trains or has private tensors of a model.
        Where it is judged on what it receives, only what it keeps is left of that.
        """
        received = copy_of(self.travelling)
        if self.judged_on == "trained" or self.private:
            self.fit(data, context)
        if self.judged_on == "received":
            self.set_model_params(received)
        with self.deployed(data, context) as model:
            yield model

    @contextmanager
    def deployed(self, data: TensorDataset, context: RoundContext) -> Iterator[nn.Module]:
        """Within the block ``self.model`` is what ``deploy`` makes of it; afterwards all is as it was."""
        self.round = context.round
        before = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        moments = copy_of(self.kept_moments)
        self.forget_moments()
        try:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(stream_state("deployment", *context))
                self.deploy(data, context)
            yield self.model
        finally:
            self.model.load_state_dict(before)
            copy_into(self.kept_moments, moments)
