"""The models of the benchmark, from raw bytes to logits.

Every model takes the stored batch as it is, uint8 or float32, and its first layer makes numbers of it: images (B, H, W)
or (B, H, W, C) become float32 (B, C, H, W), (x − mean)/std per channel, bytes over 255; a row of features (B, F) is an
image of 1 × 1 with F channels; texts (B, T) of character ids are embedded.
Dense and convolutional layers start as He et al. (2015) propose, N(0, 2/fan_in) with zero biases; the LSTM and the
embedding as PyTorch's do. A factored layer takes over the mean square of the dense one it replaces, so both variants
of a model start with weights of equal size.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from benchmarks.federation.names import MODELS
from data_partitions import plugins


class Input(NamedTuple):
    words: str
    dimensions: dict[str, tuple[int, ...]]  # how many a sample's shape may have, by the data set's task


IMAGES = Input("images (H, W) or (H, W, C), or features (F,)", {"image": (2, 3), "tabular": (1,)})
TEXTS = Input("texts (T,)", {"text": (1,)})


class Model(NamedTuple):
    """``build`` is called with channels, height, width and classes of images, and returns named layers in their order;
    or with the classes of texts. Features are the channels of an image of 1 × 1.
    """

    build: Callable[..., nn.Module]
    takes: Input = IMAGES
    smallest: int = 1  # height and width

    def fits(self, input_shape: Sequence[int], task: str) -> bool:
        """Whether samples of that shape and task are its input."""
        if len(input_shape) not in self.takes.dimensions.get(task, ()) or min(input_shape) < 1:
            return False
        return task == "text" or min(_sizes(input_shape, task)[1:]) >= self.smallest


def build_model(
    name: str,
    input_shape: Sequence[int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    task: str = "image",
) -> nn.Module:
    """A freshly initialised model (from torch's global generator) for batches (B, *input_shape), uint8 or float32.

    ``input_shape`` is (H, W) or (H, W, C) for the ``task`` "image", (F,) for "tabular" and (T,) for "text"; ``mean``
    and ``std`` have one value per channel or feature, of bytes scaled to [0, 1], and texts ignore them. Raises
    ValueError where the name is unknown or the input does not fit the model.
    """
    if classes < 2:
        raise ValueError(f"classes is {classes}; a classifier needs at least 2")
    model, shape = find_model(name), tuple(input_shape)
    if not model.fits(shape, task):
        kind = {"text": "texts", "tabular": "features"}.get(task, "images")
        fitting = ", ".join(other for other in MODELS if find_model(other).fits(shape, task))
        wanted = model.takes.words
        if model.smallest > 1:
            wanted = f"images (H, W) or (H, W, C) of at least {model.smallest} × {model.smallest}"
        raise ValueError(f"{name} takes {wanted}, not {kind} of shape {shape}; take {fitting or 'other data'}")
    if model.takes is TEXTS:
        return _module(name, model.build, classes)
    channels, height, width = _sizes(shape, task)
    if not len(mean) == len(std) == channels or min(std) <= 0:
        raise ValueError(f"mean {mean} and std {std} must have one value for each of {channels} channels, std > 0")
    network = _module(name, model.build, channels, height, width, classes)
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    # Layers by their own names where it is nothing but their sequence; a model with a forward of its own is one.
    layers = dict(network.named_children()) if type(network).forward is nn.Sequential.forward else {"model": network}
    return nn.Sequential(OrderedDict(normalize=Normalize(mean, std), **layers))


def _sizes(input_shape: Sequence[int], task: str) -> tuple[int, int, int]:
    """Channels, height and width of a sample."""
    height, width, channels = (1, 1, *input_shape) if task == "tabular" else (*input_shape, 1)[:3]
    return channels, height, width


def find_model(name: str) -> Model:
    """Returns the model of that name, of MODELS or from outside this repository. Raises PluginError."""
    right = "a function of channels, height, width and classes, or a benchmarks.federation.models.Model"
    found = resolve_name(MODELS[name]) if name in MODELS else plugins.find("model", name, MODELS)
    if isinstance(found, Model):
        return found
    plugins.check_call("model", name, found, 4, right)
    return Model(found)


def _module(name: str, build: Callable[..., nn.Module], *arguments: int) -> nn.Module:
    model = build(*arguments)
    if not isinstance(model, nn.Module):
        raise plugins.wrong("model", name, build, f"it returned {model!r:.40}; a torch.nn.Module is right")
    return model


def check_logits(name: str, model: nn.Module, batch: Tensor, classes: int) -> None:
    """Raises PluginError unless the ``model`` of that name makes logits (B, classes) of a ``batch`` (B, …)."""
    build, shape, right = find_model(name).build, tuple(batch.shape), (len(batch), classes)
    training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(batch)
    except Exception as error:
        sentence = f"it fails on a batch of shape {shape}: {plugins.explain(error)}"
        raise plugins.wrong("model", name, build, sentence) from error
    model.train(training)
    if logits.shape != right:
        sentence = f"it makes {tuple(logits.shape)} of a batch of shape {shape}; logits of shape {right} are right"
        raise plugins.wrong("model", name, build, sentence)


class Normalize(nn.Module):
    """Images (B, H, W) or (B, H, W, C), or features (B, F), to float32 (B, C, H, W): (x − mean)/std per channel.

    Bytes are divided by 255 first, and features become channels of 1 × 1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Plain constants: neither parameters, which would be trained, nor floating-point buffers, which would travel.
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() == 2:
            x = images[:, :, None, None]
        else:
            x = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)  # (B, C, H, W)
        mean, std = (x.new_tensor(values, dtype=torch.float32)[:, None, None] for values in (self.mean, self.std))
        return ((x / 255 if x.dtype == torch.uint8 else x) - mean) / std  # (B, C, H, W)

    def extra_repr(self) -> str:
        return f"mean={self.mean}, std={self.std}"


