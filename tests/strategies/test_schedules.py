"""Schedules in a run: each step gets the noise that it is charged with, and the budget holds over different events."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_dp import DPStrategy, PrivacyAccountant, PrivacyConfigError
from lightning_dp.accounting import CosineSchedule, GaussianEvent, LedgerEntry, LinearSchedule, Schedule, StepSchedule
from lightning_dp.cli import command_line
from lightning_dp.gradients import AdaptiveClipping
from tests.strategies.helpers import Tiny, fit, flat, loader, strategy, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
]

FALLING, RISING = LinearSchedule(2.0, 0.5), LinearSchedule(0.5, 2.0)


class Watching(Tiny):
    """Keeps what the optimizer was given, and what the engine clipped and noised with."""

    def __init__(self, silent: bool = False) -> None:
        super().__init__(net=nn.Linear(6, 2000) if silent else None)
        self.silent = silent
        self.stds: list[float] = []
        self.facts: list[tuple[float, float]] = []

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self(x).sum() * 0.0 if self.silent else super().loss(x, y)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        engine = self.trainer.strategy.engine  # type: ignore[attr-defined]
        self.facts.append((engine.noise_multiplier, engine.clipping.max_grad_norm))
        self.stds.append(float(torch.cat([p.grad.flatten() for p in self.parameters()]).std()))  # type: ignore[union-attr]


def test_each_step_is_charged_with_its_own_noise() -> None:
    plugin, module = strategy(noise_multiplier=1.2, noise_multiplier_schedule=FALLING), Watching(silent=True)
    fit(module, plugin)
    expected = [1.2 * (2.0 - 1.5 * step / 7) for step in range(8)]
    assert [entry.event.noise_multiplier for entry in plugin.ledger.entries] == pytest.approx(expected)
    assert [entry.steps for entry in plugin.ledger.entries] == [1] * 8
    assert [noise for noise, _ in module.facts] == [e.event.noise_multiplier for e in plugin.ledger.entries]
    assert module.stds == pytest.approx([noise / 16 for noise in expected], rel=0.05)


def test_the_bound_takes_its_noise_along() -> None:
    """The ledger's event does not change: noise over bound is what is accounted."""
    plugin = strategy(max_grad_norm=0.4, max_grad_norm_schedule=StepSchedule(0.5, every=3))
    module = Watching(silent=True)
    fit(module, plugin)
    bounds = [0.4] * 3 + [0.2] * 3 + [0.1] * 2
    assert [bound for _, bound in module.facts] == pytest.approx(bounds)
    assert module.stds == pytest.approx([bound / 16 for bound in bounds], rel=0.05)
    assert plugin.ledger.entries == (LedgerEntry(GaussianEvent(1.0, 0.25), 8),)


def test_the_bound_in_force_is_what_clips() -> None:
    """Without noise and with a bound that all units exceed, halving the bound halves the gradient."""
    runs = []
    for schedule in (None, StepSchedule(0.5, every=1)):
        module = Watching()
        module.lr = 0.0
        fit(module, strategy(noise_multiplier=0, seed=7, max_grad_norm=1e-3, max_grad_norm_schedule=schedule))
        runs.append(module.stds)
    assert [b / a for a, b in zip(*runs, strict=True)] == pytest.approx([0.5**step for step in range(8)], rel=1e-3)


@pytest.mark.parametrize("schedule", [FALLING, CosineSchedule(0.5, 2.0)], ids=str)
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_a_scheduled_run_is_calibrated_to_the_budget(schedule: Schedule, accountant: Any) -> None:
    plugin = strategy(eps=3, noise_multiplier_schedule=schedule, accountant=accountant)
    run = fit(Tiny(), plugin)
    assert run.global_step == plugin.ledger.steps == 8
    assert not run.should_stop
    assert 0.98 * 3 < plugin.privacy_spent().eps <= 3
    assert plugin.epsilon() == pytest.approx(plugin.privacy_spent().eps, rel=1e-6)
    assert plugin.privacy_spent().noise_multiplier is None  # there is no one number


def test_cut_draws_are_charged_by_schedule_too() -> None:
    plugin = strategy(
        eps=3, noise_multiplier_schedule=FALLING, sampling="truncated_poisson", max_batch_size=48, accountant="rdp"
    )
    assert fit(Tiny(), plugin).global_step == len(plugin.ledger.entries) == 8
    assert all(entry.event.tail > 0 for entry in plugin.ledger.entries)
    assert 0.98 * 3 < plugin.privacy_spent().eps <= 3


