"""The models of the benchmark, from raw bytes to logits.

Every model takes the stored batch as it is, uint8, and its first layer makes numbers of it: images (B, H, W) or
(B, H, W, C) become float32 (B, C, H, W), (x/255 − mean)/std per channel; texts (B, T) of character ids are embedded.
Dense and convolutional layers start as He et al. (2015) propose, N(0, 2/fan_in) with zero biases; the LSTM and the
embedding as PyTorch's do. A factored layer takes over the mean square of the dense one it replaces, so both variants
of a model start with weights of equal size.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


class Input(NamedTuple):
    words: str
    dimensions: tuple[int, ...]  # how many a sample's shape may have


IMAGES, TEXTS = Input("images (H, W) or (H, W, C)", (2, 3)), Input("texts (T,)", (1,))


class Model(NamedTuple):
    """``build`` is called with channels, height, width and classes of images, and returns named layers in their order;
    or with the classes of texts.
    """

    build: Callable[..., nn.Module]
    takes: Input = IMAGES


def build_model(
    name: str, input_shape: Sequence[int], classes: int, mean: Sequence[float], std: Sequence[float]
) -> nn.Module:
    """A freshly initialised model (from torch's global generator) for uint8 batches (B, *input_shape).

    ``input_shape`` is (H, W) or (H, W, C) for images and (T,) for texts; ``mean`` and ``std`` have one value per
    channel, of pixels scaled to [0, 1], and texts ignore them. Raises ValueError where the name is unknown or the
    input does not fit the model.
    """
    if name not in MODELS:
        raise ValueError(f"model is {name!r}; it must be one of {', '.join(MODELS)}")
    if classes < 2:
        raise ValueError(f"classes is {classes}; a classifier needs at least 2")
    build, takes = MODELS[name]
    if len(input_shape) not in takes.dimensions or min(input_shape) < 1:
        raise ValueError(f"{name} takes {takes.words}, not an input of shape {tuple(input_shape)}")
    if takes is TEXTS:
        return build(classes)
    height, width, channels = (*input_shape, 1)[:3]
    if not len(mean) == len(std) == channels or min(std) <= 0:
        raise ValueError(f"mean {mean} and std {std} must have one value for each of {channels} channels, std > 0")
    model = build(channels, height, width, classes)
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return nn.Sequential(OrderedDict(normalize=Normalize(mean, std), **dict(model.named_children())))


class Normalize(nn.Module):
    """uint8 images (B, H, W) or (B, H, W, C) to float32 (B, C, H, W): (x/255 − mean)/std, constants per channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Plain constants: neither parameters, which would be trained, nor floating-point buffers, which would travel.
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, images: Tensor) -> Tensor:
        x = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)  # (B, C, H, W)
        mean, std = (x.new_tensor(values, dtype=torch.float32)[:, None, None] for values in (self.mean, self.std))
        return (x / 255 - mean) / std  # (B, C, H, W)

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
    _at_least("cnn", 4, height, width)
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
    _at_least("vgg16", 32, height, width)
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
    _at_least("resnet18", 8, height, width)
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


MODELS = {
    "mlp": Model(mlp),
    "cnn": Model(cnn),
    "cnn-bn": Model(cnn_bn),
    "vgg16": Model(vgg16),
    "resnet18": Model(resnet18),
    "lstm": Model(CharacterLSTM, TEXTS),
}


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(32, outputs))


def _at_least(name: str, size: int, height: int, width: int) -> None:
    if min(height, width) < size:
        raise ValueError(f"{name} needs images of at least {size} × {size}, not {height} × {width}")
