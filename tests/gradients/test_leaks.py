"""What the taps cannot follow is refused by name; and they come off a network as if they had never been there."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.gradients import Clipping, GradientEngine
from tests.gradients import networks as net
from tests.gradients.oracle import Loss, clipped_sum, layer_numbers, relative_error, squared_loss, unit_gradients


def attach(module: nn.Module) -> GradientEngine:
    return GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1)


def run(module: nn.Module, x: Tensor, loss: Loss = squared_loss) -> list[Tensor]:
    with attach(module) as engine:
        engine.backward(loss(module, x, torch.linspace(-1, 1, len(x))), len(x))
        return engine.clipped_sum()


def assert_right(module: nn.Module, x: Tensor, loss: Loss = squared_loss) -> None:
    truth = clipped_sum(
        unit_gradients(module, loss, x, torch.linspace(-1, 1, len(x))), 1.0, "flat", layer_numbers(module)
    )
    assert relative_error(run(module, x, loss), truth) < 2e-5


class Network(nn.Module):
    """A layer, two parameters of its own, and a function of all that."""

    def __init__(self, function: Callable[[Network, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.gamma, self.scalar = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(()))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.layer(x))


def in_place(name: str) -> Callable[[Network, Tensor], Tensor]:
    def function(module: Network, x: Tensor) -> Tensor:
        x = x.clone()
        if name == "multiply":
            x *= module.gamma
        elif name == "call":
            x.mul_(module.gamma)
        elif name == "item":
            x[:, 0] = module.scalar
        else:
            torch.mul(x, module.gamma, out=x)
        return x

    return function


# --- gradients that come round the taps -------------------------------------------------------------------------------

ROUND_THE_TAPS: dict[str, tuple[Callable[[Network, Tensor], Tensor], str]] = {
    "functional use of a child's weight": (lambda m, x: F.linear(x, m.layer.weight), "layer.weight"),
    "regulariser in the forward pass": (lambda m, x: x + m.layer.weight.square().sum(), "layer.weight"),
    "a child's bias, scaled": (lambda m, x: x + 0.1 * m.layer.bias, "layer.bias"),
}


@pytest.mark.parametrize("name", sorted(ROUND_THE_TAPS))
def test_a_weight_used_outside_its_module_is_refused_by_name(name: str) -> None:
    function, parameter = ROUND_THE_TAPS[name]
    with pytest.raises(PrivacyError, match=rf"gradient to {parameter}"):
        run(Network(function), torch.randn(4, 6))


def test_a_regulariser_in_the_loss_is_refused_by_name() -> None:
    def loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return squared_loss(module, x, y) + 1e-4 * sum(p.square().sum() for p in module.parameters())

    module = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    with pytest.raises(PrivacyError, match=r"0\.bias, 0\.weight, 1\.bias, 1\.weight.*weight_decay"):
        run(module, torch.randn(4, 6), loss)
    assert all(p.grad is None for p in module.parameters())  # the raw gradient is not left lying about


def test_a_parameter_list_read_by_its_parent_is_followed() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList([torch.randn(6, 4)])

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weights[0]

    torch.manual_seed(0)
    assert_right(Listed(), torch.randn(4, 6))


def test_a_leak_of_zero_is_a_leak() -> None:
    with pytest.raises(PrivacyError, match="layer.weight"):
        run(Network(lambda m, x: x + 0 * m.layer.weight.sum()), torch.randn(4, 6))


def test_a_leak_in_one_pass_does_not_haunt_the_next() -> None:
    module = Network(lambda m, x: x * m.gamma)
    x, y = torch.randn(4, 6), torch.zeros(4)
    with attach(module) as engine:
        with pytest.raises(PrivacyError):
            engine.backward(squared_loss(module, x, y) + module.gamma.sum(), 4)
        engine.backward(squared_loss(module, x, y), 4)


def test_a_layer_that_joins_later_is_refused_by_name() -> None:
    """It has no taps: autograd would write its raw gradient, and nobody would see."""
    module = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    with attach(module) as engine:
        module[1] = nn.Linear(4, 3)
        with pytest.raises(PrivacyError, match=r"1\.weight, 1\.bias joined"):
            engine.backward(module(torch.randn(4, 6)).square().mean(), 4)


# --- bare parameters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["multiply", "call", "item", "out"])
def test_an_in_place_use_of_a_bare_parameter_is_refused_by_name(name: str) -> None:
    with pytest.raises(PrivacyError, match=r"parameter (gamma|scalar) is used by .*in-place"):
        run(Network(in_place(name)), torch.randn(4, 6))


def test_a_bare_parameter_that_meets_the_whole_batch_in_one_number_is_refused() -> None:
    module = Network(lambda m, x: x + m.gamma.square().sum() * x.mean())
    with pytest.raises(PrivacyError, match=r"gamma in mul.*single number"):
        run(module, torch.randn(4, 6))


BARE: dict[str, Callable[[Network, Tensor], Tensor]] = {
    "product": lambda m, x: x * m.gamma,
    "scalar": lambda m, x: x * m.scalar.exp(),
    "functions of parameters alone": lambda m, x: x + (m.gamma.softmax(0) * m.scalar)[None, :],
    "where": lambda m, x: torch.where(x > 0, x, x * m.gamma),
    "inner product": lambda m, x: (x @ m.gamma).unsqueeze(1),
    "einsum": lambda m, x: torch.einsum("bi,i->bi", x, m.gamma),
    "stacked": lambda m, x: torch.stack([x, m.gamma.expand(len(x), 6)], 1),
    "functional layer": lambda m, x: F.layer_norm(x, (6,), m.gamma),
    "number": lambda m, x: x * m.scalar.item(),
    "detached": lambda m, x: x * m.gamma.detach() + m.gamma,
    "twice": lambda m, x: torch.tanh(x * m.gamma) * m.gamma,
    "handed to a child": lambda m, x: x + m.layer(m.gamma.expand(len(x), 6)),
}


@pytest.mark.parametrize("name", sorted(BARE))
def test_bare_parameters_give_the_plain_gradient(name: str) -> None:
    torch.manual_seed(0)
    assert_right(Network(BARE[name]), torch.randn(4, 6))


def test_a_bare_parameter_under_no_grad_gets_no_gradient() -> None:
    def function(module: Network, x: Tensor) -> Tensor:
        with torch.no_grad():
            shift = x * module.gamma
        return x + shift

    torch.manual_seed(0)
    assert_right(Network(function), torch.randn(4, 6))


# --- layers that couple rows, draw random numbers, or return something else -----------------------


class Leaf(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.gamma, self.function = nn.Parameter(torch.randn(6)), function

    def forward(self, x: Tensor) -> object:
        return self.function(x, self.gamma)


COUPLED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "centred over the batch": lambda x, g: (x - x.mean(0)) * g,
    "scaled by the batch": lambda x, g: x / x.abs().amax() * g,
    "softmax over the batch": lambda x, g: (x * g).softmax(0),
    "sorted over the batch": lambda x, g: (x * g).sort(0).values,
    "shifted along the batch": lambda x, g: x.roll(1, 0) * g,
    "dropout inside": lambda x, g: F.dropout(x * g, 0.5),
    "noise inside": lambda x, g: x * g + torch.randn_like(x),
}


@pytest.mark.parametrize("name", sorted(COUPLED))
def test_a_leaf_that_couples_its_rows_is_refused_by_name(name: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(PrivacyError, match=r"the root module \(Leaf\).*does not reproduce"):
        run(Leaf(COUPLED[name]), torch.randn(4, 6))


def test_one_huge_unit_does_not_hide_that_the_others_are_coupled() -> None:
    """The comparison is unit by unit: a value of 1e15 must not set the scale for all."""
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    x[0] = 1e15
    with pytest.raises(PrivacyError, match="does not reproduce"):
        run(Leaf(lambda x, g: torch.cat([x[:1], x[1:] - x[1:].mean(0)]) * g), x)


@dataclass
class Result:
    hidden: Tensor


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, g: (x * g).sum(), "single number"),
        (lambda x, g: Result(x * g), "Result"),
    ],
    ids=["scalar", "dataclass"],
)
def test_outputs_that_cannot_be_tapped_are_refused_by_name(
    function: Callable[[Tensor, Tensor], object], message: str
) -> None:
    """Its weights are detached: an output that passes untapped would train nothing, silently."""

    def loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = module(x)
        out = out.hidden if isinstance(out, Result) else out
        return out.abs().square().sum()

    with pytest.raises(PrivacyError, match=message):
        run(Leaf(function), torch.randn(4, 6), loss)


class Standardised(nn.Conv2d):
    """Keeps Conv2d's forward and overrides what it delegates to, as weight standardisation does."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight / weight.norm(), bias)


