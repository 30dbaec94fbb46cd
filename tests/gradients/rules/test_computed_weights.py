"""Weights that are computed from other parameters, and what repeats a part of the forward pass: checkpoints, in-place."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import LayerScale2d, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import Clipping, GradientEngine, UnitMap
from lightning_dp.gradients.contributions import Contribution
from lightning_dp.gradients.contributions.base import row_squares
from lightning_dp.gradients.contributions.routes import Route
from lightning_dp.gradients.memory import Memory
from lightning_dp.gradients.rules import LayerCall, find_rule, registry
from lightning_dp.gradients.rules.standardised import StandardisedWeight, standardised_conv_rule
from lightning_dp.models import StandardisedConv2d
from tests.gradients.rules.agreement import assert_agrees, row_counts, unit_losses, unit_maps

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")


def engine_of(module: nn.Module) -> GradientEngine:
    return GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "hook": nn.utils.weight_norm,
    "parametrization": nn.utils.parametrizations.weight_norm,
}
LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda width: nn.Linear(4, width),
    "conv1d": lambda width: nn.Conv1d(4, 2 * width, 3, padding=1, groups=2),
    "conv2d": lambda width: nn.Conv2d(4, width, 3, stride=2),
    "transposed": lambda width: nn.ConvTranspose1d(4, width, 3, stride=2),
}
SHAPES = {"linear": (4,), "conv1d": (4, 7), "conv2d": (4, 6, 5), "transposed": (4, 5)}


@pytest.mark.parametrize("norm", sorted(NORMS))
@settings(max_examples=25)
@given(data=st.data(), name=st.sampled_from(sorted(LAYERS)), units=unit_maps(), width=st.integers(1, 4))
def test_weight_normalised_layers_agree(norm: str, data: st.DataObject, name: str, units: UnitMap, width: int) -> None:
    layer = NORMS[norm](LAYERS[name](width))
    x = torch.randn(data.draw(row_counts(units)), *SHAPES[name])
    assert_agrees(nn.Sequential(layer, nn.Tanh()), lambda m: m(x), units)


@settings(max_examples=25)
@given(
    data=st.data(),
    kind=st.sampled_from([StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame]),
    units=unit_maps(),
    stride=st.integers(1, 2),
    groups=st.integers(1, 2),
)
def test_weight_standardised_convolutions_agree(
    data: st.DataObject, kind: type[nn.Conv2d], units: UnitMap, stride: int, groups: int
) -> None:
    module = nn.Sequential(
        kind(4, 6, 3, stride=stride, groups=groups), nn.ReLU(inplace=True), nn.Conv2d(6, 2, 1), LayerScale2d(2, 0.3)
    )
    x = torch.randn(data.draw(row_counts(units)), 4, 7, 8)
    assert_agrees(module, lambda m: m(x), units)


@settings(max_examples=25)
@given(
    data=st.data(),
    units=unit_maps(),
    stride=st.integers(1, 2),
    side=st.sampled_from([1, 3]),
    bias=st.booleans(),
    zero=st.booleans(),
)
def test_standardised_convolutions_with_gains_agree(
    data: st.DataObject, units: UnitMap, stride: int, side: int, bias: bool, zero: bool
) -> None:
    conv = StandardisedConv2d(4, 6, side, stride, padding=side // 2, bias=bias)
    with torch.no_grad():
        conv.gain.uniform_(-1, 2)
        if zero:  # outputs cannot be divided by it
            conv.gain[0] = 0
    x = torch.randn(data.draw(row_counts(units)), 4, 7, 8)
    assert_agrees(nn.Sequential(conv, nn.Tanh()), lambda m: m(x), units)


class Halved(StdConv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def test_the_rule_is_for_the_computations_that_it_was_written_for() -> None:
    for conv in (StandardisedConv2d(3, 4, 3), StdConv2d(3, 4, 3), ScaledStdConv2d(3, 4, 3)):
        assert find_rule(conv) is standardised_conv_rule
    for conv in (StdConv2dSame(3, 4, 3, stride=2), ScaledStdConv2dSame(3, 4, 3), Halved(3, 4, 3)):
        assert find_rule(conv) is None


def test_what_standardisation_takes_away_does_not_round_a_unit_to_nothing() -> None:
    """A gradient of the weight in use along the weight itself: nothing of it is left, but its rounding errors are summed."""
    torch.manual_seed(0)
    conv = StandardisedConv2d(2, 1, 3)
    rows = conv.weight.detach().flatten(1)
    normal = (rows - rows.mean(1, keepdim=True)) / rows.var(1, correction=0, keepdim=True).sqrt()
    x = 1e4 * (normal.view(1, 2, 3, 3) + 3)
    call = LayerCall(
        conv, "conv", (x,), {}, (torch.ones(1, 1, 1, 1),), UnitMap(1), frozenset({"weight"}), torch.float32
    )
    found = standardised_conv_rule(call)["weight"]
    (norm,) = found.squared_norms().sqrt()
    used = float(row_squares(found.used.all_units()).sqrt())  # the norm of what the rule adds up
    assert float(row_squares(found.all_units()).sqrt()) < 1e-4 * used
    assert norm > 0.02 * used


@pytest.mark.parametrize("left", [1.0, 0.3, 0.1, 1e-3])
@pytest.mark.parametrize("route", ["gram", "held", "streamed"])
def test_a_norm_that_is_a_difference_keeps_its_digits(left: float, route: Route) -> None:
    """Gradients mostly along what standardisation takes away, a share of them across: compared with float64."""
    torch.manual_seed(0)
    conv = StandardisedConv2d(8, 16, 3)
    rows = conv.weight.detach().flatten(1)
    normal = (rows - rows.mean(1, keepdim=True)) / rows.std(1, correction=0, keepdim=True)
    # One patch for each channel, at whose position only that channel has an output gradient.
    patches = 3 + 2 * normal.view(1, 16, 8, 3, 3) + left * torch.randn(5, 16, 8, 3, 3)
    x = torch.cat(list(patches.unbind(1)), -1)
    grad = torch.zeros(5, 16, 1, 46)
    grad[:, torch.arange(16), 0, 3 * torch.arange(16)] = torch.rand(5, 16) + 0.1
    found, truth = (weight_of(conv.to(dtype), x.to(dtype), grad.to(dtype)) for dtype in (torch.float32, torch.float64))
    memory = Memory(1 << 30)
    memory.begin(0)
    found.choose_route(memory)
    found.used.route = route
    norms = found.repaired(found.squared_norms())
    ratio = norms / row_squares(truth.all_units())
    assert bool((ratio > 1 - 1e-5).all())  # a norm that comes out small lets a unit through beyond the bound
    if left > 1e-2:  # smaller ones are below what the sum can resolve, and count for more
        assert bool((ratio < 1 + 1e-3).all())
    for values, exact in zip(found.sums_and_products(), truth.sums_and_products(), strict=True):
        assert torch.allclose(values.double(), exact, rtol=1e-5)


def weight_of(conv: StandardisedConv2d, x: Tensor, grad: Tensor) -> StandardisedWeight:
    call = LayerCall(
        conv, "conv", (x,), {}, (grad,), UnitMap(len(x)), frozenset({"weight"}), x.dtype, (conv(x).detach(),)
    )
    found = standardised_conv_rule(call)["weight"]
    assert isinstance(found, StandardisedWeight)
    return found


@pytest.mark.parametrize("change", ["nothing", "in place", "gain", "bias"])
def test_outputs_are_used_where_they_are_what_they_were(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept outputs spare a convolution; where they were changed, or do not tell, it is run again. Not held: as on a GPU."""
    torch.manual_seed(0)
    conv = StandardisedConv2d(3, 4, 3, bias=change == "bias")
    with torch.no_grad():
        conv.gain[0] = 0.0 if change == "gain" else 2.0
    module = nn.Sequential(conv, nn.ReLU(inplace=change == "in place"), nn.Flatten(), nn.Linear(4 * 16, 2))
    x = torch.randn(5, 3, 6, 6)
    seen: list[int] = []

    def spy(call: LayerCall) -> dict[str, Contribution]:
        seen.append(len(call.outputs))
        return standardised_conv_rule(call)

    entry = registry._RULES["lightning_dp.models.weight_standardised.StandardisedConv2d"]
    monkeypatch.setitem(
        registry._RULES, "lightning_dp.models.weight_standardised.StandardisedConv2d", replace(entry, rule=spy)
    )
    assert_agrees(module, lambda m: m(x), UnitMap(5))
    assert set(seen) == ({0} if change == "in place" else {1})


