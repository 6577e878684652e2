"""FedPAC (Xu, Tong, Huang, "Personalized Federated Learning with Feature Alignment and Classifier Collaboration",
ICLR 2023, Algorithm 1): a shared extractor, aligned by classes, under heads that are combined for each client.

Client i, with the extractor φ, the classes' centroids c_k and its own head θ_i as they came, and features f of size d:
    h_ik ← n_ik / n_i · mean of f(x) with y = k,   V_i ← (mean ‖f(x)‖² − Σ_k ‖h_ik‖²) / n_i
    θ_i by an epoch of SGD with φ fixed, then φ_i by E epochs with θ_i fixed on  ℓ + λ · mean (f(x) − c_y)²
where c_k is the client's own mean, by φ, of a class that nobody sent; the first round has no second term.
Up go φ_i and θ_i, h_i, V_i, the n_ik, and ĉ_ik, the means of f by φ_i of each class.
Server, over the participants:
    φ ← Σ n_i φ_i / Σ n_i,   c_k ← Σ n_ik ĉ_ik / Σ n_ik
    θ_i ← Σ_j α_ij θ_j,  α_i ≥ 0 of sum 1 with the least  Σ_j α_ij² V_j + Σ_k ‖Σ_j α_ij (h_ik − h_jk)‖²
of which α below 0.001 are dropped. Who was absent keeps its head; all start with the same one.

Down go φ, c, which c_k there are, and θ_i to client i alone. The server holds all heads. As in the authors' code, what
is judged is the model that the client trained.
Deviations: one learning rate and plain SGD, where the authors' heads have a rate of their own; running statistics stand
still while h and ĉ are taken; heads with factors are combined factor by factor.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import scipy  # which imports its parts when they are needed
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.adapter import EVALUATION_BATCH
from baselines.base import Aggregator, Hyper, JudgedOn, Params, Trainer, copy_of, search
from pfedpara.sharing import layers

DROPPED = 1e-3  # what weight of a head is none
STATISTICS = ("own_centroids", "own_counts", "weighted_means", "variance")  # ĉ_i, n_i, h_i and V_i


class FedPacHyper(Hyper, frozen=True):
    lam: float = Field(1.0, ge=0, description="λ, weight of the features' distance to centroids", **search(0.1, 10))
    head_epochs: int = Field(1, ge=0, description="local epochs of the head before the E epochs of the extractor")


def centroids(head: nn.Linear) -> Params:
    """Returns what goes down beside the model: c (C, d), and 1 for each class that has one (C,)."""
    like = next(head.parameters())
    return {
        "centroids": like.new_zeros(head.out_features, head.in_features),
        "centroids_known": like.new_zeros(head.out_features),
    }


def of_head(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Returns those of ``tensors`` that the model's last layer holds."""
    inside = {id(tensor) for part in layers(model)[-1] for tensor in part.parameters(recurse=False)}
    return {name: tensor for name, tensor in tensors.items() if id(tensor) in inside}