def mlp(channels: int, height: int, width: int, classes: int) -> nn.Sequential:
    """One hidden layer of 256, 784-256-10 on MNIST: the two layers of FedPara's personalization experiments."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            hidden=nn.Linear(channels * height * width, 256),
            relu=nn.ReLU(),
            classifier=nn.Linear(256, classes),
        )
    )


def cnn(channels: int, height: int, width: int, classes: int) -> nn.Sequential:
    """Two 5×5 convolutions of 32 and 64 channels and a hidden layer of 512 (McMahan et al., AISTATS 2017)."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 32, 5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 5, padding=2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            hidden=nn.Linear(64 * (height // 4) * (width // 4), 512),
            relu3=nn.ReLU(),
            classifier=nn.Linear(512, classes),
        )
    )


def cnn_bn(channels: int, height: int, width: int, classes: int) -> nn.Sequential:
    """``cnn`` with BatchNorm after each convolution, whose running statistics clients keep (FedBN) or share."""
    model = cnn(channels, height, width, classes)
    pairs: OrderedDict[str, nn.Module] = OrderedDict()
    for name, module in model.named_children():
        pairs[name] = module
        if isinstance(module, nn.Conv2d):
            module.register_parameter("bias", None)  # the norm has one
            pairs[f"norm{name.removeprefix('conv')}"] = nn.BatchNorm2d(module.out_channels)
    return nn.Sequential(pairs)


def vgg16(channels: int, height: int, width: int, classes: int) -> nn.Sequential:
    """VGG16 for 32×32 images with GroupNorm, 15.25 M parameters for 10 classes.

    FedPara's 1.55 M at γ = 0.1 (and 4.53 M at 0.4 for 100 classes) are with the three dense layers of ``classifier``
    left dense.
    """
    features: list[nn.Module] = []
    for depth, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            features += [nn.Conv2d(channels, depth, 3, padding=1), nn.GroupNorm(32, depth), nn.ReLU()]
            channels = depth
        features.append(nn.MaxPool2d(2))
    head = [nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, classes)]
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*features),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Sequential(*head),
        )
    )


def resnet18(channels: int, height: int, width: int, classes: int) -> nn.Sequential:
    """ResNet18 for small images (a 3×3 stem, no pooling; He et al., CVPR 2016) with GroupNorm."""
    blocks: list[nn.Module] = []
    previous = 64
    for depth, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [ResidualBlock(previous, depth, stride), ResidualBlock(depth, depth, 1)]
        previous = depth
    return nn.Sequential(
        OrderedDict(
            stem=_conv_norm(channels, 64, 3, 1),
            relu=nn.ReLU(),
            blocks=nn.Sequential(*blocks),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(512, classes),
        )
    )


class ResidualBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)), (B, I, H, W) to (B, O, H/stride, W/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_norm(inputs, outputs, 3, stride)
        self.second = _conv_norm(outputs, outputs, 3, 1)
        self.shortcut = nn.Identity() if inputs == outputs else _conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.second(relu(self.first(x))) + self.shortcut(x))


class CharacterLSTM(nn.Module):
    """Logits (B, classes) of the character after the text (B, T): an embedding of 8, two LSTM layers of 256.

    The Shakespeare model of McMahan et al. (AISTATS 2017); the alphabet has ``classes`` characters.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, 8)
        self.lstm = nn.LSTM(8, 256, num_layers=2, batch_first=True)
        self.classifier = nn.Linear(256, classes)

    def forward(self, text: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.embedding(text.int()))  # (B, T, 256)
        return self.classifier(outputs[:, -1])  # (B, classes)


CNN = Model(cnn, smallest=4)
CNN_BN = Model(cnn_bn, smallest=4)
VGG16 = Model(vgg16, smallest=32)
RESNET18 = Model(resnet18, smallest=8)
LSTM = Model(CharacterLSTM, TEXTS)


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(32, outputs))
