"""Networks as people write them, trained through the strategy, self-check and all, without a change to a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping, register_grad_sampler
from torch import Tensor, nn

from lightning_dp import PrivacyError
from tests.strategies.helpers import CLASSES, FEATURES, Tiny, fit, flat, strategy

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
]


class Recurrent(nn.Module):
    """Reads the features one after the other, time first, with dropout between its layers."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.body, self.head = kind(1, 5, 2, dropout=0.2), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.body(x.T.unsqueeze(-1))
        return self.head(output[-1])


class Attentive(nn.Module):
    """A transformer encoder with PyTorch's defaults: sequence first, dropout everywhere."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        self.batch_first, self.embed = batch_first, nn.Linear(1, 8)
        self.body, self.head = nn.TransformerEncoder(layer, 1, norm=nn.LayerNorm(8)), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.unsqueeze(-1))
        if self.batch_first:
            return self.head(self.body(tokens).mean(1))
        return self.head(self.body(tokens.transpose(0, 1)).mean(0))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "rnn": lambda: Recurrent(nn.RNN),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "encoder": lambda: Attentive(True),
    "encoder, sequence first": lambda: Attentive(False),
    "transposed convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, FEATURES)), nn.ConvTranspose1d(1, 2, 3, 2), nn.PReLU(), nn.Flatten(), nn.LazyLinear(CLASSES)
    ),
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(FEATURES, 8)), nn.Tanh(), nn.Linear(8, CLASSES)
    ),
}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_it_trains_as_it_is(name: str) -> None:
    torch.manual_seed(0)
    net = NETWORKS[name]()
    net(torch.randn(2, FEATURES))  # sizes of lazy layers
    module = Tiny(net=net)
    before, keys = flat(module), list(module.state_dict())
    fit(module, strategy(noise_multiplier=0.5), max_steps=3)
    assert not torch.equal(flat(module), before)
    assert list(module.state_dict()) == keys


# --- functions registered with Opacus -----------------------------------------------------------------------------


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


@pytest.fixture
def forget() -> Iterator[None]:
    yield
    for table in (GradSampleModule.GRAD_SAMPLERS, GradSampleModuleFastGradientClipping.GRAD_SAMPLERS):
        table.pop(Scale, None)


SAMPLERS: dict[str, Callable[[Any, list[Tensor], Tensor], Tensor]] = {
    "right": lambda m, a, b: a[0] * b,
    "twice too large": lambda m, a, b: 2 * a[0] * b,
    "spread over the batch": lambda m, a, b: (a[0] * b).mean(0).expand_as(b),
}


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_wrong_function_is_caught_by_the_self_check(name: str, forget: None) -> None:
    torch.manual_seed(0)
    register_grad_sampler(Scale)(lambda m, a, b: {m.gamma: SAMPLERS[name](m, a, b)})
    module = Tiny(net=nn.Sequential(Scale(), nn.Linear(FEATURES, CLASSES)))
    if name == "right":
        fit(module, strategy(), max_steps=2)
    else:
        with pytest.raises(PrivacyError, match="differs from plain PyTorch|other samples of its batch"):
            fit(module, strategy(), max_steps=2)
