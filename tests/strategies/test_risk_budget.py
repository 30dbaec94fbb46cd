"""A risk in place of eps: calibrated, enforced, resumed and reported like eps."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from lightning_dp import (
    DPStrategy,
    MembershipRisk,
    PrivacyConfigError,
    PrivacyError,
    PrivacyWarning,
    ReconstructionRisk,
)
from lightning_dp.accounting import GaussianEvent, LedgerEntry, LinearSchedule, reconstruction_bound
from lightning_dp.accounting.targets import Target
from tests.strategies.helpers import Tiny, fit, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")

RISKS = [
    ReconstructionRisk(gamma=0.4, kappa=0.02),
    ReconstructionRisk(gamma=0.3),
    MembershipRisk(advantage=0.5),
    MembershipRisk(tpr=0.3, fpr=0.05),
]
GAMMA = ReconstructionRisk(gamma=0.4, kappa=0.02)


def gamma_of(plugin: DPStrategy) -> float:
    """Of what the optimizer did, from the settings and the counted steps alone."""
    s = plugin.settings()
    entries = [LedgerEntry(GaussianEvent(s.noise_multiplier, s.sample_rate), plugin.ledger.steps)]
    return reconstruction_bound(entries, 0.02).gamma


@pytest.mark.parametrize("risk", RISKS, ids=str)
def test_the_planned_run_spends_just_the_risk(risk: Target) -> None:
    plugin = DPStrategy(risk=risk)
    run = fit(Tiny(), plugin, max_epochs=3)
    assert run.global_step == plugin.ledger.steps == 12
    assert not run.should_stop
    target = risk.resolved(64)
    assert 0.98 * target.limit < target.measure(plugin.ledger.entries) <= target.limit
    spent = plugin.privacy_spent()
    assert 0.0 < spent.eps < 50.0
    assert plugin.epsilon() == pytest.approx(spent.eps, rel=1e-6)
    settings = plugin.settings()
    assert settings.eps is None
    assert settings.budget == settings.risk == str(target)


def test_the_bound_is_that_of_the_steps_taken() -> None:
    plugin = DPStrategy(risk=GAMMA)
    fit(Tiny(), plugin, max_epochs=3)
    assert 0.98 * 0.4 < gamma_of(plugin) <= 0.4


def test_a_longer_plan_ends_with_the_risk(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    plugin, module = DPStrategy(risk=GAMMA), Tiny()
    run = fit(module, plugin, max_epochs=2)
    run.fit_loop.max_epochs = 5
    with pytest.warns(PrivacyWarning, match=r"reconstruction gamma <= 0.4 at kappa = 0.02\) does not cover"):
        run.fit(module, loader())
    assert run.should_stop
    assert 8 <= plugin.ledger.steps < 12
    assert gamma_of(plugin) <= 0.4
    assert any("gamma <= 0.4" in m and "is spent after" in m for m in caplog.messages)
    assert any("Differential privacy: reconstruction gamma <= 0.4" in m for m in caplog.messages)
    one_more = reconstruction_bound(
        [LedgerEntry(GaussianEvent(plugin.noise_multiplier, 0.25), plugin.ledger.steps + 1)], 0.02
    )
    assert one_more.gamma > 0.4
    with pytest.raises(PrivacyError, match="gamma <= 0.4"):
        plugin._budget.charge(plugin._position)


def test_a_resumed_run_goes_on_with_what_is_left(tmp_path: Any) -> None:
    first = DPStrategy(risk=GAMMA)
    run = fit(Tiny(), first, max_epochs=4, limit_train_batches=4)
    run.save_checkpoint(tmp_path / "a.ckpt")
    second = DPStrategy(risk=GAMMA)
    fit(Tiny(), second, max_epochs=8, ckpt_path=tmp_path / "a.ckpt")
    assert second.noise_multiplier == first.noise_multiplier
    assert second.ledger.steps >= 16
    assert gamma_of(second) <= 0.4
    # Another limit is not this one: noise is calibrated anew, for what is left.
    third = DPStrategy(risk=ReconstructionRisk(gamma=0.6, kappa=0.02))
    fit(Tiny(), third, max_epochs=8, ckpt_path=tmp_path / "a.ckpt")
    assert third.noise_multiplier != first.noise_multiplier
    target = ReconstructionRisk(gamma=0.6, kappa=0.02)
    assert 0.98 * target.limit < target.measure(third.ledger.entries) <= target.limit
    with pytest.raises(PrivacyConfigError, match="spent already"):
        fit(Tiny(), DPStrategy(risk=ReconstructionRisk(0.1, 0.02)), max_epochs=8, ckpt_path=tmp_path / "a.ckpt")


def test_eps_and_risk_do_not_pass_for_each_other_on_resume(tmp_path: Any) -> None:
    run = fit(Tiny(), DPStrategy(risk=MembershipRisk(advantage=0.3)), max_epochs=1)
    run.save_checkpoint(tmp_path / "a.ckpt")
    plugin = DPStrategy(eps=8)
    fit(Tiny(), plugin, max_epochs=2, ckpt_path=tmp_path / "a.ckpt")
    assert 7.8 < plugin.privacy_spent().eps <= 8


def test_a_noise_schedule_is_calibrated_to_the_risk() -> None:
    plugin = DPStrategy(risk=GAMMA, noise_multiplier_schedule=LinearSchedule(1.5, 0.7))
    fit(Tiny(), plugin, max_epochs=4)
    assert len(plugin.ledger.entries) == 16
    assert 0.98 * 0.4 < reconstruction_bound(plugin.ledger.entries, 0.02).gamma <= 0.4


@pytest.mark.parametrize(
    "arguments", [{"sampling": "shuffle"}, {"sampling": "truncated_poisson", "max_batch_size": 60}], ids=str
)
def test_other_samplings(arguments: dict[str, Any]) -> None:
    plugin = DPStrategy(risk=GAMMA, **arguments)
    fit(Tiny(), plugin, max_epochs=3)
    assert 0.97 * 0.4 < reconstruction_bound(plugin.ledger.entries, 0.02).gamma <= 0.4


def test_training_without_an_end_is_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="max_steps"):
        trainer(DPStrategy(risk=GAMMA), max_epochs=-1).fit(Tiny(), loader())


def test_kappa_of_one_in_n_must_be_reachable() -> None:
    with pytest.raises(PrivacyConfigError, match="not above kappa"):
        fit(Tiny(), DPStrategy(risk=ReconstructionRisk(0.01)))  # 1/64 is more than that


def test_from_yaml(tmp_path: Any) -> None:
    pytest.importorskip("jsonargparse")
    import yaml
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--strategy", type=DPStrategy)
    config = tmp_path / "c.yaml"
    config.write_text(
        "strategy:\n  class_path: lightning_dp.DPStrategy\n  init_args:\n    risk:\n"
        "      class_path: lightning_dp.ReconstructionRisk\n      init_args: {gamma: 0.4, kappa: 0.02}\n"
    )
    parsed = parser.parse_object(yaml.safe_load(config.read_text()))
    plugin = parser.instantiate_classes(parsed).strategy
    assert isinstance(plugin, DPStrategy)
    fit(Tiny(), plugin, max_epochs=2)
    assert plugin.settings().risk == "reconstruction gamma <= 0.4 at kappa = 0.02"
