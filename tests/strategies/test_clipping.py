"""Ways of clipping as arguments of the strategy: what is reported, saved, resumed and refused."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dp import DPStrategy, PrivacyAccountant, PrivacyConfigError
from lightning_dp.cli import command_line
from lightning_dp.gradients import AdaptiveClipping, Clipping
from lightning_dp.strategies.base import CHECKPOINT_KEY
from tests.strategies.helpers import Tiny, fit, flat, loader, strategy, trainer

pytestmark = pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")

BOUNDS = {"net.0": 0.3, "net.2.weight": 0.5, "*": 0.1}


# --- single layers ----------------------------------------------------------------------------------------------------
def test_bounds_for_single_layers_train_and_are_reported_by_their_root() -> None:
    plugin = strategy(max_grad_norm=BOUNDS, clipping="per_layer")
    assert fit(Tiny(), plugin).global_step == 8
    assert plugin.settings().max_grad_norm == pytest.approx(math.hypot(*BOUNDS.values()))
    assert plugin.settings().clipping == "per_layer"


def test_a_layer_without_a_bound_is_refused_before_anything_happens() -> None:
    module = Tiny()
    with pytest.raises(PrivacyConfigError, match=r"no bound for net\.2\.weight, net\.2\.bias"):
        fit(module, strategy(max_grad_norm={"net.0": 1.0}, clipping="per_layer"))
    assert module.calls == 0


def test_several_bounds_and_one_moving_bound_are_refused_together() -> None:
    with pytest.raises(PrivacyConfigError, match="adaptive clipping moves one bound"):
        DPStrategy(eps=3, max_grad_norm=BOUNDS, clipping="adaptive")


# --- adaptive ---------------------------------------------------------------------------------------------------------
def test_an_adaptive_run_charges_the_nominal_noise_and_says_what_gradients_get() -> None:
    config = AdaptiveClipping(count_noise=1.0)
    plugin = strategy(clipping=config, max_grad_norm=0.2)
    fit(Tiny(), plugin, callbacks=[PrivacyAccountant()])
    (entry,) = plugin.ledger.entries
    assert (entry.event.noise_multiplier, entry.steps) == (1.0, 8)
    facts = plugin.settings()
    assert (facts.clipping, facts.max_grad_norm, facts.noise_multiplier) == ("adaptive", 0.2, 1.0)
    assert facts.gradient_noise_multiplier == pytest.approx((1 - 1 / 4) ** -0.5)
    assert plugin.clipping != Clipping(0.2)


def test_the_announcement_tells_both_noises(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fit(Tiny(), strategy(clipping=AdaptiveClipping(count_noise=1.0)), callbacks=[PrivacyAccountant()])
    text = caplog.text + "".join(capsys.readouterr())
    assert "noise multiplier 1 for a whole step (1.155 on its gradients), adaptive clipping from 1;" in text
    assert "multiplier 1 a step, 1.155 on gradients; adaptive clipping from 1" in text


def test_calibrated_noise_is_shared_out_too() -> None:
    plugin = strategy(eps=3, clipping="adaptive")
    fit(Tiny(), plugin)
    assert 2.9 < plugin.privacy_spent().eps <= 3
    raised = plugin.settings().gradient_noise_multiplier
    assert raised is not None
    assert 1 < raised / plugin.noise_multiplier < 1.006


@pytest.mark.parametrize("physical", [None, 3])
def test_a_resumed_run_without_noise_has_the_threshold_of_the_uninterrupted_one(
    physical: int | None, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {
        "noise_multiplier": 0, "seed": 7, "clipping": "adaptive", "physical_batch_size": physical,
    }  # fmt: skip
    whole = strategy(**arguments)
    first = fit(Tiny(), whole)
    half = trainer(strategy(**arguments), max_epochs=1)
    half.fit(Tiny(), loader())
    half.save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)[CHECKPOINT_KEY]
    assert saved["threshold"] == {"max_grad_norm": half.strategy.clipping.max_grad_norm}  # type: ignore[attr-defined]
    resumed = strategy(**arguments)
    second = fit(Tiny(), resumed, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.clipping == whole.clipping != Clipping(1.0)
    assert torch.equal(flat(first.lightning_module), flat(second.lightning_module))


def test_a_second_fit_goes_on_from_the_threshold() -> None:
    plugin = strategy(clipping="adaptive", noise_multiplier=0.0)
    run = fit(Tiny(), plugin, max_epochs=1)
    before = plugin.clipping
    run.fit_loop.max_epochs = 2
    seen = []
    module = Tiny()
    module.on_train_batch_start = lambda *_: seen.append(plugin.engine.clipping)  # type: ignore[method-assign,assignment,union-attr]
    run.fit(module, loader())
    assert seen[0] == before


def test_a_count_without_privacy_left_is_refused_before_the_first_step() -> None:
    module = Tiny()
    with pytest.raises(PrivacyConfigError, match="leaves nothing for the gradients"):
        fit(module, strategy(clipping=AdaptiveClipping(count_noise=0.3)))
    assert module.calls == 0


# --- the command line -------------------------------------------------------------------------------------------------
CONFIG = """
trainer:
  accelerator: cpu
  devices: 1
  logger: false
  strategy:
    class_path: DPStrategy
    init_args:
      eps: 8
{arguments}
model:
  class_path: tests.strategies.helpers.Tiny
data:
  class_path: DigitsDataModule
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("      clipping: adaptive\n      max_grad_norm: 0.5", ("adaptive", 0.5)),
        ("      clipping: {quantile: 0.7, learning_rate: 0.1}", ("adaptive", 1.0)),
        ("      clipping: per_layer\n      max_grad_norm: {net.0: 3, '*': 4}", ("per_layer", 5.0)),
        ("      clipping: per_layer\n      max_grad_norm: 2", ("per_layer", 2.0)),
    ],
)
def test_yaml_says_it_all(
    arguments: str, expected: tuple[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-dp"])
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(arguments=arguments))
    plugin = command_line(["--config", str(path)], run=False).trainer.strategy
    assert isinstance(plugin, DPStrategy)
    assert plugin.clipping.max_grad_norm == expected[1]
    assert (plugin._bound.threshold is not None) == (expected[0] == "adaptive")
    if "0.7" in arguments:
        assert plugin._bound.threshold is not None
        assert plugin._bound.threshold.config == AdaptiveClipping(0.7, 0.1)
