"""FedAvg (McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
Algorithm 1).

Client:  w_k ← w − η ∇ℓ(w; b) for every batch b of E local epochs.   Server:  w ← Σ_k (n_k / n) w_k.
Deviation: the gradient of a step is clipped, as for every method (baselines/base.py).
"""

from baselines.base import Trainer


class FedAvgTrainer(Trainer):
    """FedAvg: one global model, averaged over the clients by their samples."""
