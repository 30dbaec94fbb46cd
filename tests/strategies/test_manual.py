"""Manual optimisation: what each optimizer gets, what a draw is charged, and which ways of stepping are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp import DPStrategy, PrivacyAccountant, PrivacyError
from lightning_dp.accounting import GaussianEvent, LedgerEntry, get_accountant
from lightning_dp.strategies.manual import reaches
from tests.strategies.gan import DRAWN, GAN, LATENT, clipped_mean, discriminator_losses, generator_losses
from tests.strategies.helpers import Tiny, fit, flat, hooks, loader, strategy, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
]

EXACT: dict[str, Any] = {"noise_multiplier": 0, "seed": 7, "max_grad_norm": 0.3}


def post(**arguments: Any) -> DPStrategy:
    return strategy(post_processing=["generator"], **arguments)


# --- the gradients ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("toggle", [False, True])
@pytest.mark.parametrize("data", [lambda: loader(64, 16), lambda: loader(30, 1)], ids=["usual", "mostly empty"])
def test_the_discriminator_is_clipped_per_sample_and_the_generator_is_not(
    toggle: bool, data: Callable[[], Any]
) -> None:
    """Against a plain loop, on copies of the networks as they were at each step."""
    module, batches = GAN(toggle), data()
    fit(module, post(**EXACT), batches, max_epochs=1)
    for step, gradient in enumerate(module.seen["discriminator"]):
        discriminator, generator, x, z = module.twins[2 * step]
        expected = clipped_mean(
            discriminator, discriminator_losses(discriminator, generator, x, z), 0.3, batches.batch_size
        )
        if bool(gradient.any()):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
        else:  # an empty draw: the loss was a stand-in's
            assert len(x) == 1
    for step, gradient in enumerate(module.seen["generator"]):
        discriminator, generator, _, z = module.twins[2 * step + 1]
        (loss,) = [generator_losses(discriminator, generator, z).mean()]
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(generator.parameters()))])
        torch.testing.assert_close(gradient, expected)
    assert len(module.seen["generator"]) == len(module.seen["discriminator"]) == len(module.twins) // 2


def test_a_private_generator_is_clipped_per_sample_too() -> None:
    module = GAN(toggle=True, private=True)
    fit(module, strategy(**EXACT))
    for step, gradient in enumerate(module.seen["generator"]):
        discriminator, generator, _, z = module.twins[2 * step + 1]
        expected = clipped_mean(generator, generator_losses(discriminator, generator, z), 0.3, 16)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    for step, gradient in enumerate(module.seen["discriminator"]):
        discriminator, generator, x, z = module.twins[2 * step]
        expected = clipped_mean(discriminator, discriminator_losses(discriminator, generator, x, z), 0.3, 16)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_a_closure_is_another_way_to_say_the_same() -> None:
    class Closures(GAN):
        def discriminator_step(self, optimizer: Any, x: Tensor) -> None:
            z = torch.randn(len(x), LATENT)
            with optimizer.toggle_model():
                optimizer.step(closure=lambda: self.manual_backward(self.discriminator_loss(x, z)))

    plain, closures = GAN(), Closures()
    for module in (plain, closures):
        torch.manual_seed(3)
        fit(module, post(**EXACT))
    assert torch.equal(flat(plain), flat(closures))


def test_patients_are_units_of_a_private_discriminator() -> None:
    """A fake for each row; the rows of one patient, real and fake, are clipped together."""
    plugin = post(unit=[i // 4 for i in range(64)], max_rows_per_unit=2, max_grad_norm=0.3)
    module = GAN()
    assert fit(module, plugin, loader(64, 4)).global_step > 0
    assert plugin.settings().dataset_size == 16


def test_one_optimizer_by_hand_is_the_automatic_run() -> None:
    class ByHand(Tiny):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    one, other = Tiny(momentum=0.9), ByHand(momentum=0.9)
    plugins = [strategy(**EXACT), strategy(**EXACT)]
    for module, plugin in zip((one, other), plugins, strict=True):
        fit(module, plugin)
    torch.testing.assert_close(flat(one), flat(other))
    assert plugins[0].ledger.entries == plugins[1].ledger.entries


# --- what it costs ----------------------------------------------------------------------------------------------------
class Silent(GAN):
    """Losses without gradient: what an optimizer gets is its noise."""

    def __init__(self, private: bool) -> None:
        super().__init__(toggle=True, private=private)
        self.generator, self.discriminator = nn.Linear(LATENT, 6000), nn.Linear(6000, 1)

    def discriminator_step(self, optimizer: Any, x: Tensor) -> None:
        super().discriminator_step(optimizer, x.repeat(1, 1000) * 0.0)

    def discriminator_loss(self, x: Tensor, z: Tensor) -> Tensor:
        return self.discriminator(x).mean() * 0.0

    def generator_step(self, optimizer: Any, x: Tensor) -> None:
        if not self.private:
            return
        self.toggle_optimizer(optimizer)
        self.manual_backward(self.generator(torch.randn(len(x), LATENT)).mean() * 0.0)
        optimizer.step()
        self.untoggle_optimizer(optimizer)


@pytest.mark.parametrize(("private", "factor"), [(False, 1.0), (True, math.sqrt(2))])
def test_optimizers_share_the_event_of_their_draw(private: bool, factor: float) -> None:
    """Two releases on one draw get sqrt(2) times the noise each, and the draw is charged once."""
    module = Silent(private)
    plugin = strategy(max_grad_norm=0.5, self_check=False) if private else post(max_grad_norm=0.5, self_check=False)
    run = fit(module, plugin)
    assert plugin.ledger.entries == (LedgerEntry(GaussianEvent(1.0, 0.25), 8),)
    assert run.global_step == (16 if private else 8)
    for name in ("generator", "discriminator") if private else ("discriminator",):
        noise = torch.cat(module.seen[name])
        assert float(noise.std()) == pytest.approx(factor * 0.5 / 16, rel=0.03), name
    facts = plugin.settings()
    assert facts.noise_multiplier == 1.0
    assert facts.gradient_noise_multiplier == (pytest.approx(math.sqrt(2)) if private else None)


@pytest.mark.parametrize(("z", "eps"), [(0.7, 0.5), (1.0, 0.5), (3.0, 0.03)])
def test_releases_on_one_draw_are_not_releases_on_two(z: float, eps: float) -> None:
    """Why a draw is one event: the joint of two releases costs more than two independently subsampled ones.

    The joint privacy loss is checked against numerical integration over two coordinates.
    """
    q, split = 0.05, math.sqrt(2) * z
    grid = torch.linspace(-12, 13, 1501, dtype=torch.float64) * split
    density = torch.distributions.Normal(0.0, split)
    without = density.log_prob(grid)[:, None] + density.log_prob(grid)[None, :]
    shifted = density.log_prob(grid - 1)[:, None] + density.log_prob(grid - 1)[None, :]
    with_unit = (1 - q) * without.exp() + q * shifted.exp()
    cell = float(grid[1] - grid[0]) ** 2
    delta = float((with_unit - math.exp(eps) * without.exp()).clamp(min=0).sum()) * cell
    exact = get_accountant("pld")
    joint = exact.delta([LedgerEntry(GaussianEvent(z, q), 1)], eps)
    assert delta * (1 - 1e-4) <= joint <= delta * 1.03  # quadrature is good to five digits
    naive = exact.delta([LedgerEntry(GaussianEvent(split, q), 2)], eps)
    assert naive < delta


@pytest.mark.parametrize("private", [False, True])
def test_a_budget_holds(private: bool) -> None:
    plugin = strategy(eps=3) if private else post(eps=3)
    run = fit(GAN(toggle=private, private=private), plugin)
    assert run.global_step == 16
    assert plugin.ledger.steps == 8
    assert 0.98 * 3 < plugin.privacy_spent().eps <= 3
    assert not run.should_stop
    run.fit_loop.max_epochs = 20
    run.fit(run.lightning_module, loader())
    assert plugin.privacy_spent().eps <= 3
    assert run.should_stop


def test_steps_of_every_optimizer_count_for_max_steps() -> None:
    plugin = post(eps=3)
    run = fit(GAN(), plugin, max_epochs=-1, max_steps=10)
    assert run.global_step == 10
    assert plugin.ledger.steps == 5
    assert 0.98 * 3 < plugin.privacy_spent().eps <= 3


def test_a_generator_on_every_other_batch_and_schedulers_by_hand() -> None:
    class Rare(GAN):
        def configure_optimizers(self) -> Any:
            optimizers = super().configure_optimizers()
            return optimizers, [torch.optim.lr_scheduler.StepLR(optimizers[1], 1, 0.5)]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            opt_g, opt_d = self.optimizers()
            self.discriminator_step(opt_d, batch[0])
            self.lr_schedulers().step()
            if batch_idx % 2 == 0:
                self.generator_step(opt_g, batch[0])

    module, plugin = Rare(), post()
    run = fit(module, plugin)
    assert (len(module.seen["discriminator"]), len(module.seen["generator"])) == (8, 4)
    assert plugin.ledger.steps == 8
    assert run.optimizers[1].param_groups[0]["lr"] == pytest.approx(0.2 * 0.5**8)  # the self-check stepped nothing


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    class Repeatable(GAN):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            torch.manual_seed(100 * self.current_epoch + batch_idx)

    whole, parts = Repeatable(), Repeatable()
    plugin = post(**EXACT)
    fit(whole, plugin)
    half = trainer(post(**EXACT), max_epochs=1)
    half.fit(Repeatable(), loader())
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = post(**EXACT)
    fit(parts, resumed, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(flat(whole), flat(parts))
    assert resumed.ledger.entries == plugin.ledger.entries
    assert resumed.ledger.steps == 8


# --- nothing is left, everything is said ------------------------------------------------------------------------------
def test_the_module_and_its_optimizers_are_left_as_they_were() -> None:
    module = GAN(toggle=True)
    run = fit(module, post())
    assert hooks(module) == []
    assert all(p.requires_grad for p in module.parameters())
    for optimizer in run.optimizers:
        assert not optimizer._optimizer_step_pre_hooks


def test_reports_name_what_was_declared(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    accountant = PrivacyAccountant()
    fit(GAN(), post(), callbacks=[accountant])
    assert "trained WITHOUT noise: generator" in caplog.text
    assert accountant.releases[0].what == "parameters declared as post-processing (generator)"


# --- what is stopped --------------------------------------------------------------------------------------------------
class TwoBackwards(GAN):
    def discriminator_step(self, optimizer: Any, x: Tensor) -> None:
        self.manual_backward(F.softplus(-self.discriminator(x)).mean())
        self.manual_backward(
            F.softplus(self.discriminator(self.generator(torch.randn(len(x), LATENT)).detach())).mean()
        )
        optimizer.step()


class NoBackward(GAN):
    def discriminator_step(self, optimizer: Any, x: Tensor) -> None:
        optimizer.step()


class TwoSteps(GAN):
    def discriminator_step(self, optimizer: Any, x: Tensor) -> None:
        super().discriminator_step(optimizer, x)
        super().discriminator_step(optimizer, x)


class SecondStepAlone(GAN):
    def discriminator_step(self, optimizer: Any, x: Tensor) -> None:
        super().discriminator_step(optimizer, x)
        optimizer.step()


class NoStep(GAN):
    def discriminator_step(self, optimizer: Any, x: Tensor) -> None:
        self.manual_backward(self.discriminator_loss(x, torch.randn(len(x), LATENT)))


class RawStep(GAN):
    def discriminator_step(self, optimizer: Any, x: Tensor) -> None:
        super().discriminator_step(optimizer, x)
        optimizer.optimizer.step()


class NotDetached(GAN):
    def discriminator_loss(self, x: Tensor, z: Tensor) -> Tensor:
        return (F.softplus(-self.discriminator(x)) + F.softplus(self.discriminator(self.generator(z)))).mean()


class LateToggle(GAN):
    def discriminator_step(self, optimizer: Any, x: Tensor) -> None:
        loss = self.discriminator(self.generator(torch.randn(len(x), LATENT))).mean()
        self.toggle_optimizer(optimizer)
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)


class StepsOutside(GAN):
    def discriminator_step(self, optimizer: Any, x: Tensor) -> None:
        self.toggle_optimizer(optimizer)
        self.manual_backward(self.discriminator_loss(x, torch.randn(len(x), LATENT)))
        self.untoggle_optimizer(optimizer)
        opt_g, _ = self.optimizers()
        self.toggle_optimizer(opt_g)
        optimizer.step()


class Evaluates(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        closure()
        return super().step(closure)


class EvaluatesTwice(GAN):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.generator.parameters(), 0.1), Evaluates(self.discriminator.parameters(), 0.1)]

    def discriminator_step(self, optimizer: Any, x: Tensor) -> None:
        z = torch.randn(len(x), LATENT)
        optimizer.step(closure=lambda: self.manual_backward(self.discriminator_loss(x, z)))


class RawBackward(GAN):
    """Past manual_backward, into the generator's gradient."""

    def discriminator_step(self, optimizer: Any, x: Tensor) -> None:
        F.softplus(self.discriminator(self.generator(torch.randn(len(x), LATENT)))).mean().backward()


