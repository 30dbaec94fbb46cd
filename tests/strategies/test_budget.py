"""The budget is never exceeded, training stops there and says so, and every step is charged before it is taken."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader

from lightning_dp import PrivacyConfigError, PrivacyWarning
from lightning_dp.accounting import GaussianEvent, LedgerEntry, calibrate_noise_multiplier, get_accountant
from tests.strategies.helpers import Tiny, dataset, fit, flat, loader, strategy, trainer

pytestmark = pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What rank_zero_info says."""
    caplog.set_level(logging.INFO)
    return caplog


def direct(plugin: Any) -> float:
    """Eps of what the optimizer did, computed from the settings and the counted steps alone."""
    s = plugin.settings()
    event = GaussianEvent(s.noise_multiplier, s.sample_rate, s.sampling)
    return get_accountant(s.accountant).epsilon([LedgerEntry(event, plugin.ledger.steps)], s.delta)


# --- calibration ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("eps", [0.5, 3.0, 50.0])
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_the_planned_run_spends_just_the_budget(eps: float, accountant: Any) -> None:
    plugin = strategy(eps=eps, accountant=accountant)
    run = fit(Tiny(), plugin, max_epochs=3)
    spent = plugin.privacy_spent()
    assert run.global_step == plugin.ledger.steps == 12
    assert 0.98 * eps < spent.eps <= eps
    assert plugin.epsilon() == pytest.approx(spent.eps, rel=1e-6)
    assert not run.should_stop


@pytest.mark.parametrize(
    "plan, steps",
    [
        ({"max_epochs": 3, "limit_train_batches": 2}, 6),
        ({"max_epochs": 4, "limit_train_batches": 0.5}, 8),
        ({"max_epochs": 10, "max_steps": 5}, 5),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"fast_dev_run": 2}, 2),
    ],
    ids=str,
)
def test_the_plan_follows_the_trainer(plan: dict[str, Any], steps: int) -> None:
    plugin = strategy(eps=2)
    run = fit(Tiny(), plugin, **plan)
    assert run.global_step == plugin.ledger.steps == steps
    assert 0.98 * 2 < plugin.privacy_spent().eps <= 2


def test_everything_can_be_read_after_fit() -> None:
    plugin = strategy(eps=4, delta=1e-4, max_grad_norm=0.7, clipping="per_layer")
    fit(Tiny(), plugin)
    s, spent = plugin.settings(), plugin.privacy_spent()
    expected = calibrate_noise_multiplier(eps=4, delta=1e-4, sample_rate=0.25, steps=8)
    assert plugin.noise_multiplier == s.noise_multiplier == spent.noise_multiplier == pytest.approx(expected)
    assert (s.mechanism, s.delta, s.max_grad_norm, s.clipping, s.sampling) == (
        "dp_sgd",
        1e-4,
        0.7,
        "per_layer",
        "poisson",
    )
    assert (s.sample_rate, s.expected_batch_size, s.dataset_size, s.accountant, s.eps) == (0.25, 16, 64, "pld", 4)
    assert spent.steps == 8
    assert spent.relation == "add_or_remove_one"
    assert spent.eps == pytest.approx(direct(plugin))
    assert spent.trade_off() is not None


def test_the_ledger_is_one_object_from_the_start() -> None:
    plugin = strategy()
    ledger = plugin.ledger
    fit(Tiny(), plugin)
    assert plugin.ledger is ledger
    assert ledger.steps == 8


def test_the_run_announces_eps_with_all_that_qualifies_it(said: pytest.LogCaptureFixture) -> None:
    fit(Tiny(), strategy(eps=4))
    (line,) = [m for m in said.messages if m.startswith("Differential privacy")]
    for fact in ("eps <= 4", "delta=0.0015625", "add-or-remove-one", "poisson sampling of 64", "batch size 16", "pld"):
        assert fact in line


def test_the_noise_is_known_before_the_first_step() -> None:
    class Asks(Callback):
        def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
            self.noise = trainer.strategy.noise_multiplier
            self.rate = trainer.strategy.settings().sample_rate

    asks, plugin = Asks(), strategy(eps=4)
    fit(Tiny(), plugin, callbacks=[asks])
    assert (asks.noise, asks.rate) == (plugin.noise_multiplier, 0.25)


class Meter(Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[float, float, int, int]] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        plugin = trainer.strategy
        self.seen.append((plugin.epsilon(), plugin.privacy_spent().eps, plugin.ledger.steps, trainer.global_step))


