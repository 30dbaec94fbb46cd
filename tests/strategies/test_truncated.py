"""A hard cap on the batch: never more units in a step, and a delta that pays for the cut."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_dp import DPStrategy, PrivacyConfigError, PrivacyWarning
from lightning_dp.accounting import GaussianEvent, LedgerEntry, get_accountant
from lightning_dp.sampling import PoissonSampler, TruncatedPoissonSampler, key_from_seed
from lightning_dp.strategies.messages import announcement
from tests.strategies.helpers import Tiny, fit, flat, loader, strategy

pytestmark = pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")

CUT: dict[str, Any] = {"sampling": "truncated_poisson", "max_batch_size": 40}


def tail(n: int = 64, b: int = 16, most: int = 40) -> float:
    return TruncatedPoissonSampler(n, b, key_from_seed(0), most).tail


def test_no_step_is_larger_than_the_cap() -> None:
    """At the expected size itself almost every second draw is cut; without noise nothing else stops such a run."""
    module = Tiny()
    plugin = strategy(
        noise_multiplier=0, seed=7, sampling="truncated_poisson", max_batch_size=36, delta=0.01, self_check=False
    )
    fit(module, plugin, loader(64, 32), max_steps=1)
    key = key_from_seed(7)
    whole, cut = PoissonSampler(64, 32, key), TruncatedPoissonSampler(64, 32, key, 36)
    sizes = [(len(whole.draw(step)), len(cut.draw(step))) for step in range(200)]
    assert sum(before > 36 for before, _ in sizes) > 10
    assert all(after == min(before, 36) for before, after in sizes)
    assert module.sizes == [sizes[0][1]]


def test_a_run_whose_draws_are_never_cut_is_the_poisson_run() -> None:
    results = []
    for arguments in ({}, CUT):
        module = Tiny()
        fit(module, strategy(noise_multiplier=0, seed=7, **arguments))
        results.append(flat(module))
    assert torch.equal(*results)


def test_the_gradient_is_divided_by_the_expected_batch_size_also_when_cut() -> None:
    """The denominator is public: it is B, neither the drawn nor the kept number."""
    found = []
    for most in (16, 40):
        module = Tiny(lr=1.0)
        before = flat(module)
        plugin = DPStrategy(
            noise_multiplier=0,
            seed=11,
            sampling="truncated_poisson",
            max_batch_size=most,
            max_grad_norm=1e-3,
            delta=1e-3,
        )
        fit(module, plugin, max_steps=1)
        found.append((sum(module.sizes[-1:]), float((flat(module) - before).norm())))
        assert plugin.settings().expected_batch_size == 16
    for size, moved in found:
        assert moved <= size * 1e-3 / 16 * (1 + 1e-4)


def test_ledger_settings_and_reports_know_the_cut() -> None:
    plugin = strategy(delta=1e-4, **CUT)
    run = fit(Tiny(), plugin)
    event = GaussianEvent(1.0, 0.25, "truncated_poisson", tail())
    assert plugin.ledger.entries == (LedgerEntry(event, 8),)
    assert run.global_step == 8
    assert plugin.settings().sampling == plugin.privacy_spent().sampling == "truncated_poisson"
    poisson = get_accountant("pld")
    assert plugin.privacy_spent().eps == poisson.epsilon([LedgerEntry(GaussianEvent(1.0, 0.25), 8)], 1e-4 - 8 * tail())
    assert plugin.epsilon() == plugin.privacy_spent().eps
    assert "truncated_poisson sampling" in announcement(plugin.settings(), 1, 8)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_calibration_pays_for_the_cut_and_keeps_the_budget(accountant: Any) -> None:
    plugin = DPStrategy(eps=2, delta=1e-4, accountant=accountant, **CUT)
    fit(Tiny(), plugin)
    assert plugin.ledger.steps == 8
    assert 1.96 < plugin.privacy_spent().eps <= 2


@pytest.mark.parametrize("budget", [{"eps": 3.0}, {"noise_multiplier": 1.0}], ids=str)
def test_a_cap_that_is_too_low_is_refused_with_one_that_works(budget: dict[str, float]) -> None:
    arguments: dict[str, Any] = {"sampling": "truncated_poisson", "delta": 1e-4, **budget}
    module, plugin = Tiny(), DPStrategy(max_batch_size=20, **arguments)
    with pytest.raises(PrivacyConfigError, match=r"Use max_batch_size=(\d+)") as caught:
        fit(module, plugin)
    assert module.calls == plugin.ledger.steps == 0
    enough = int(str(caught.value).split("Use max_batch_size=")[1].split(" ")[0])
    assert 8 * tail(most=enough) <= 1e-4 / 100
    other = DPStrategy(max_batch_size=enough, **arguments)
    fit(Tiny(), other)
    assert other.ledger.steps == 8
    assert math.isfinite(other.privacy_spent().eps)


@pytest.mark.parametrize(
    "arguments",
    [
        {"sampling": "truncated_poisson"},
        {"max_batch_size": 40},
        {"sampling": "shuffle", "max_batch_size": 40},
        {"sampling": "truncated"},
    ],
    ids=str,
)
def test_half_a_setting_is_refused_at_once(arguments: dict[str, Any]) -> None:
    with pytest.raises(PrivacyConfigError, match="max_batch_size|unknown sampling"):
        DPStrategy(eps=8, **arguments)


def test_a_cap_below_the_batch_size_is_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="max_batch_size"):
        fit(Tiny(), strategy(sampling="truncated_poisson", max_batch_size=15))


def test_the_cap_counts_units() -> None:
    """Four samples a patient: 16 patients, 4 a step on average, and never more than 14 of them."""
    owners = [i // 4 for i in range(64)]
    plugin = strategy(unit=owners, sampling="truncated_poisson", max_batch_size=14, delta=1e-3, seed=3)
    module = Tiny()
    fit(module, plugin, loader(64, 4), max_epochs=3)
    assert plugin.ledger.entries == (LedgerEntry(GaussianEvent(1.0, 0.25, "truncated_poisson", tail(16, 4, 14)), 12),)
    assert max(module.sizes) <= 14 * 4
    assert all(size % 4 == 0 for size in module.sizes[-12:])


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize("step", [3, 4])
def test_a_resumed_run_is_the_uninterrupted_one(step: int, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"noise_multiplier": 0, "seed": 7, "physical_batch_size": 5, "delta": 1e-4, **CUT}
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, resumed = Tiny(), Tiny()
    first, second = strategy(**arguments), strategy(**arguments)
    fit(whole, first, callbacks=[saver], enable_checkpointing=True)
    fit(resumed, second, ckpt_path=tmp_path / f"step={step}.ckpt")
    assert torch.equal(flat(whole), flat(resumed))
    assert first.ledger.entries == second.ledger.entries
    assert second.ledger.steps == 8


def test_more_than_everybody_is_no_cut() -> None:
    plugin = strategy(sampling="truncated_poisson", max_batch_size=65)
    with pytest.warns(PrivacyWarning, match="exceeds"):
        fit(Tiny(), plugin, loader(64, 100), max_epochs=1)
    assert plugin.ledger.entries == (LedgerEntry(GaussianEvent(1.0, 1.0, "truncated_poisson", 0.0), 1),)
    assert np.isfinite(plugin.privacy_spent().eps)