STOPPED = [
    (RawBackward, ["generator"], "round self.manual_backward"),
    (TwoBackwards, ["generator"], "two backward passes for one private step"),
    (NoBackward, ["generator"], "without a private gradient"),
    (TwoSteps, ["generator"], "second private step"),
    (SecondStepAlone, ["generator"], "second private step"),
    (NoStep, ["generator"], "no optimizer step followed"),
    (RawStep, ["generator"], "round the strategy"),
    (NotDetached, ["generator"], "without a private gradient"),
    (GAN, [], "2 private optimizers at once"),
    (LateToggle, [], "before the forward pass"),
    (StepsOutside, [], "frozen at its step"),
    (EvaluatesTwice, ["generator"], "second private step"),
]


@pytest.mark.parametrize(("kind", "declared", "message"), STOPPED, ids=lambda v: getattr(v, "__name__", ""))
def test_is_stopped_in_the_step(kind: type[GAN], declared: list[str], message: str) -> None:
    """Without the self-check, so that it is the running step that refuses; no parameter moves raw."""
    module = kind()
    before, generator = flat(module.discriminator), flat(module.generator)
    plugin = strategy(post_processing=declared, self_check=False, noise_multiplier=0.0)
    with pytest.raises(PrivacyError, match=message):
        fit(module, plugin)
    steps = len(module.seen["discriminator"])
    assert steps <= 1
    if steps == 0:
        assert torch.equal(flat(module.discriminator), before)
    if kind is RawBackward:
        assert torch.equal(flat(module.generator), generator)
    assert hooks(module) == []