@pytest.mark.parametrize("budget", [{"eps": 3.0}, {"noise_multiplier": 0.9}], ids=str)
def test_eps_grows_step_by_step_and_is_an_upper_bound(budget: dict[str, float]) -> None:
    meter = Meter()
    fit(Tiny(), strategy(**budget), callbacks=[meter])
    shown, exact, ledger, steps = zip(*meter.seen, strict=True)
    assert ledger == steps == tuple(range(1, 9))
    assert all(a < b for a, b in zip(exact, exact[1:], strict=False))
    assert all(a <= b for a, b in zip(shown, shown[1:], strict=False))
    assert all(s >= e * (1 - 1e-9) for s, e in zip(shown, exact, strict=True))
    assert max(shown) <= budget.get("eps", math.inf)


# --- the end of the budget --------------------------------------------------------------------------------------------
def test_a_second_fit_stops_at_once_and_says_so(said: pytest.LogCaptureFixture) -> None:
    module, plugin = Tiny(), strategy(eps=2)
    run = fit(module, plugin)
    before, calls, eps = flat(module), module.calls, plugin.privacy_spent().eps
    run.fit_loop.max_epochs = 10
    run.fit(module, loader())
    assert torch.equal(flat(module), before)
    assert module.calls == calls
    assert plugin.privacy_spent().eps == eps <= 2
    assert any("budget eps=2" in m and "spent" in m for m in said.messages)


def test_a_plan_that_grows_on_the_way_still_ends_with_the_budget() -> None:
    """Somebody raises max_epochs during the run: the noise was calibrated to fewer steps, so the run ends after them."""

    class Extends(Callback):
        def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
            trainer.fit_loop.max_epochs = 20

    plugin = strategy(eps=2)
    run = fit(Tiny(), plugin, callbacks=[Extends()])
    assert run.global_step == plugin.ledger.steps == 8
    assert 0.98 * 2 < plugin.privacy_spent().eps <= 2