def test_a_rule_does_not_apply_to_what_only_looks_like_its_layer() -> None:
    torch.manual_seed(0)
    assert_right(Standardised(1, 2, 3), torch.randn(4, 1, 5, 5))
    layer = nn.Linear(6, 2)
    layer.forward = lambda x: F.linear(x, layer.weight.sigmoid(), layer.bias)  # type: ignore[method-assign]
    assert_right(layer, torch.randn(4, 6))


# --- the backward pass ------------------------------------------------------------------------------------------------


def test_an_input_changed_after_use_is_refused_by_name() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            h += self.b(h)
            return h

    with pytest.raises(PrivacyError, match=r"input of b \(Linear\) was changed in place"):
        run(Residual(), torch.randn(4, 6))


def test_create_graph_is_refused() -> None:
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    with (
        attach(module) as engine,
        pytest.raises(PrivacyError, match="create_graph"),
        engine.recording(4),
    ):
        module(torch.randn(4, 6)).square().mean().backward(create_graph=True)


def test_a_gradient_penalty_is_refused() -> None:
    """Its second derivative passes through weights that the taps detached: the sum would lack those terms."""

    def penalty(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x = x.clone().requires_grad_(True)
        out = module(x).square().sum(1)
        (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return (out + gradient.square().sum(1)).mean()

    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    with pytest.raises(PrivacyError, match="create_graph"):
        run(module, torch.randn(4, 6), penalty)


def test_an_adversarial_example_made_inside_the_step_is_right() -> None:
    """A first-order gradient with respect to the input releases nothing and is not recorded."""

    def adversarial(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        near = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(squared_loss(module, near, y), near)
        return squared_loss(module, x + 0.1 * gradient.sign(), y)

    torch.manual_seed(0)
    assert_right(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(4, 6), adversarial)


def test_a_loss_that_reaches_no_layer_is_refused() -> None:
    module = nn.Linear(6, 2)
    constant = torch.zeros((), requires_grad=True)
    with attach(module) as engine, pytest.raises(PrivacyError, match="reached no trainable layer"):
        engine.backward(constant * 2, 4)


@pytest.mark.parametrize("again", ["the same pass", "a pass of an earlier step"])
def test_a_loss_that_reaches_back_to_earlier_rows_is_refused(again: str) -> None:
    """A hidden state carried over undetached: rows of another draw would be clipped as if they were these units'."""
    module = nn.Linear(6, 6)
    with attach(module) as engine:
        carried = module(torch.randn(4, 6))
        if again == "the same pass":
            with engine.recording(4):
                carried.square().mean().backward(retain_graph=True)
        else:
            engine.backward(module(torch.randn(4, 6)).square().mean(), 4)
            engine.write_gradients()
        with pytest.raises(PrivacyError, match="reaches back to an earlier pass"):
            engine.backward((carried + module(torch.randn(4, 6))).square().mean(), 4)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool, outside: bool) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, 6), nn.Linear(6, 2)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 6))
        self.gamma = nn.Parameter(torch.randn(6))
        self.reentrant, self.outside = reentrant, outside

    def forward(self, x: Tensor) -> Tensor:
        def part(h: Tensor) -> Tensor:
            return self.body(h) * self.gamma if self.outside else self.body(h)

        h = checkpoint(part, torch.tanh(self.a(x)), use_reentrant=self.reentrant)
        return self.c(h if self.outside else h * self.gamma)


