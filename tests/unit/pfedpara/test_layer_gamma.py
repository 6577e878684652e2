"""γ of a layer's own."""

import pytest
from torch import nn

from benchmarks.federation.registry import find_method
from pfedpara.parameterize import parameterize
from pfedpara.sharing import split_parameters


def model() -> nn.Module:
    inner = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 64))
    return nn.Sequential(nn.Linear(784, 256), inner, nn.Linear(64, 10))


def ranks(layer_gamma: dict[str, float], **options: object) -> dict[str, int]:
    shared, _ = split_parameters(parameterize(model(), "pfedpara", 0.5, layer_gamma=layer_gamma, **options))  # type: ignore[arg-type]
    return {
        name.split(".parametrizations")[0]: tensor.shape[1] for name, tensor in shared.items() if "original0" in name
    }


def test_a_layer_s_own_gamma_sets_its_rank_and_an_inner_name_wins() -> None:
    """r_min = ⌈√min(m, n)⌉ and r_max = mn / 2(m + n): 16 and 96.5 of the first, 16 and 64, 8 and 25.6, 4 and 4.3."""
    assert ranks({}) == {"0": 56, "1.0": 40, "1.1": 17, "2": 4}
    assert ranks({"0": 0.25, "1": 0, "1.0": 0.75}) == {"0": 36, "1.0": 52, "1.1": 8, "2": 4}


def test_a_name_that_has_no_factors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer_gamma names 'head', which is no module of the model .* 1.0, 1.1, 2"):
        ranks({"head": 1})
    with pytest.raises(ValueError, match="layer_gamma names '2', which stays dense; leave it out"):
        ranks({"2": 1}, dense=["2"])
    with pytest.raises(ValueError, match=r"gamma is 1\.5; it must be within"):
        ranks({"0": 1.5})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0", "'0' is not a module and its γ, such as hidden:0.25"),
        (":0.5", "':0.5' is not a module and its γ"),
        ("0:2", "γ of 0 must be within"),
        ("0:nan", "γ of 0 must be within"),
        ("0:x+1:0.5", "'0:x' is not a module and its γ"),
    ],
)
def test_a_mistake_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        find_method("pfedpara").build(model(), layer_gamma=text)


def test_what_travels_follows() -> None:
    """Rank 36 of the first layer and 4 of the last: 36 (256 + 784) + 4 (10 + 256), and both biases."""
    plain = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    trainer = find_method("pfedpara").build(plain, layer_gamma="0:0.25")
    sent = sum(tensor.numel() for tensor in trainer.get_model_params().values())
    assert sent == 36 * 1040 + 4 * 266 + 256 + 10
