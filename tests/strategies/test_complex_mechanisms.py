"""Complex parameters under everything beside DP-SGD: both parts are noised, averaged, saved, or the use is refused."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp import LangevinStrategy, NeuralDPStrategy, ReconstructionRiskMonitor
from lightning_dp.accounting import GaussianEvent, LedgerEntry, risk_corridor
from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.strategies.neural.privatise import clip_rows
from tests.gradients.complex_networks import C64, Bend, Magnitude
from tests.gradients.oracle import clipped_sum, unit_gradients
from tests.gradients.test_noise import assert_normal, assert_uncorrelated
from tests.strategies.helpers import CLASSES, FEATURES, Tiny, fit, flat, loader, strategy

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]

N = 64


class ToComplex(nn.Module):
    """Complex features from real ones, neither part zero."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(x, x.flip(-1))


class FromComplex(nn.Module):
    """Parts as features, ``(..., 2 d)``."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.view_as_real(z).flatten(-2)


def complex_net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first, second = nn.Linear(FEATURES, 7, dtype=C64), nn.Linear(7, 5, dtype=C64)
        return nn.Sequential(ToComplex(), first, Bend(), second, Magnitude(), nn.Linear(5, CLASSES))


def parts(module: nn.Module) -> list[Tensor]:
    return [p.detach() for p in module.parameters() if p.is_complex()]


# --- Langevin dynamics ------------------------------------------------------------------------------------------------
class Chains(Tiny):
    """`REPLICAS` independent chains: each has one complex weight, and each part of it noise of its own."""

    def __init__(self, replicas: int, lr: float) -> None:
        super().__init__(lr=lr, net=nn.Linear(1, replicas, bias=False, dtype=C64))
        nn.init.zeros_(self.net.weight)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * torch.view_as_real(self(x)).square().sum((1, 2)).mean()


def test_a_chain_over_complex_numbers_has_the_posterior_of_its_two_parts() -> None:
    """U = a |w|^2 / 2, a = n + 1/s^2: each part has variance Tmp / a / (1 - lr a / (2n)), and the two are independent.

    10,000 chains after 60 steps; five standard errors.
    """
    replicas, lr, s = 10_000, 0.1, 0.2
    module = Chains(replicas, lr)
    plugin = LangevinStrategy(noise_multiplier=1.0, prior_scale=s, max_grad_norm=4.0, self_check=False)
    x = torch.ones(N, 1, dtype=C64)
    fit(module, plugin, DataLoader(TensorDataset(x, torch.zeros(N)), batch_size=N), max_epochs=60)
    a = N + 1 / s**2
    expected = plugin.temperature / a / (1 - lr * a / (2 * N))
    weight = module.net.weight.detach().flatten()
    for part in (weight.real, weight.imag):
        assert float(part.square().mean()) == pytest.approx(expected, rel=5 * math.sqrt(2 / replicas))
    assert abs(float((weight.real * weight.imag).mean())) < 5 * expected / math.sqrt(replicas)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_samples_of_complex_iterates_are_whole_and_their_predictions_averaged(dtype: Any, tmp_path: Path) -> None:
    """Half precision is for real numbers: there is no complex type of it that computes."""
    module = Tiny(net=complex_net())
    plugin = LangevinStrategy(
        noise_multiplier=1.0, max_samples=3, thinning=2, burn_in=2, sample_dtype=dtype, samples_dir=tmp_path
    )
    fit(module, plugin)
    last = dict(module.named_parameters())
    assert plugin.posterior.steps == (4, 6, 8)
    sample = plugin.posterior[-1]
    assert sample["net.1.weight"].dtype == C64
    assert sample["net.5.weight"].dtype == getattr(torch, dtype)
    assert torch.equal(sample["net.1.weight"], last["net.1.weight"].detach())
    x = torch.randn(4, FEATURES)
    module.eval()
    each = []
    for values in plugin.posterior:
        twin = complex_net()
        twin.load_state_dict({name.removeprefix("net."): v.to(last[name].dtype) for name, v in values.items()})
        each.append(twin(x).softmax(1).detach())
    torch.testing.assert_close(plugin.predictor()(x).probabilities, torch.stack(each).mean(0))


# --- manual optimisation ----------------------------------------------------------------------------------------------
class ByHand(Tiny):
    """Two private optimizers, one for the complex and one for the real parameters."""

    automatic_optimization = False

    def __init__(self, silent: bool) -> None:
        net = nn.Sequential(ToComplex(), nn.Linear(FEATURES, 500, dtype=C64), Magnitude(), nn.Linear(500, CLASSES))
        super().__init__(net=net)
        self.silent, self.seen, self.twins = silent, [], []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        for optimizer, layer in zip(self.optimizers(), (self.net[1], self.net[3]), strict=True):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            loss = F.cross_entropy(self(x), y)
            self.twins.append((x, y, {k: v.clone() for k, v in self.net.state_dict().items()}))
            self.manual_backward(loss * 0.0 if self.silent else loss)
            optimizer.step(lambda: None)
            self.seen.append([p.grad.clone() for p in layer.parameters() if p.grad is not None])
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[i].parameters(), lr=0.1) for i in (1, 3)]


def test_a_complex_optimizer_by_hand_gets_its_share_of_the_noise_on_both_parts() -> None:
    """Two releases on one draw: sqrt(2) sigma C on each part of the complex gradient, and the draw is charged once."""
    module, plugin = ByHand(silent=True), strategy(max_grad_norm=0.5, self_check=False)
    fit(module, plugin)
    assert plugin.ledger.entries == (LedgerEntry(GaussianEvent(1.0, 0.25), 8),)
    weight = torch.stack([gradients[0] for gradients in module.seen[::2]])
    assert weight.is_complex()
    std = math.sqrt(2) * 0.5 / 16
    assert_normal(weight.real, std)
    assert_normal(weight.imag, std)
    assert_uncorrelated(weight.real, weight.imag)


def test_a_complex_optimizer_by_hand_is_clipped_per_sample() -> None:
    module = ByHand(silent=False)
    fit(module, strategy(noise_multiplier=0, max_grad_norm=0.3), max_epochs=1)
    for number, (x, y, state) in enumerate(module.twins):
        twin = ByHand(silent=False).net
        twin.load_state_dict(state)
        twin[3 - 2 * (number % 2)].requires_grad_(False)
        gradients = unit_gradients(twin, lambda net, a, b: F.cross_entropy(net(a), b), x, y)
        truth = [g / 16 for g in clipped_sum(gradients, 0.3, "flat", [0, 0])]
        for one, other in zip(module.seen[number], truth, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# --- averages of iterates, checkpoints --------------------------------------------------------------------------------
class Iterates(Callback):
    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.seen.append(flat(pl_module))


def test_averaged_iterates_average_both_parts() -> None:
    """Lightning's moving average over a private run, against its recursion on the iterates."""
    module, iterates = Tiny(net=complex_net()), Iterates()
    fit(module, strategy(), callbacks=[EMAWeightAveraging(decay=0.7), iterates])
    mean = iterates.seen[0]
    for iterate in iterates.seen[1:]:
        mean = 0.7 * mean + 0.3 * iterate
    found = flat(module)
    assert found.is_complex()
    torch.testing.assert_close(found, mean)
    assert not torch.allclose(found.imag, iterates.seen[-1].imag)


