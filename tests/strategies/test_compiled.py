"""Compiled networks train as they are: the private step runs uncompiled, so that no compiled code goes round the taps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_dp
from lightning_dp import DPStrategy, PrivacyError
from lightning_dp.gradients import Clipping, GradientEngine
from tests.strategies.helpers import Tiny, dataset, loader, network, trainer

pytestmark = pytest.mark.filterwarnings("ignore:DPStrategy.seed=")


def inside() -> Any:
    return Tiny(net=torch.compile(network(), backend="eager"))


def in_place() -> Any:
    module = Tiny()
    module.net.compile(backend="eager")
    return module


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def train(module: Any) -> tuple[LightningModule, DPStrategy]:
    plugin = DPStrategy(noise_multiplier=1.0, seed=3)
    torch.manual_seed(0)
    run = trainer(plugin, max_epochs=2)
    run.fit(module, loader(), DataLoader(dataset(), batch_size=16))
    return run.lightning_module, plugin


@pytest.mark.parametrize("build", [inside, in_place])
def test_training_is_that_of_the_uncompiled_network(build: Callable[[], Any]) -> None:
    truth, _ = train(Tiny())
    compiled, plugin = train(build())
    assert plugin.ledger.steps == 8
    for a, b in zip(weights(compiled), weights(truth), strict=True):
        torch.testing.assert_close(a, b)


def test_code_compiled_before_the_hooks_were_placed_is_not_run() -> None:
    module = inside()
    module.net(dataset().tensors[0][:5])  # compiled now, without hooks
    before = weights(module)
    trained, _ = train(module)
    assert all((a != b).any() for a, b in zip(weights(trained), before, strict=True))


def test_the_dry_run_looks_at_a_compiled_network() -> None:
    x = dataset().tensors[0][:8]
    compiled = torch.compile(network(), backend="eager")
    compiled(x)
    report = lightning_dp.inspect(compiled, x)
    assert report.ok
    assert {row.way for row in report.rows} == {"rule"}


def test_a_plain_loop_on_compiled_code_without_hooks_is_stopped() -> None:
    x, y = (t[:8] for t in dataset().tensors)
    net = network()
    compiled = torch.compile(net, backend="eager")
    compiled(x)
    with GradientEngine(net, Clipping(1.0), noise_multiplier=1.0, expected_batch_size=8) as engine:
        with torch.compiler.set_stance("force_eager"):
            loss = nn.functional.cross_entropy(compiled(x), y)
        engine.backward(loss, 8)
        engine.write_gradients()
        loss = nn.functional.cross_entropy(compiled(x), y)
        with pytest.raises(PrivacyError, match=r"torch\.compile|reached no trainable layer"):
            engine.backward(loss, 8)


def test_a_plain_loop_that_compiles_with_the_hooks_in_place_is_stopped() -> None:
    """Hooks leave themselves out of compiled code: its gradients reach the weights themselves, and that is seen."""
    x, y = (t[:8] for t in dataset().tensors)
    net = network()
    with GradientEngine(net, Clipping(1.0), noise_multiplier=1.0, expected_batch_size=8) as engine:
        loss = nn.functional.cross_entropy(torch.compile(net, backend="eager")(x), y)
        with pytest.raises(PrivacyError, match=r"did not pass through the layer"):
            engine.backward(loss, 8)
        assert all(p.grad is None for p in net.parameters())


class Token(nn.Module):
    """A parameter of its own beside layers, as the class token of a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.token = network(), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x + self.token)
        return out


def test_compiled_validation_of_parameters_beside_layers_runs() -> None:
    """Following a bare parameter is nothing that can be compiled; evaluation needs it not."""
    module = Tiny(net=torch.compile(Token(), backend="eager"))
    trained, plugin = train(module)
    assert plugin.ledger.steps == 8
    assert float(trained.get_parameter("net._orig_mod.token").detach()) != 0