@pytest.mark.parametrize("outside", [False, True], ids=["layers", "layers and a bare parameter"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_right_or_refused(reentrant: bool, outside: bool) -> None:
    torch.manual_seed(0)
    module, plain, x = Checkpointed(reentrant, outside), Checkpointed(False, outside), torch.randn(4, 6)
    plain.load_state_dict(module.state_dict())  # torch.autograd.grad, as the plain loop uses, refuses reentrant ones
    truth = clipped_sum(
        unit_gradients(plain, squared_loss, x, torch.linspace(-1, 1, 4)), 1.0, "flat", layer_numbers(plain)
    )
    if outside:  # the repeated function runs when its owner no longer does
        with pytest.raises(PrivacyError, match="gradient to gamma" if reentrant else "activation checkpointing"):
            run(module, x)
    else:
        assert relative_error(run(module, x), truth) < 2e-5


# --- parameters that cannot take part -------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.complex32, torch.float16, torch.bfloat16])
def test_parameters_of_other_types_are_refused_by_name(dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: complex modules are a new feature
        module = nn.ModuleDict({"fine": nn.Linear(2, 2), "odd": nn.Linear(2, 2).to(dtype)})
    with pytest.raises(PrivacyConfigError, match=r"parameter odd\.weight"):
        attach(module)
    module["odd"].requires_grad_(False)
    attach(module).close()  # frozen ones take no part


# --- taking the taps off ----------------------------------------------------------------------------------------------


def is_pristine(module: nn.Module) -> bool:
    hooks = [
        *(h for m in module.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)),
        *(h for p in module.parameters() for h in (p._post_accumulate_grad_hooks or ())),
    ]
    own = [p for m in module.modules() for p in m._parameters.values() if p is not None]
    return not hooks and all(isinstance(p, nn.Parameter) for p in own)


@pytest.mark.parametrize("name", sorted(net.NETWORKS))
def test_close_leaves_the_network_as_it_was(name: str) -> None:
    module, x = net.NETWORKS[name]()
    parameters, keys = list(module.parameters()), list(module.state_dict())
    engine = attach(module)
    assert not is_pristine(module)
    engine.backward(squared_loss(module, x, torch.zeros(len(x))), len(x))
    engine.close()
    engine.close()
    assert is_pristine(module)
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    assert list(module.state_dict()) == keys
    squared_loss(module, x, torch.zeros(len(x))).backward()
    assert all(p.grad is not None for p in module.parameters())


class Failing(nn.Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.gamma, self.layer, self.error, self.fails = nn.Parameter(torch.ones(6)), nn.Linear(6, 6), error, True

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x * self.gamma)
        if self.fails:
            raise self.error("inside")
        return h


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_inside_forward_leaves_the_parameters_in_place(error: type[BaseException]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 6), Failing(error))
    engine = attach(module)
    with pytest.raises(error):
        module(torch.randn(4, 6))
    engine.close()
    assert is_pristine(module)


def test_an_exception_inside_forward_does_not_spoil_the_next_pass() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 6), Failing(RuntimeError))
    x, y = torch.randn(4, 6), torch.linspace(-1, 1, 4)
    with attach(module) as engine:
        with pytest.raises(RuntimeError, match="inside"):
            module(x)
        assert all(isinstance(p, nn.Parameter) for m in module.modules() for p in m._parameters.values())
        module[1].fails = False
        engine.backward(squared_loss(module, x, y), 4)
        got = engine.clipped_sum()
    truth = clipped_sum(unit_gradients(module, squared_loss, x, y), 1.0, "flat", layer_numbers(module))
    assert relative_error(got, truth) < 2e-5


