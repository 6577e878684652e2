"""Which tensors of a model travel and which never leave the client.

The tensors of a model are its parameters and its floating-point buffers, such as the running statistics of BatchNorm.
A module declares, in an attribute ``private_parameters``, the names of those of its *direct* tensors that stay;
everything else is shared, and averaged by the server. Nothing is decided by what a tensor happens to be called.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

Layer = tuple[nn.Module, ...]  # a module, and those that hold the factors of its weights


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters and floating-point buffers that ``module`` itself holds, by name.

    Integer buffers are none of its state: BatchNorm counts its batches in one, which nothing depends on.
    """
    buffers = {name: b for name, b in module.named_buffers(recurse=False) if b.is_floating_point()}
    return dict(module.named_parameters(recurse=False)) | buffers


def layers(model: nn.Module) -> list[Layer]:
    """Returns the layers of ``model``, in its own order: each module that holds tensors of its own.

    A layer with a factored weight is one layer, with all factors: they are in modules of their own, which come with it.
    """
    found: list[Layer] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if module in inside:
            continue
        factors = module.parametrizations.modules() if parametrize.is_parametrized(module) else ()  # type: ignore[union-attr]
        layer = (module, *factors)
        inside.update(layer)
        if any(own_tensors(part) for part in layer):
            found.append(layer)
    return found


def split_parameters(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the shared and the private tensors of ``model``, by qualified name, in the model's own order.

    Raises ValueError where a module declares a tensor that it does not have, or where BatchNorm averages its statistics
    over all batches (``momentum=None``): by a count that is no part of a client's state.
    """
    shared: dict[str, Tensor] = {}
    private: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        own = own_tensors(module)
        if isinstance(module, _NormBase) and module.track_running_stats and module.momentum is None:
            raise ValueError(f"layer {prefix!r} averages its statistics over all batches; give it a momentum")
        declared = frozenset(getattr(module, "private_parameters", ()))
        if unknown := declared - own.keys():
            raise ValueError(
                f"module {prefix!r} declares the private parameter {min(unknown)!r}, which it does not have"
            )
        for name, tensor in own.items():
            group = private if name in declared else shared
            group[f"{prefix}.{name}" if prefix else name] = tensor
    return shared, private


def learned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns those of ``tensors`` that gradients change: parameters, no running statistics.

    An optimizer acts on these alone; running statistics are averaged, whatever the method.
    """
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}


def keep_private(modules: Iterable[nn.Module]) -> None:
    """Declares every tensor that one of ``modules`` itself holds private."""
    for module in modules:
        module.private_parameters = tuple(own_tensors(module))  # type: ignore[assignment]