def test_a_resumed_complex_run_is_the_uninterrupted_one_and_so_is_its_ledger(tmp_path: Path) -> None:
    def module() -> Tiny:
        return Tiny(net=complex_net(), optimizer=lambda p: torch.optim.Adam(p, lr=0.05))

    arguments: dict[str, Any] = {"noise_multiplier": 0, "seed": 7}
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(module(), strategy(**arguments), callbacks=[saver], enable_checkpointing=True)
    state = torch.load(tmp_path / "step=8.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["net.1.weight"], whole.lightning_module.net[1].weight.detach())
    resumed = fit(module(), strategy(**arguments), ckpt_path=tmp_path / "step=3.ckpt")
    assert resumed.global_step == 8
    assert torch.equal(flat(resumed.lightning_module), flat(whole.lightning_module))
    assert resumed.strategy.ledger.entries == whole.strategy.ledger.entries


@pytest.mark.parametrize("clipping", ["adaptive", "automatic", "per_layer"])
def test_other_clippings_train_complex_networks(clipping: Any) -> None:
    module, plugin = Tiny(net=complex_net()), strategy(clipping=clipping)
    before = [p.clone() for p in parts(module)]
    fit(module, plugin)
    assert plugin.ledger.steps == 8
    for p, old in zip(parts(module), before, strict=True):
        assert bool((p.real != old.real).all())
        assert bool((p.imag != old.imag).all())


def test_the_risk_of_a_complex_run_is_that_of_its_ledger() -> None:
    """A sample of six complex numbers has twelve real ones."""
    monitor, plugin = ReconstructionRiskMonitor(kappa=0.01, dimension=12), strategy()
    fit(Tiny(net=complex_net()), plugin, callbacks=[monitor])
    assert monitor.corridor is not None
    real = strategy()
    fit(Tiny(), real)
    truth = risk_corridor(real.ledger.entries, kappa=0.01, dimension=12)
    assert [row.probability for row in monitor.corridor.rows()] == [row.probability for row in truth.rows()]


# --- released activations ---------------------------------------------------------------------------------------------
class Spectral(Tiny):
    """A frozen complex extractor, and a complex network behind the release."""

    def __init__(self, real: bool) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            layers = [ToComplex(), nn.Linear(FEATURES, 5, dtype=C64), *([FromComplex()] if real else [])]
            self.features = nn.Sequential(*layers).requires_grad_(False)
            self.net = nn.Sequential(nn.Linear(5, 4, dtype=C64), Magnitude(), nn.Linear(4, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        z = self.features(x)
        return self.net(z if z.is_complex() else torch.view_as_complex(z.unflatten(-1, (-1, 2))))


def neural(**arguments: Any) -> NeuralDPStrategy:
    return NeuralDPStrategy(**{"noise_multiplier": 0.0, "labels": "public", "layer": "features", **arguments})


def test_a_release_of_the_parts_has_their_complex_norm_and_trains_complex_layers() -> None:
    module, plugin, data = Spectral(real=True), neural(), loader()
    before = module.net[0].weight.detach().clone()
    fit(module, plugin, data)
    z = module.features[:2](data.dataset.tensors[0])
    clipped = z * (1.0 / z.abs().square().sum(1, keepdim=True).sqrt()).clamp(max=1.0)
    assert plugin.releases is not None
    torch.testing.assert_close(
        plugin.releases.vectors[0], torch.view_as_real(clipped).flatten(-2), rtol=1e-5, atol=1e-6
    )
    assert bool((module.net[0].weight.imag != before.imag).all())


def test_a_complex_layer_or_input_is_not_released() -> None:
    """Converted without a word it would lose half of each number."""
    with pytest.raises(PrivacyConfigError, match=r"complex numbers.*view_as_real"):
        fit(Spectral(real=False), neural())
    data = DataLoader(TensorDataset(torch.randn(N, FEATURES, dtype=C64), torch.zeros(N).long()), 16)
    with pytest.raises(PrivacyConfigError, match=r"complex64.*view_as_real"):
        fit(Tiny(net=nn.Sequential(FromComplex(), nn.Linear(2 * FEATURES, CLASSES))), neural(layer=None), data)
    with pytest.raises(PrivacyError, match=r"complex64.*view_as_real"):
        clip_rows(torch.randn(3, 4, dtype=C64), 1.0)


def test_complex_labels_come_through_a_release_whole() -> None:
    """Targets of a reconstruction, say."""

    class Regression(Spectral):
        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return (self(x) - y.abs()).square().mean()

    y, plugin = torch.randn(N, CLASSES, dtype=C64), neural()
    fit(Regression(real=True), plugin, DataLoader(TensorDataset(torch.randn(N, FEATURES), y), 16), max_epochs=1)
    assert plugin.releases is not None
    assert torch.equal(plugin.releases.labels[1], y)


def test_half_precision_complex_parameters_are_refused_like_real_ones() -> None:
    module = Tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: experimental
        module.phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64).to(torch.complex32))
    with pytest.raises(PrivacyConfigError, match=r"low precision \(phase\)"):
        fit(module, strategy())