def test_an_exception_inside_the_block_takes_the_hooks_off() -> None:
    module = nn.Linear(6, 2)
    with pytest.raises(RuntimeError, match="user"), attach(module):
        raise RuntimeError("user")
    assert is_pristine(module)


# --- what goes on beside training -----------------------------------------------------------------


class Spy(nn.Linear):
    """A child of a leaf kind with its own forward, which says what it saw."""

    def forward(self, x: Tensor) -> Tensor:
        self.saw_parameter = isinstance(self.weight, nn.Parameter)
        return F.linear(x, self.weight, self.bias)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_validation_sees_the_true_parameters(context: Callable[[], object]) -> None:
    module, x = Spy(6, 2), torch.randn(4, 6)
    expected = module(x)
    with attach(module) as engine:
        with context():  # type: ignore[attr-defined]
            out = module(x)
        assert module.saw_parameter
        assert torch.equal(out, expected)
        assert not engine._taps.uses
        module(x)
        assert not module.saw_parameter


def test_a_forward_in_evaluation_mode_with_gradients_is_harmless() -> None:
    torch.manual_seed(0)
    module, x, y = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), nn.Linear(4, 2)), torch.randn(4, 6), torch.zeros(4)
    with attach(module) as engine:
        module.eval()
        module(x * 100)  # never followed by a backward pass
        squared_loss(module, x, y).backward()  # outside recording: nothing is accumulated, nothing is written
        assert all(p.grad is None for p in module.parameters())
        assert all(not total.any() for total in engine.clipped_sum())
        engine.backward(squared_loss(module, x, y), 4)
        got = engine.clipped_sum()
    truth = clipped_sum(unit_gradients(module, squared_loss, x, y), 1.0, "flat", layer_numbers(module))
    assert relative_error(got, truth) < 2e-5