def test_a_weight_normalised_recurrent_layer_agrees() -> None:
    """The fused function reads a list in which the hook puts the computed weight."""
    torch.manual_seed(0)
    module, x = nn.LSTM(3, 4, batch_first=True), torch.randn(4, 5, 3)
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(module, "weight_hh_l0")
    assert_agrees(module, lambda m: m(x)[0], UnitMap(4))
    assert not any(torch._C._functorch.is_functorch_wrapped_tensor(w) for w in module._flat_weights)


def test_nothing_of_the_repetition_stays_on_the_module() -> None:
    """A hook computes the weight inside ``vmap``, a forward pass keeps a map of it: neither may stay."""

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            self.seen = (x * self.gamma).detach()
            if x.dim() == 2 and torch._C._functorch.is_functorch_wrapped_tensor(x):
                self.only_then = self.seen
            return x * self.gamma

    torch.manual_seed(0)
    with pytest.warns(FutureWarning):
        module = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 6)), Keeps())
    x = torch.randn(4, 6)
    with engine_of(module) as engine:
        engine.backward(unit_losses(module(x), UnitMap(4)).mean(), 4)
        assert torch.equal(module[1].seen, module[0](x) * module[1].gamma)
        assert not hasattr(module[1], "only_then")
        assert copy.deepcopy(module[1]).seen.shape == (4, 6)
        pickle.dumps(module[0].weight)
    module(x).square().mean().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_a_layer_that_changes_its_input_is_refused_by_name() -> None:
    module = nn.Sequential(nn.Conv2d(2, 2, 3), LayerScale2d(2, inplace=True))
    with engine_of(module) as engine, pytest.raises(PrivacyError, match=r"1 \(LayerScale2d\).*input in place"):
        engine.backward(module(torch.randn(4, 2, 5, 5)).square().mean(), 4)