@pytest.mark.parametrize("schedule", [FALLING, RISING], ids=str)
@pytest.mark.parametrize("step", [1, 5])
def test_a_resumed_run_has_the_events_of_the_whole(schedule: Schedule, step: int, tmp_path: Path) -> None:
    def plugin() -> DPStrategy:
        return strategy(eps=3, noise_multiplier_schedule=schedule, accountant="rdp")

    whole = plugin()
    fit(Tiny(), whole)

    class Saves(Tiny):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.trainer.global_step == step:
                self.trainer.save_checkpoint(tmp_path / "part.ckpt")

    fit(Saves(), plugin())
    resumed = plugin()
    assert fit(Tiny(), resumed, ckpt_path=tmp_path / "part.ckpt").global_step == 8
    assert resumed.ledger.entries == whole.ledger.entries
    assert resumed.noise_multiplier == whole.noise_multiplier


@pytest.mark.parametrize("schedule", [FALLING, RISING], ids=str)
def test_steps_that_were_skipped_do_not_pay_for_dearer_ones(schedule: Schedule) -> None:
    """The first half of the plan is skipped, and training goes on for longer than planned."""

    class Skips(Tiny):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if self.trainer.current_epoch == 0 else None

    plugin = strategy(eps=2, noise_multiplier_schedule=schedule, accountant="rdp")
    run = trainer(plugin)
    run.fit(Skips(), loader())
    run.fit_loop.max_epochs = 30
    run.fit(run.lightning_module, loader())
    assert plugin.ledger.steps >= 4
    assert plugin.privacy_spent().eps <= 2


def test_a_second_fit_ends_with_the_budget() -> None:
    plugin = strategy(eps=2, noise_multiplier_schedule=FALLING, accountant="rdp")
    run = fit(Tiny(), plugin)
    run.fit_loop.max_epochs = 20
    run.fit(run.lightning_module, loader())
    assert plugin.privacy_spent().eps <= 2


def test_reports_name_the_schedules(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    plugin = strategy(noise_multiplier_schedule=FALLING, max_grad_norm_schedule=StepSchedule(0.5, 2))
    fit(Tiny(), plugin, callbacks=[PrivacyAccountant()])
    assert plugin.settings().noise_multiplier_schedule == "linear from 2 to 0.5"
    assert "Schedules: noise multiplier linear from 2 to 0.5; max_grad_norm times 0.5 every 2 steps." in caplog.text
    assert "bound schedule" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "fit_arguments", "message"),
    [
        ({"noise_multiplier_schedule": FALLING, "sampling": "shuffle"}, {}, "charges several steps as one"),
        ({"noise_multiplier_schedule": FALLING, "sampling": "balls_in_bins"}, {}, "charges several steps as one"),
        ({"noise_multiplier_schedule": FALLING}, {"max_epochs": -1}, "needs a training with an end"),
        ({"max_grad_norm_schedule": FALLING}, {"max_epochs": -1}, "needs a training with an end"),
        ({"max_grad_norm_schedule": FALLING, "clipping": "adaptive"}, {}, "Choose one"),
        (
            {"noise_multiplier_schedule": FALLING, "clipping": AdaptiveClipping(count_noise=9.0)},
            {},
            "noise that follows it",
        ),
    ],
)
def test_is_refused(arguments: dict[str, Any], fit_arguments: dict[str, Any], message: str) -> None:
    module = Tiny()
    with pytest.raises(PrivacyConfigError, match=message):
        fit(module, strategy(**arguments), **fit_arguments)
    assert module.calls == 0


def test_noise_schedule_and_adaptive_clipping_together() -> None:
    plugin, module = strategy(noise_multiplier_schedule=RISING, clipping="adaptive"), Watching(silent=True)
    fit(module, plugin)
    assert len(plugin.ledger.entries) == 8
    bounds = [
        1.0,
        *(after for _, after in module.facts),
    ]  # looked at when the step is released, and the bound has moved
    for (noise, _), bound, std in zip(module.facts, bounds[:8], module.stds, strict=True):
        raised = AdaptiveClipping().gradient_noise_multiplier(noise, 16)
        assert std == pytest.approx(raised * bound / 16, rel=0.05)


def test_training_with_a_schedule_changes_the_weights() -> None:
    module = Tiny()
    before = flat(module)
    fit(module, strategy(max_grad_norm_schedule=RISING))
    assert bool((flat(module) != before).any())


def test_yaml_names_a_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-dp"])
    path = tmp_path / "config.yaml"
    path.write_text("""
trainer:
  accelerator: cpu
  logger: false
  strategy:
    class_path: DPStrategy
    init_args:
      eps: 8
      noise_multiplier_schedule:
        class_path: LinearSchedule
        init_args: {first: 1.5, last: 0.7}
      max_grad_norm_schedule:
        class_path: StepSchedule
        init_args: {gamma: 0.5, every: 100}
model:
  class_path: tests.strategies.helpers.Tiny
data:
  class_path: DigitsDataModule
""")
    plugin = command_line(["--config", str(path)], run=False).trainer.strategy
    assert isinstance(plugin, DPStrategy)
    assert plugin._budget.schedule == LinearSchedule(1.5, 0.7)
    assert plugin._bound.schedule == StepSchedule(0.5, 100)