def test_a_teacher_without_gradients_inside_the_training_pass() -> None:
    """The same network under no_grad beside itself: only the student's pass counts."""

    def distilled(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            target = module(x * 0.9)
        return (module(x) - target - y[:, None]).square().sum(1).mean()

    torch.manual_seed(0)
    assert_right(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(4, 6), distilled)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": lambda m: torch.load(_saved(m), weights_only=False),
}


def _saved(module: nn.Module) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("name", sorted(COPIES))
def test_a_copy_of_a_tapped_network_is_an_ordinary_network(name: str) -> None:
    """It trains like one; a copy with live taps would get no gradient at all."""
    torch.manual_seed(0)
    module, x, y = net.Tokens(), torch.randn(4, 1, 12, 12), torch.zeros(4)
    with attach(module) as engine:
        loss = squared_loss(module, x, y)
        twin = COPIES[name](module)
        squared_loss(twin, x, y).backward()
        assert all(p.grad is not None for p in twin.parameters())
        assert list(twin.state_dict()) == list(module.state_dict())
        engine.backward(loss, 4)  # and the original goes on undisturbed
        with attach(twin) as other:
            twin.zero_grad()
            other.backward(squared_loss(twin, x, y), 4)
            assert relative_error(other.clipped_sum(), engine.clipped_sum()) < 1e-6


def test_a_saved_network_holds_no_data() -> None:
    module = nn.Sequential(nn.Linear(6, 600), nn.Linear(600, 2))
    plain = len(pickle.dumps(module))
    with attach(module) as engine:
        engine.backward(module(torch.randn(500, 6)).square().mean(), 500)
        loss = module(torch.randn(500, 6)).square().mean()
        assert len(pickle.dumps(module)) < plain + 5000
        assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), module.parameters(), strict=True))
        del loss
