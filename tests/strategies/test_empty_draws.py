"""Poisson draws are sometimes empty: such a step is a step, runs user code on a stand-in, and releases pure noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from lightning_dp.sampling import PoissonSampler, key_from_seed
from tests.strategies.helpers import Tiny, dataset, fit, flat, strategy

pytestmark = pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")

STEPS = 50  # at n = 50, B = 1 about 36 % of the draws are empty
DRAWS = [len(PoissonSampler(50, 1, key_from_seed(7)).draw(step)) for step in range(STEPS)]
EMPTY = [step for step, size in enumerate(DRAWS) if size == 0]


class Watch(Callback):
    """The parameters after every step, and the gradient that was used."""

    def __init__(self) -> None:
        self.after: list[Tensor] = []
        self.gradients: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        self.gradients.append(torch.cat([p.grad.flatten().clone() for p in module.parameters()]))

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self.after.append(flat(module))


def run(
    module: Tiny, noise_multiplier: float, collate: Any = default_collate, **arguments: Any
) -> tuple[Watch, Any, Trainer]:
    watch, plugin = Watch(), strategy(noise_multiplier=noise_multiplier, seed=7, **arguments)
    data = DataLoader(dataset(50), batch_size=1, shuffle=True, collate_fn=collate)
    trained = fit(module, plugin, data, max_epochs=1, callbacks=[watch])
    return watch, plugin, trained


def test_the_draws_of_these_tests_are_what_they_should_be() -> None:
    assert 10 <= len(EMPTY) <= 30
    assert max(DRAWS) >= 2


def test_collate_never_sees_an_empty_list_and_every_step_is_taken() -> None:
    sizes: list[int] = []

    def collate(samples: list[Any]) -> Any:
        sizes.append(len(samples))
        return default_collate(samples)

    module = Tiny()
    _, plugin, trained = run(module, 1.0, collate, self_check=False)
    assert sizes == module.sizes == [size or 1 for size in DRAWS]
    assert trained.global_step == plugin.ledger.steps == STEPS


@pytest.mark.parametrize("physical", [None, 1])
def test_a_stand_in_contributes_exactly_nothing(physical: int | None) -> None:
    module = Tiny()
    before = flat(module)
    watch, _, _ = run(module, 0, physical_batch_size=physical)
    for step, (old, new) in enumerate(zip([before, *watch.after], watch.after, strict=False)):
        assert torch.equal(old, new) == (step in EMPTY)
        assert bool(watch.gradients[step].any()) == (step not in EMPTY)


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
def test_a_stand_in_with_an_infinite_gradient_contributes_nothing(clipping: str) -> None:
    """0 * inf is not 0: weight zero must mean absent."""

    class Explodes(Tiny):
        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return super().loss(x, y) * math.inf

    module = Explodes()
    before = flat(module)
    run(module, 0, clipping=clipping, self_check=False)
    assert torch.equal(flat(module), before)


def test_an_empty_step_is_pure_noise() -> None:
    """Std sigma C / B over len(EMPTY) x 83 draws, mean 0; each within 5 standard errors (false alarm below 1e-5)."""
    watch, _, _ = run(Tiny(), 2.0, max_grad_norm=0.5)
    noise = torch.cat([watch.gradients[step] for step in EMPTY]).double()
    n = noise.numel()
    assert abs(float(noise.std()) - 1.0) < 5 / math.sqrt(2 * n)
    assert abs(float(noise.mean())) < 5 / math.sqrt(n)


def test_what_stands_in_does_not_matter() -> None:
    """Sample 0 stands in: until it is drawn itself, the run is the same whatever it holds."""
    sampler = PoissonSampler(50, 1, key_from_seed(7))
    first = next((step for step in range(STEPS) if 0 in sampler.draw(step)), STEPS)
    assert any(step < first for step in EMPTY)
    results = []
    for shift in (0.0, 100.0):
        data, module = dataset(50), Tiny()
        data.tensors[0][0] += shift
        fit(module, strategy(seed=7, self_check=False), DataLoader(data, batch_size=1), max_steps=first)
        results.append(flat(module))
    assert torch.equal(*results)


def test_momentum_and_weight_decay_go_on() -> None:
    """Post-processing does not stop on an empty draw: the optimizer is called as ever."""

    def decayed(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, weight_decay=0.5)

    module = Tiny(optimizer=decayed)
    watch, _, _ = run(module, 0)
    for step in EMPTY[1:]:
        torch.testing.assert_close(watch.after[step], watch.after[step - 1] * 0.95)