def test_a_second_fit_goes_on_with_what_is_left() -> None:
    module, plugin = Tiny(), strategy(eps=2)

    class Halt(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop |= trainer.global_step == 3

    run = fit(module, plugin, callbacks=[Halt()], max_epochs=2)
    assert plugin.ledger.steps == run.global_step == 3
    noise = plugin.noise_multiplier
    run.fit_loop.max_epochs = 50
    run.fit(module, loader())
    assert plugin.noise_multiplier == noise
    assert plugin.ledger.steps == run.global_step == 8
    assert 0.98 * 2 < plugin.privacy_spent().eps <= 2


@pytest.mark.parametrize(
    "least", [{"min_epochs": 30}, {"min_steps": 100}, {"min_epochs": 30, "min_steps": 100}], ids=str
)
@pytest.mark.parametrize("sampling", ["poisson", "shuffle", "balls_in_bins"])
def test_a_resumed_run_stops_before_it_overshoots(
    least: dict[str, int], sampling: Any, tmp_path: Any, said: pytest.LogCaptureFixture
) -> None:
    first = fit(Tiny(), strategy(eps=2, sampling=sampling), max_epochs=3)
    first.save_checkpoint(tmp_path / "x.ckpt")
    plugin, module = strategy(eps=2, sampling=sampling), Tiny()
    run = fit(module, plugin, max_epochs=40, ckpt_path=tmp_path / "x.ckpt", **least)
    assert plugin.noise_multiplier == first.strategy.noise_multiplier
    assert 0.98 * 2 < plugin.privacy_spent().eps <= 2
    assert plugin.ledger.steps == first.strategy.ledger.steps
    assert run.global_step == 12
    assert module.calls == 0
    assert any("budget eps=2" in m for m in said.messages)


def test_a_larger_budget_on_resume_goes_on_with_new_noise(tmp_path: Any) -> None:
    first = fit(Tiny(), strategy(eps=2))
    first.save_checkpoint(tmp_path / "x.ckpt")
    plugin = strategy(eps=4)
    run = fit(Tiny(), plugin, max_epochs=4, ckpt_path=tmp_path / "x.ckpt")
    assert run.global_step == plugin.ledger.steps == 16
    assert 0.97 * 4 < plugin.privacy_spent().eps <= 4
    assert len(plugin.ledger.entries) == 2


def test_a_smaller_budget_on_resume_is_refused_or_takes_no_step(tmp_path: Any) -> None:
    first = fit(Tiny(), strategy(eps=4))
    first.save_checkpoint(tmp_path / "x.ckpt")
    module = Tiny()
    with pytest.raises(PrivacyConfigError, match="spent already"):
        fit(module, strategy(eps=1), max_epochs=4, ckpt_path=tmp_path / "x.ckpt")
    assert module.calls == 0


def test_given_noise_has_no_end() -> None:
    plugin = strategy(noise_multiplier=0.3)
    run = fit(Tiny(), plugin, max_epochs=-1, max_steps=40)
    assert run.global_step == plugin.ledger.steps == 40
    assert plugin.privacy_spent().eps == pytest.approx(direct(plugin))
    assert plugin.privacy_spent().eps > 50


def test_given_noise_may_train_without_a_plan() -> None:
    class Halt(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop |= trainer.global_step == 9

    plugin = strategy()
    assert fit(Tiny(), plugin, max_epochs=-1, callbacks=[Halt()]).global_step == plugin.ledger.steps == 9


# --- what is charged --------------------------------------------------------------------------------------------------
def test_early_stopping_counts_only_the_steps_taken() -> None:
    class Stuck(Tiny):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", 1.0)

    plugin = strategy(eps=5)
    run = trainer(plugin, max_epochs=20, callbacks=[EarlyStopping("val_loss", patience=2)])
    run.fit(Stuck(), loader(), DataLoader(dataset(16), batch_size=16))
    assert run.global_step == plugin.ledger.steps == 12
    assert plugin.privacy_spent().eps == pytest.approx(direct(plugin))
    assert plugin.privacy_spent().eps < 0.7 * 5


def test_a_step_is_charged_before_its_gradient_exists() -> None:
    ledger_in_step: list[int] = []

    class Fails(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            ledger_in_step.append(self.trainer.strategy.ledger.steps)
            if batch_idx == 3:
                raise RuntimeError("mine")
            return super().training_step(batch, batch_idx)

    plugin = strategy(self_check=False)
    run = trainer(plugin)
    with pytest.raises(RuntimeError, match="mine"):
        run.fit(Fails(), loader())
    assert ledger_in_step == [1, 2, 3, 4]
    assert plugin.ledger.steps == 4
    assert run.global_step == 3


def test_a_draw_is_not_used_again_after_an_interruption() -> None:
    """The gradient of the interrupted step was out already (a hook saw it): its draw must not feed a second one."""

    class Fails(Tiny):
        fail = True

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.fail and self.calls == 2:
                raise RuntimeError("mine")

    module, plugin = Fails(), strategy(seed=7)
    run = trainer(plugin, max_epochs=3)
    with pytest.raises(RuntimeError, match="mine"):
        run.fit(module, loader())
    used = list(module.sizes)
    module.fail = False
    run.fit(module, loader())
    from lightning_dp.sampling import PoissonSampler, following_key, key_from_seed

    sampler = PoissonSampler(64, 16, key_from_seed(7))
    assert used == [len(sampler.draw(step)) for step in range(2)]
    sampler = PoissonSampler(64, 16, following_key(key_from_seed(7)))
    assert module.sizes[2:] == [len(sampler.draw(step)) for step in range(2, module.calls)]
    assert plugin.ledger.steps == module.calls


def test_evaluation_spends_nothing() -> None:
    plugin = strategy()
    run = fit(Tiny(), plugin)
    held_out = DataLoader(dataset(16), batch_size=16)
    run.validate(run.lightning_module, held_out, verbose=False)
    run.test(run.lightning_module, held_out, verbose=False)
    run.predict(run.lightning_module, held_out)
    assert plugin.ledger.steps == 8


# --- shuffled batches -------------------------------------------------------------------------------------------------
def test_shuffling_is_charged_once_per_pass_and_without_amplification() -> None:
    plugin, poisson = strategy(sampling="shuffle"), strategy()
    module = Tiny()
    run = fit(module, plugin, max_epochs=3)
    fit(Tiny(), poisson, max_epochs=3)
    assert run.global_step == 12
    assert plugin.ledger.steps == 3
    assert plugin.settings().sample_rate == 1.0
    assert plugin.privacy_spent().eps == pytest.approx(
        get_accountant("pld").epsilon([LedgerEntry(GaussianEvent(1.0), 3)], 1 / 640)
    )
    assert plugin.privacy_spent().eps > 1.5 * poisson.privacy_spent().eps
    assert sum(module.sizes) == 3 * 64  # each sample once a pass


def test_balls_in_bins_are_charged_once_per_pass_and_amplified() -> None:
    plugin, poisson, shuffled = strategy(sampling="balls_in_bins"), strategy(), strategy(sampling="shuffle")
    module = Tiny()
    for each, plug in ((module, plugin), (Tiny(), poisson), (Tiny(), shuffled)):
        run = fit(each, plug, max_epochs=3)
        assert run.global_step == 12
    assert plugin.ledger.entries == (LedgerEntry(GaussianEvent(1.0, sampling="balls_in_bins", bins=4), 3),)
    assert (plugin.settings().sample_rate, plugin.settings().bins) == (1.0, 4)
    assert sum(module.sizes) == 3 * 64  # each sample once a pass
    assert plugin.privacy_spent().eps < poisson.privacy_spent().eps < shuffled.privacy_spent().eps
    assert "balls-in-bins sampling, passes of 4 steps" in str(plugin.privacy_spent())
    assert "; 3 passes)" in str(plugin.privacy_spent())


@pytest.mark.parametrize("sampling", ["shuffle", "balls_in_bins"])
def test_a_run_of_passes_spends_just_the_budget(sampling: Any) -> None:
    plugin = strategy(eps=3, sampling=sampling)
    run = fit(Tiny(), plugin, max_epochs=5)
    assert run.global_step == 20
    assert plugin.ledger.steps == 5
    assert 0.98 * 3 < plugin.privacy_spent().eps <= 3


@pytest.mark.parametrize("sampling", ["shuffle", "balls_in_bins"])
def test_a_pass_under_another_draw_is_charged_again(sampling: Any) -> None:
    """Half a pass at one batch size, then on at another: a sample may come twice within 'pass 0'."""
    module, plugin = Tiny(), strategy(sampling=sampling)
    run = fit(module, plugin, loader(64, 16), max_epochs=-1, max_steps=2)
    assert plugin.ledger.steps == 1
    run.fit_loop.epoch_loop.max_steps = 4
    run.fit(module, loader(64, 4))
    assert plugin.ledger.steps == 2


def test_reloading_the_loader_does_not_disturb_the_pass() -> None:
    class Reloads(Tiny):
        def train_dataloader(self) -> Any:
            return loader()

    plugin = strategy(sampling="shuffle")
    run = trainer(plugin, max_epochs=3, reload_dataloaders_every_n_epochs=1)
    run.fit(Reloads())
    assert run.global_step == 12
    assert plugin.ledger.steps == 3


@pytest.mark.parametrize("sampling", ["shuffle", "balls_in_bins"])
def test_a_loader_that_is_reloaded_within_a_pass_opens_another(sampling: Any) -> None:
    """Its rows may stand in another order: who took part already may come again, in what would be one paid pass."""

    class Reorders(Tiny):
        def train_dataloader(self) -> Any:
            return loader()

    plugin = strategy(sampling=sampling)
    run = trainer(plugin, max_epochs=3, limit_train_batches=1, reload_dataloaders_every_n_epochs=1)
    run.fit(Reorders())
    assert run.global_step == 3
    assert plugin.ledger.steps == 3  # and not one pass of 4 steps


def test_no_two_samplers_of_a_run_share_their_draws() -> None:
    """Passes of 4 steps, then of 16: those of one number would be one draw, rounded in two ways."""
    plugin, module = strategy(sampling="balls_in_bins"), Tiny()
    run = fit(module, plugin, loader(64, 16), max_epochs=2)
    first = plugin._sampler
    run.fit_loop.epoch_loop.max_steps = 16
    run.fit_loop.max_epochs = 3
    run.fit(module, loader(64, 4))
    second = plugin._sampler
    assert first is not None
    assert second is not None
    assert (first.steps_per_epoch, second.steps_per_epoch) == (4, 16)

    def bins(sampler: Any, number: int) -> Any:
        steps, found = sampler.steps_per_epoch, torch.empty(64, dtype=torch.long)
        for place in range(steps):
            found[torch.from_numpy(sampler.draw(number * steps + place))] = place
        return found

    agree = (bins(second, 1) // 4 == bins(first, 1)).float().mean()
    assert agree < 0.6  # 1/4 by chance: 64 tosses reach 0.6 with a chance of 1e-8, and a shared draw has 1


def test_a_reloaded_data_set_of_another_size_is_charged_at_its_own_rate() -> None:
    class Grows(Tiny):
        def train_dataloader(self) -> Any:
            return loader(64 if self.current_epoch == 0 else 32, 16)

    plugin = strategy()
    run = trainer(plugin, max_epochs=2, reload_dataloaders_every_n_epochs=1)
    run.fit(Grows())
    assert [(e.event.sample_rate, e.steps) for e in plugin.ledger.entries] == [(0.25, 4), (0.5, 2)]


def test_a_plan_beyond_the_budget_is_announced() -> None:
    plugin = strategy(eps=2.0)
    trained = fit(Tiny(), plugin, max_steps=4)
    state = plugin.state_dict()
    again = strategy(eps=2.0)
    again.load_state_dict(state)
    with pytest.warns(PrivacyWarning, match="does not cover the last 6 of the planned steps"):
        more = fit(Tiny(), again, max_steps=6)
    assert trained.global_step == 4
    assert more.global_step == 0