def test_a_layer_that_raises_for_one_unit_is_refused_by_name() -> None:
    class Fussy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            return x.view(4, 6) * self.gamma

    module = nn.Sequential(Fussy())
    with engine_of(module) as engine, pytest.raises(PrivacyError, match=r"0 \(Fussy\).*RuntimeError: shape"):
        engine.backward(module(torch.randn(4, 6)).square().mean(), 4)


class Counted(nn.Module):
    """Returns whole numbers beside its output."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.argmax(1), x * self.gamma


def test_outputs_that_are_no_numbers_to_differentiate_do_not_shift_the_others() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    assert_agrees(Counted(), lambda m: m(x)[1], UnitMap(4))


# --- parts that run twice ---------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Convolutions with in-place activations, then attention and a recurrent layer, all with dropout."""

    def __init__(self, repeat: bool) -> None:
        super().__init__()
        self.repeat = repeat
        self.conv = nn.Sequential(
            nn.Conv1d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.ConvTranspose1d(8, 8, 3, padding=1),
            nn.PReLU(8), nn.Dropout(0.1),
        )  # fmt: skip
        self.attend = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.2, batch_first=True)
        self.read, self.head = nn.LSTM(8, 4, 2, batch_first=True, dropout=0.2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        def rest(h: Tensor) -> Tensor:
            return self.read(self.attend(h.mT))[0]

        if not self.repeat:
            return self.head(rest(self.conv(x)))
        h = checkpoint(self.conv, x, use_reentrant=False)
        return self.head(checkpoint(rest, h, use_reentrant=False))


@pytest.mark.parametrize("repeat", [False, True])
def test_checkpointed_layers_with_dropout_and_in_place_activations_agree(repeat: bool) -> None:
    """The rules draw masks again from the state of the first pass, and so does the checkpoint."""
    torch.manual_seed(0)
    module, x = Block(repeat), torch.randn(4, 3, 5)
    assert_agrees(module, lambda m: m(x), UnitMap(4))


def test_a_checkpoint_changes_nothing() -> None:
    torch.manual_seed(0)
    plain, x = Block(False), torch.randn(4, 3, 5)
    repeated = Block(True)
    repeated.load_state_dict(plain.state_dict())
    sums = []
    for module in (plain, repeated):
        with engine_of(module) as engine:
            torch.manual_seed(1)
            engine.backward(unit_losses(module(x), UnitMap(4)).mean(), 4)
            sums.append(torch.cat([g.flatten() for g in engine.clipped_sum()]))
    torch.testing.assert_close(sums[0], sums[1])


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Hardswish, nn.GELU])
def test_in_place_activations_agree(activation: type[nn.Module]) -> None:
    def act() -> nn.Module:
        return nn.GELU() if activation is nn.GELU else activation(inplace=True)

    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3), act(), nn.GroupNorm(2, 4), act(), nn.ConvTranspose2d(4, 2, 2), act(), nn.Flatten(),
        nn.Linear(32, 6), act(), nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), act(),
    )  # fmt: skip
    x = torch.randn(4, 2, 5, 5)
    assert_agrees(module, lambda m: m(x), UnitMap(4))
