"""FedBN (Li, Jiang, Zhang, Kamp, Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization",
ICLR 2021, Algorithm 1).

FedAvg, but for the norm layers: their scale, shift and running statistics never leave the client; the server averages
everything else, weighted by samples. As in the authors' code, what is judged is the new aggregate with the client's
own norm layers. On GroupNorm, LayerNorm and the like, which have no statistics, scale and shift stay.

No deviation beyond the shared clipping of baselines/base.py.
"""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from baselines.base import Trainer
from pfedpara.sharing import keep_private, own_tensors

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)  # the first is that of BatchNorm and InstanceNorm


class FedBNTrainer(Trainer):
    """FedBN: all is shared but the norm layers, with their running statistics."""

    judged_on = "received"

    def declare_private(self, model: nn.Module) -> None:
        norms = [module for module in model.modules() if isinstance(module, NORMS) and own_tensors(module)]
        if not norms:
            raise ValueError("the model has no norm layer to keep private; take one that has, such as cnn-bn")
        keep_private(norms)
