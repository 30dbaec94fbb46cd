"""Wrong arguments and unusable inputs: a clear error before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_dp import DPStrategy, MembershipRisk, PrivacyConfigError, PrivacyError, ReconstructionRisk
from lightning_dp.accounting import EpsilonTarget
from tests.strategies.helpers import Tiny, dataset, fit, flat, loader, strategy, trainer

pytestmark = pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "arguments, named",
    [
        *(({"eps": eps}, "eps=") for eps in (0, -1.0, NAN, INF, True, "8")),
        *(({"eps": 1, "delta": delta}, "delta=") for delta in (0, 1, 1.5, -1e-5, NAN, True, "1e-5")),
        ({}, "neither eps nor noise_multiplier"),
        ({"delta": 1e-5}, "neither eps nor noise_multiplier"),
        ({"eps": 1, "noise_multiplier": 1}, "eps and noise_multiplier given"),
        ({"eps": 1, "risk": ReconstructionRisk(0.1, 0.01)}, "eps and risk given"),
        ({"noise_multiplier": 1, "risk": MembershipRisk(advantage=0.1)}, "noise_multiplier and risk given"),
        ({"risk": 0.1}, "ReconstructionRisk or a MembershipRisk"),
        ({"risk": EpsilonTarget(8.0)}, "DPStrategy.eps="),
        *(({"noise_multiplier": noise}, "noise_multiplier=") for noise in (-1, NAN, INF, True, "1")),
        ({"eps": 1, "accountant": "moments"}, "moments"),
        ({"eps": 1, "sampling": "fixed"}, "fixed"),
        ({"eps": 1, "clipping": "ghost"}, "ghost"),
        ({"eps": 1, "loss_reduction": "none"}, "none"),
        *(({"eps": 1, "physical_batch_size": size}, "physical_batch_size=") for size in (0, -4, 2.5, True)),
        *(({"eps": 1, "max_grad_norm": bound}, "max_grad_norm=") for bound in (0, -1.0, NAN, INF, "1")),
    ],
    ids=str,
)
def test_an_argument_out_of_range_is_refused_by_name(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(PrivacyConfigError, match=named):
        DPStrategy(**arguments)


def test_everything_but_the_budget_is_given_by_keyword() -> None:
    with pytest.raises(TypeError):
        DPStrategy(8, 1e-5, 1.0)  # type: ignore[misc]


@pytest.mark.parametrize("delta", [1 / 64, 0.5])
def test_a_delta_that_would_let_one_record_out_is_refused(delta: float) -> None:
    module = Tiny()
    with pytest.raises(PrivacyConfigError, match=r"delta=.*not below 1/n.*delta=None"):
        fit(module, strategy(eps=8, delta=delta), loader(64))
    assert module.calls == 0


def test_a_delta_just_below_is_accepted() -> None:
    plugin = strategy(delta=0.99 / 64)
    fit(Tiny(), plugin, loader(64))
    assert plugin.privacy_spent().delta == 0.99 / 64


def test_an_unmeetable_budget_is_refused_before_the_first_step() -> None:
    module, plugin = Tiny(), strategy(eps=1e-9, delta=1e-12)
    with pytest.raises(PrivacyConfigError):
        fit(module, plugin)
    assert module.calls == plugin.ledger.steps == 0


class WithoutGradient(Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        super().training_step(batch, batch_idx)
        return torch.zeros(())


class Constant(Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        super().training_step(batch, batch_idx)
        return torch.zeros((), requires_grad=True)


class Detached(Tiny):
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return super().loss(x, y).detach()


class NoLoss(Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        super().training_step(batch, batch_idx)


class EmptyDict(Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        super().training_step(batch, batch_idx)
        return {"loss": None}


class PerSample(Tiny):
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self(x), y, reduction="none")


USELESS = [WithoutGradient, Constant, Detached, NoLoss, EmptyDict, PerSample]


@pytest.mark.parametrize("checked", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize("kind", USELESS, ids=lambda kind: kind.__name__)
def test_a_step_without_a_usable_loss_changes_nothing(kind: Callable[[], Tiny], checked: bool) -> None:
    module, plugin = kind(), strategy(self_check=checked)
    before = flat(module)
    with pytest.raises((PrivacyError, PrivacyConfigError, RuntimeError)) as error:
        fit(module, plugin)
    assert torch.equal(flat(module), before)
    if checked:
        assert isinstance(error.value, PrivacyError)
        assert "training_step" in str(error.value)
        assert module.calls == plugin.ledger.steps == 0


class SometimesNoLoss(Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss if batch_idx < 2 else None


def test_skipping_a_batch_is_refused_when_it_happens() -> None:
    module, plugin = SometimesNoLoss(), strategy()
    with pytest.raises(PrivacyError, match="returned no loss"):
        fit(module, plugin)
    assert module.calls == plugin.ledger.steps == 3


def test_a_collate_function_that_drops_a_batch_is_refused() -> None:
    """A batch of None makes Lightning skip the step, silently and because of what the samples are."""
    calls = []

    def collate(samples: list[Any]) -> Any:
        calls.append(len(samples))
        return torch.utils.data.default_collate(samples) if len(calls) < 20 else None

    with pytest.raises(PrivacyError, match="None"):
        fit(Tiny(), strategy(), DataLoader(dataset(), batch_size=2, collate_fn=collate))


class Unsized:
    def __getitem__(self, index: int) -> Any:
        return dataset()[index]


def test_bad_data_is_refused_with_a_budget_as_well() -> None:
    """Calibration does not get in before the loader is judged."""
    for data in (DataLoader(Unsized(), sampler=range(8)), DataLoader([], batch_size=4)):
        with pytest.raises(PrivacyConfigError, match=r"no length|is empty"):
            fit(Tiny(), strategy(eps=8), data)


def test_asking_too_early_is_answered_clearly() -> None:
    plugin = strategy(eps=8)
    for ask in (lambda: plugin.noise_multiplier, plugin.settings, plugin.privacy_spent):
        with pytest.raises(PrivacyError, match=r"not known|known only"):
            ask()
    assert plugin.ledger.steps == 0
    assert plugin.epsilon() == 0.0


def test_evaluation_before_training_works() -> None:
    run = trainer(strategy(eps=8))
    assert run.validate(Tiny(), DataLoader(dataset(), batch_size=32), verbose=False)
    run.fit(Tiny(), loader())
    assert run.global_step == 8