class SeesData(GAN):
    """Feature matching: the generator's loss compares with real samples."""

    def generator_step(self, optimizer: Any, x: Tensor) -> None:
        fake = self.generator(torch.randn(DRAWN, LATENT))
        self.manual_backward((fake.mean(0) - x.mean(0)).square().sum())
        optimizer.step()


class SeesSize(GAN):
    def generator_step(self, optimizer: Any, x: Tensor) -> None:
        z = torch.randn(len(x), LATENT)
        self.manual_backward(generator_losses(self.discriminator, self.generator, z).mean())
        optimizer.step()


class Couples(GAN):
    def discriminator_loss(self, x: Tensor, z: Tensor) -> Tensor:
        scores = self.discriminator(x).squeeze(1)
        return F.softplus(scores.mean() - scores).mean() + 0.0 * z.sum()


class Concatenates(GAN):
    """Real and fake rows in one call: rows of one sample are then not beside each other."""

    def discriminator_loss(self, x: Tensor, z: Tensor) -> Tensor:
        real, fake = self.discriminator(torch.cat([x, self.generator(z).detach()])).chunk(2)
        return (F.softplus(-real) + F.softplus(fake)).mean()


class DependsOnData(GAN):
    def generator_step(self, optimizer: Any, x: Tensor) -> None:
        if len(x) < 3:
            super().generator_step(optimizer, x)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (SeesData, "changes by .* with the private batch"),
        (SeesSize, "changes by .* with the private batch"),
        (NotDetached, "made no private backward pass"),
        (Couples, "when the other samples of its batch change|couples the samples"),
        (Concatenates, "when the other samples of its batch change|couples the samples"),
        (DependsOnData, "must not depend on its data"),
    ],
)
def test_is_stopped_before_the_first_step(kind: type[GAN], message: str) -> None:
    module, plugin = kind(), post()
    before = flat(module)
    with pytest.raises(PrivacyError, match=message):
        fit(module, plugin)
    assert torch.equal(flat(module), before)
    assert plugin.ledger.steps == 0


def test_a_private_backward_leaves_the_gradients_of_others_alone() -> None:
    """With everything toggled, a generator gradient kept for later survives the discriminator's pass."""

    class Keeps(GAN):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            opt_g, opt_d = self.optimizers()
            z = torch.randn(DRAWN, LATENT)
            opt_g.zero_grad()
            self.manual_backward(generator_losses(self.discriminator, self.generator, z).mean())
            kept = self.generator[0].weight.grad
            saved = None if kept is None else kept.clone()
            self.discriminator_step(opt_d, batch[0])
            if saved is not None:  # the self-check's copy has none
                assert torch.equal(self.generator[0].weight.grad, saved)
            opt_g.step()

    module = Keeps()
    fit(module, post(noise_multiplier=0.0, self_check=False))
    assert len(module.seen["generator"]) == 8


def test_which_leaves_a_loss_reaches() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    loss = (a * b.detach()).sum() + (a.detach() * 2).sum()
    assert reaches(loss, [a])
    assert not reaches(loss, [b])
    assert not reaches(torch.zeros(()), [a])