def combine(h: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns α (m, m), a row for each of m clients, of their h (m, C·d) and V (m,), in float64.

    A quadratic program on the simplex, min αᵀPα, is one of least squares: for P = AᵀA it is the α in proportion to
    argmin_{β ≥ 0} ‖Aβ‖² + (Σ β − 1)².
    """
    products = np.stack([(one * h).sum(1) for one in h])  # (m, m)
    rows = []
    for i in range(len(h)):
        distances = products[i, i] - products[i, :, None] - products[None, i, :] + products  # (m, m)
        P = np.diag(v) + distances
        scale, vectors = np.linalg.eigh(P / max(P.diagonal().max(), np.finfo(float).tiny))
        A = np.sqrt(scale.clip(min=0))[:, None] * vectors.T
        beta, _ = scipy.optimize.nnls(np.vstack([A, np.ones(len(h))]), np.append(np.zeros(len(h)), 1))
        alpha = beta / beta.sum()
        alpha[(alpha <= DROPPED) & (alpha < alpha.max())] = 0
        rows.append(alpha / alpha.sum())
    return np.stack(rows)


class FedPacAggregator(Aggregator):
    """The mean of the extractors, the classes' centroids, and a head for each client."""

    needs_mean = True  # a head is combined of others, past any rule for the mean

    def __init__(self, model: nn.Module, hyper: Hyper, clients: int) -> None:
        super().__init__(model, hyper, clients)
        self.centroids = centroids(layers(model)[-1][0])  # type: ignore[arg-type]
        self.travelling = {**self.shared, **self.centroids}
        self.first = copy_of(of_head(self.shared, model))  # the head that all start with
        self.heads = {name: tensor.expand(clients, *tensor.shape).clone() for name, tensor in self.first.items()}
        self.noted: dict[int, Params] = {}  # what the round's participants sent of it
        self.server_state = {f"heads.{name}": tensor for name, tensor in self.heads.items()}

    def for_client(self, client: int) -> Params:
        return {name: heads[client] for name, heads in self.heads.items()} if client < self.clients else self.first

    def note(self, client: int, params: Params) -> None:
        self.noted[client] = copy_of({name: params[name] for name in (*self.heads, *STATISTICS)})

    @torch.no_grad()
    def of_mean(self, mean: Params, clients: int) -> Params:
        """Raises ValueError where nobody said whose the updates are."""
        noted, self.noted = self.noted, {}
        if len(noted) != clients:
            raise ValueError("FedPAC combines a head for each client, but whose updates these are is not known")
        sent = list(noted.values())
        h = np.stack([params["weighted_means"].double().cpu().numpy().ravel() for params in sent])  # (m, C·d)
        v = np.array([float(params["variance"]) for params in sent])  # (m,)
        if not (np.isfinite(h).all() and np.isfinite(v).all()):
            return mean  # which is not finite either
        for client, alpha in zip(noted, combine(h, v), strict=True):
            for name, heads in self.heads.items():
                heads[client] = sum(float(a) * params[name] for a, params in zip(alpha, sent, strict=True))
        total = torch.stack([params["own_counts"] for params in sent]).sum(dim=0)  # (C,)
        means = sum(params["own_counts"][:, None] * params["own_centroids"] for params in sent)  # (C, d)
        known = {"centroids": means / total[:, None].clamp(min=1), "centroids_known": (total > 0).to(total)}
        return {name: mean[name] for name in self.shared} | copy_of(self.first) | known


class FedPacTrainer(Trainer):
    """FedPAC: a shared extractor, aligned to centroids of the classes; the server combines a head for each client."""

    hyper_class = FedPacHyper
    aggregator_class = FedPacAggregator
    hyper: FedPacHyper
    judged_on: JudgedOn = "trained"

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        super().__init__(model, hyper)
        inside = of_head(dict(model.named_parameters()), model)
        self.of_head = [p for name, p in model.named_parameters() if name in inside]
        self.of_body = [p for name, p in model.named_parameters() if name not in inside]
        self.came = centroids(self.head)
        self.travelling = {**self.shared, **self.came}
        self.addressed = of_head(self.shared, model).keys()
        c, known = (torch.zeros_like(tensor) for tensor in self.came.values())
        self.statistics = dict(zip(STATISTICS, (c, known, torch.zeros_like(c), known.new_zeros(1)), strict=True))
        self.differences = STATISTICS
        self.target: Tensor | None = None  # (C, d), what the features of a class are drawn to
        self.trained = False

    def declare_private(self, model: nn.Module) -> None:
        """Raises ValueError where the last layer has no features as its input, or no other is before it."""
        head, others = layers(model)[-1][0], layers(model)[:-1]
        if not isinstance(head, nn.Linear):
            raise ValueError(f"the last layer is a {type(head).__name__}; take a model that ends in a Linear layer")
        if not others:
            raise ValueError("no layer is before the last one, the head; take a deeper model")
        self.head = head

    def changing(self, round: int) -> Mapping[str, Tensor]:
        return {**self.shared, **self.statistics}

    def parts(self, round: int) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        return self.travelling, {}

    def get_model_params(self) -> Params:
        """Returns what is to be sent after training; what came before that."""
        return copy_of(self.changing(0) if self.trained else self.travelling)

    def set_model_params(self, model_parameters: Params) -> None:
        super().set_model_params(model_parameters)
        self.trained = False

    def run_epochs(self, data: TensorDataset, epochs: int, lr: float) -> None:
        means, counts, square = self.describe(data)
        shares = counts / counts.sum()  # (C,)
        h = shares[:, None] * means
        self.statistics["weighted_means"].copy_(h)
        self.statistics["variance"].fill_((square - h.square().sum()) / counts.sum())
        self.statistics["own_counts"].copy_(counts)
        known = self.came["centroids_known"]
        self.trainable = self.of_head
        super().run_epochs(data, self.hyper.head_epochs, lr)
        self.trainable = self.of_body
        if known.any():
            self.target = torch.where(known[:, None] > 0, self.came["centroids"], means)
        try:
            super().run_epochs(data, epochs, lr)
        finally:
            self.target = None
        self.statistics["own_centroids"].copy_(self.describe(data)[0])
        self.trained = True

    def loss_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self.target is None:
            return super().loss_gradients(x, y)
        self.count(len(y))
        with self.features() as seen:
            loss = F.cross_entropy(self.model(x), y)
        loss = loss + self.hyper.lam * F.mse_loss(seen[0], self.target[y])
        return loss.detach(), torch.autograd.grad(loss, self.trainable)

    @contextmanager
    def features(self) -> Iterator[list[Tensor]]:
        """Yields the list to which each batch in the block adds what comes to the head (B, d)."""
        seen: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            yield seen
        finally:
            hook.remove()

    @torch.no_grad()
    def describe(self, data: TensorDataset) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the features' mean of each class (C, d), 0 without samples, its samples (C,), and the mean ‖f‖²."""
        x, y = data.tensors
        training = self.model.training
        self.model.eval()
        with self.features() as seen:
            for batch in x.split(EVALUATION_BATCH):
                self.model(batch)
        self.model.train(training)
        f = torch.cat(seen)  # (n, d)
        member = F.one_hot(y.long(), self.head.out_features).to(f)  # (n, C)
        counts = member.sum(dim=0)
        return member.T @ f / counts[:, None].clamp(min=1), counts, f.square().sum() / len(y)
