"""Training through DPStrategy: what a step is, who sees which gradient, and that the user's objects stay theirs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_dp import DPStrategy, PrivacyError, PrivacyWarning
from lightning_dp.gradients import Clipping, GradientEngine, NoiseSource
from lightning_dp.sampling import PoissonSampler, key_from_seed
from tests.strategies.helpers import (
    CLASSES,
    FEATURES,
    Tiny,
    dataset,
    fit,
    flat,
    hooks,
    loader,
    network,
    strategy,
    trainer,
)

pytestmark = pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")


def held_out() -> DataLoader[Any]:
    return DataLoader(dataset(256, seed=5), batch_size=128)


class Plain(Tiny):
    """Keeps what the optimizer was given in every step, before and after."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.gradients: list[Tensor] = []

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.gradients.append(torch.cat([p.grad.flatten().clone() for p in self.parameters()]))


# --- what a step is ---------------------------------------------------------------------------------------------------
def test_a_step_is_the_textbook_step() -> None:
    """Every step equals a plain loop: sampled rows, one backward pass a sample, clip, sum, noise, divide by B."""
    bound, noise, n, batch = 0.1, 1.5, 64, 16
    module, reference = Plain(lr=0.5, momentum=0.9), Tiny()
    plugin = strategy(noise_multiplier=noise, max_grad_norm=bound, seed=7)
    fit(module, plugin, loader(n, batch), max_steps=6)
    x, y = dataset(n).tensors
    sampler, source = PoissonSampler(n, batch, key_from_seed(7)), NoiseSource(7, 0)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.5, momentum=0.9)
    for step in range(6):
        total = torch.zeros_like(flat(reference))
        for i in sampler.draw(step).tolist():
            grads = torch.autograd.grad(reference.loss(x[i : i + 1], y[i : i + 1]), list(reference.parameters()))
            g = torch.cat([g.flatten() for g in grads])
            total += g * min(1.0, bound / float(g.norm()))
        expected = source.add_(total, noise * bound) / batch
        torch.testing.assert_close(module.gradients[step], expected, rtol=1e-4, atol=1e-6)
        torch.nn.utils.vector_to_parameters(expected, _gradients(reference))
        optimizer.step()
    torch.testing.assert_close(flat(module), flat(reference), rtol=1e-4, atol=1e-6)


def _gradients(module: nn.Module) -> list[Tensor]:
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    return [p.grad for p in module.parameters() if p.grad is not None]


def test_one_lightning_batch_is_one_step() -> None:
    """Also when it is split: schedulers, progress and max_steps count logical steps."""

    class Scheduled(Tiny):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    for physical in (None, 3):
        module, plugin = Scheduled(), strategy(seed=7, physical_batch_size=physical)
        run = fit(module, plugin, loader(64, 16), max_epochs=3, max_steps=10)
        sizes = [len(PoissonSampler(64, 16, key_from_seed(7)).draw(step)) for step in range(10)]
        assert run.global_step == plugin.ledger.steps == 10
        assert run.lr_scheduler_configs[0].scheduler.last_epoch == 10
        assert run.num_training_batches == 4
        assert module.calls == sum(1 if physical is None else max(1, -(-size // physical)) for size in sizes)
        assert sum(module.sizes) == sum(size or 1 for size in sizes)
        assert max(module.sizes) <= (physical or 64)


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
def test_a_split_batch_is_the_same_batch(clipping: str) -> None:
    results = []
    for physical in (None, 1, 5):
        module = Tiny(momentum=0.9)
        plugin = strategy(
            noise_multiplier=0, seed=7, max_grad_norm=0.3, clipping=clipping, physical_batch_size=physical
        )
        fit(module, plugin, loader(64, 16), max_epochs=3)
        results.append(flat(module))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-6)


def test_noise_is_added_once_per_step_however_it_is_split() -> None:
    """With equal seeds the noisy runs agree, split or not: noise per physical batch would tear them apart."""
    results = []
    for physical in (None, 2):
        module = Tiny()
        fit(module, strategy(noise_multiplier=2.0, seed=7, physical_batch_size=physical), loader(64, 16), max_steps=5)
        results.append(flat(module))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_the_denominator_is_the_expected_batch_size() -> None:
    """With every sample's gradient at the bound and equal, |g| B / C counts the samples: the number drawn, not B."""

    class Linear(Plain):
        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return (self.net(torch.ones(len(x), 1)) * 100.0).mean()

    module = Linear(net=nn.Linear(1, 1, bias=False), lr=0.0)
    fit(module, strategy(noise_multiplier=0, seed=7, max_grad_norm=1.0), loader(64, 16), max_steps=8, max_epochs=2)
    sizes = [len(PoissonSampler(64, 16, key_from_seed(7)).draw(step)) for step in range(8)]
    assert len(set(sizes)) > 2
    torch.testing.assert_close(torch.cat(module.gradients) * 16, torch.tensor(sizes).float(), rtol=1e-4, atol=1e-4)


def test_full_batches_use_every_sample() -> None:
    module, plugin = Tiny(), strategy()
    fit(module, plugin, loader(40, 40), max_epochs=5)
    assert module.sizes == [40] * 5
    assert plugin.settings().sample_rate == 1.0


def test_a_batch_larger_than_the_data_is_clamped_and_says_so() -> None:
    module, plugin = Tiny(), strategy()
    with pytest.warns(PrivacyWarning, match="batch size 100 exceeds the 40"):
        fit(module, plugin, loader(40, 100))
    assert module.sizes == [40] * 2
    assert plugin.settings().expected_batch_size == 40


def test_the_loss_may_be_a_sum() -> None:
    class Summed(Tiny):
        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self(x), y, reduction="sum")

    results = []
    for kind, reduction in ((Tiny, "mean"), (Summed, "sum")):
        module = kind()
        fit(module, strategy(noise_multiplier=0, seed=7, max_grad_norm=0.3, loss_reduction=reduction))
        results.append(flat(module))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


# --- any batch type ---------------------------------------------------------------------------------------------------
class Ragged(Dataset[Any]):
    """Sequences of different length, as a dict of one sample each."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, i: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(i)
        return {"x": torch.randn(1 + i % 4, FEATURES, generator=generator), "y": i % CLASSES, "name": f"case {i}"}


def as_list(samples: list[dict[str, Any]]) -> Any:
    return [s["x"] for s in samples], torch.tensor([s["y"] for s in samples]), [s["name"] for s in samples]


def as_dict(samples: list[dict[str, Any]]) -> Any:
    x = nn.utils.rnn.pad_sequence([s["x"] for s in samples], batch_first=True)
    return {
        "x": x,
        "y": torch.tensor([s["y"] for s in samples]),
        "length": torch.tensor([len(s["x"]) for s in samples]),
    }


class Sequences(Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if isinstance(batch, dict):
            x, y = batch["x"].sum(1) / batch["length"][:, None], batch["y"]
        else:
            x, y = torch.stack([one.mean(0) for one in batch[0]]), batch[1]
        self.sizes.append(len(y))
        return self.loss(x, y)


@pytest.mark.parametrize("physical", [None, 3])
@pytest.mark.parametrize("collate", [as_list, as_dict])
def test_any_collate_function_works(collate: Callable[..., Any], physical: int | None) -> None:
    module, plugin = Sequences(), strategy(noise_multiplier=0, seed=7, physical_batch_size=physical)
    fit(module, plugin, DataLoader(Ragged(), batch_size=8, collate_fn=collate))
    assert plugin.ledger.steps == 8
    reference = Sequences()
    fit(reference, strategy(noise_multiplier=0, seed=7), DataLoader(Ragged(), batch_size=8, collate_fn=as_list))
    torch.testing.assert_close(flat(module), flat(reference), rtol=1e-4, atol=1e-6)


# --- who sees which gradient ------------------------------------------------------------------------------------------
class Spy(Callback):
    """Reads gradients in the two hooks that Lightning offers."""

    def __init__(self) -> None:
        self.raw: list[bool] = []
        self.private: list[Tensor] = []

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        self.raw.append(any(p.grad is not None and bool(p.grad.any()) for p in module.parameters()))

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        self.private.append(torch.cat([p.grad.flatten().clone() for p in module.parameters()]))


@pytest.mark.parametrize("physical", [None, 4])
@pytest.mark.parametrize("to_none", [True, False])
def test_no_hook_sees_a_raw_gradient(physical: int | None, to_none: bool) -> None:
    class Zeroing(Tiny):
        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            optimizer.zero_grad(set_to_none=to_none)

    spy, module = Spy(), Zeroing()
    fit(module, strategy(physical_batch_size=physical), callbacks=[spy])
    assert len(spy.raw) == module.calls
    assert not any(spy.raw)
    assert len(spy.private) == 8


def test_the_hook_before_the_step_sees_exactly_what_the_optimizer_uses() -> None:
    spy, module, seen = Spy(), Tiny(lr=1.0), []
    before = flat(module)

    class Steps(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
            seen.append(flat(module))

    fit(module, strategy(noise_multiplier=1.0), callbacks=[spy, Steps()], max_steps=4)
    for old, new, gradient in zip([before, *seen], seen, spy.private, strict=False):
        torch.testing.assert_close(new, old - gradient, rtol=0, atol=0)


def test_the_gradient_that_hooks_see_carries_the_noise() -> None:
    """With a zero loss the gradient is noise alone: its spread over 8 x 83 draws is sigma C / B within 5 sd (1e-6)."""

    class Zero(Tiny):
        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return self(x).sum() * 0.0

    spy = Spy()
    fit(Zero(), strategy(noise_multiplier=3.0, max_grad_norm=0.5), loader(64, 16), callbacks=[spy])
    noise = torch.cat(spy.private)
    assert noise.numel() == 8 * 83
    assert abs(float(noise.std()) * 16 / 1.5 - 1) < 5 / math.sqrt(2 * noise.numel())


def test_two_runs_draw_different_noise_whatever_the_global_seed() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        module = Tiny()
        fit(module, strategy(), loader(16, 16), max_steps=1)
        results.append(flat(module))
    assert not torch.allclose(results[0], results[1])


def test_a_gradient_logger_may_change_the_private_gradient() -> None:
    """Post-processing is free: what a hook does to the private gradient is what the optimizer uses."""

    class Halved(Plain):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            super().on_before_optimizer_step(optimizer)
            for p in self.parameters():
                p.grad.mul_(0.5)

    module = Halved(lr=1.0)
    before = flat(module)
    fit(module, strategy(), max_steps=1)
    torch.testing.assert_close(flat(module), before - 0.5 * module.gradients[0])


# --- no privacy, too much privacy -------------------------------------------------------------------------------------
def test_no_noise_is_not_called_private() -> None:
    plugin = strategy(noise_multiplier=0)
    with pytest.warns(PrivacyWarning, match=r"NOT private \(eps = inf\)"):
        fit(Tiny(), plugin)
    assert plugin.privacy_spent().eps == plugin.epsilon() == math.inf


def test_a_test_seed_is_not_called_private() -> None:
    with pytest.warns(PrivacyWarning, match="NOT private"):
        fit(Tiny(), strategy(seed=1))


def accuracy(noise_multiplier: float) -> float:
    module = Tiny(lr=1.0)
    plugin = strategy(noise_multiplier=noise_multiplier)
    run = fit(module, plugin, loader(256, 64), max_epochs=25)
    (result,) = run.validate(module, held_out(), verbose=False)
    return float(result["val_acc"])


def test_the_noise_reaches_the_model() -> None:
    """The canary: learning without noise, none with a thousand times the bound. Validation sees the trained weights."""
    assert accuracy(0.01) > 0.85
    assert min(accuracy(1000.0) for _ in range(3)) < 0.6


# --- the user's objects stay theirs -----------------------------------------------------------------------------------
def test_module_optimizer_and_scheduler_stay_the_same_objects() -> None:
    made: dict[str, Any] = {}

    class Keeps(Tiny):
        def configure_optimizers(self) -> Any:
            made["optimizer"] = torch.optim.Adam(self.parameters(), 0.01)
            made["scheduler"] = torch.optim.lr_scheduler.StepLR(made["optimizer"], 1)
            return [made["optimizer"]], [made["scheduler"]]

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            made["inside"] = [type(p) for p in self.parameters()], list(self.state_dict())

    module = Keeps()
    parameters, keys, kinds = list(module.parameters()), list(module.state_dict()), [type(m) for m in module.modules()]
    run = fit(module, strategy())
    assert run.lightning_module is module
    assert run.optimizers == [made["optimizer"]]
    assert run.optimizers[0] is made["optimizer"]
    assert run.lr_scheduler_configs[0].scheduler is made["scheduler"]
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    assert [type(m) for m in module.modules()] == kinds
    assert list(module.state_dict()) == keys == made["inside"][1]
    assert set(made["inside"][0]) == {nn.Parameter}
    assert "forward" not in module.__dict__


class Breaks(Tiny):
    where = ""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 2 and self.where == "before":
            raise KeyError("mine")
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 2 and self.where == "after":
            raise KeyError("mine")
        return loss

    def forward(self, x: Tensor) -> Tensor:
        if self.trainer.global_step == 2 and self.where == "inside":
            self.net[0].register_forward_hook(_raise)
        return super().forward(x)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.calls == 3 and self.where == "hook":
            raise KeyError("mine")


def _raise(*_: Any) -> None:
    raise KeyError("mine")


@pytest.mark.parametrize("where", ["", "before", "after", "inside", "hook"])
def test_no_hook_is_left_behind(where: str) -> None:
    module, plugin = Breaks(), strategy()
    module.where = where
    keys = list(module.state_dict())
    if where:
        with pytest.raises(KeyError, match="mine"):
            fit(module, plugin)
        assert plugin.ledger.steps == 3  # charged before the gradient: the broken step counts
    else:
        fit(module, plugin)
    left = hooks(module)
    assert left == (["net.0._forward_hooks"] if where == "inside" else [])  # the user's own
    assert list(module.state_dict()) == keys
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in module.parameters())
    assert plugin.engine is None


def test_a_user_hook_survives() -> None:
    module, heard = Tiny(), []
    module.net[0].register_forward_hook(lambda *_: heard.append(1))
    fit(module, strategy(self_check=False), max_steps=3)
    assert len(heard) == 3
    assert hooks(module) == ["net.0._forward_hooks"]


def test_frozen_parameters_stay_frozen_and_untouched() -> None:
    module = Tiny()
    module.net[0].requires_grad_(False)
    before = flat(module.net[0])
    fit(module, strategy())
    assert torch.equal(flat(module.net[0]), before)
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]
    assert all(p.grad is None for p in module.net[0].parameters())


def test_a_layer_unfrozen_on_the_way_takes_part() -> None:
    class Unfreezes(Plain):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.5)

        def on_train_epoch_start(self) -> None:
            self.net[0].requires_grad_(self.current_epoch >= 1)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.gradients.append(torch.cat([p.grad.flatten() for p in self.parameters() if p.grad is not None]))

    module = Unfreezes()
    module.net[0].requires_grad_(False)
    start = flat(module.net[0])
    fit(module, strategy(noise_multiplier=0.5))
    assert [len(g) for g in module.gradients] == [27] * 4 + [83] * 4
    assert not torch.equal(flat(module.net[0]), start)


# --- every entry point, every precision -------------------------------------------------------------------------------
def test_fit_validate_test_and_predict_run() -> None:
    module = Tiny()
    run = trainer(strategy())
    run.fit(module, loader(), held_out())
    trained = flat(module)
    direct = float(
        (module(dataset(256, seed=5).tensors[0]).argmax(1) == dataset(256, seed=5).tensors[1]).float().mean()
    )
    (validated,), (tested,) = (
        run.validate(module, held_out(), verbose=False),
        run.test(module, held_out(), verbose=False),
    )
    assert validated["val_acc"] == tested["val_acc"] == pytest.approx(direct)
    predictions = torch.cat(run.predict(module, held_out()))
    assert len(predictions) == 256
    assert torch.equal(flat(module), trained)
    assert run.strategy.ledger.steps == 8


def test_the_string_names_the_strategy() -> None:
    module = Tiny()
    run = fit(module, "dp_sgd")
    assert type(run.strategy) is DPStrategy
    assert 7.5 < run.strategy.privacy_spent().eps <= 8.0
    assert run.strategy.privacy_spent().delta == 1 / 640


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
@pytest.mark.parametrize("physical", [None, 4])
def test_other_precisions_pass_the_self_check_and_learn_the_same(precision: Any, physical: int | None) -> None:
    module, reference = Tiny(), Tiny()
    fit(module, strategy(noise_multiplier=0, seed=7, physical_batch_size=physical), precision=precision)
    fit(reference, strategy(noise_multiplier=0, seed=7))
    wide = precision == "64-true"
    assert {p.dtype for p in module.parameters()} == {torch.float64 if wide else torch.float32}
    error = (flat(module) - flat(reference)).norm() / flat(reference).norm()
    assert float(error) < (1e-4 if wide else 3e-2)


def test_a_deep_network_in_bfloat16_passes_the_self_check() -> None:
    """Rounding adds up over layers; it must not be taken for a coupling of the samples."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        blocks = [layer for _ in range(24) for layer in (nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 32))]
        net = nn.Sequential(nn.Linear(FEATURES, 32), *blocks, nn.Linear(32, CLASSES))
    run = fit(Tiny(net=net), strategy(), precision="bf16-mixed", max_steps=1)
    assert run.global_step == 1


def test_ema_weights_are_kept_and_used() -> None:
    class Later(Tiny):
        def on_train_end(self) -> None:
            self.final = flat(self)

    module, ema = Later(), EMAWeightAveraging(decay=0.5)
    run = trainer(strategy(), callbacks=[ema])
    run.fit(module, loader(), held_out())
    assert run.strategy.ledger.steps == 8
    averaged = flat(ema._average_model.module)
    assert torch.equal(flat(module), averaged)  # Lightning copies the average into the module at the end
    assert torch.isfinite(averaged).all()


# --- logging and outputs ----------------------------------------------------------------------------------------------
class Logs(Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss_now", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log_dict({"units": float(len(batch[1]))}, on_step=False, on_epoch=True, reduce_fx="sum")
        return {"loss": loss, "outputs": self(batch[0]).detach(), "text": "any"}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.last = outputs


@pytest.mark.parametrize("physical", [None, 4])
def test_logging_and_dict_outputs(physical: int | None) -> None:
    module = Logs()
    run = fit(module, strategy(physical_batch_size=physical, seed=7), max_epochs=1)
    assert {"loss_now", "loss_now_step", "loss_now_epoch", "units"} <= set(run.callback_metrics)
    assert torch.isfinite(run.callback_metrics["loss_now_epoch"])
    assert set(module.last) == {"loss", "outputs", "text"}
    assert not module.last["loss"].requires_grad
    # Every physical batch reaches the epoch's reduction once.
    assert float(run.callback_metrics["units"]) == sum(module.sizes)


def test_an_epoch_mean_weighs_each_sample_alike_when_batches_are_split() -> None:
    class Means(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("mean_x", batch[0].double().mean(), on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    results = []
    for physical in (None, 3):
        run = fit(Means(lr=0.0), strategy(physical_batch_size=physical, seed=7), max_epochs=1)
        results.append(float(run.callback_metrics["mean_x"]))
    assert results[0] == pytest.approx(results[1], abs=1e-6)


# --- overridden hooks -------------------------------------------------------------------------------------------------
def test_minus_one_ends_the_epoch() -> None:
    class Ends(Tiny):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    module, plugin = Ends(), strategy(seed=7)
    run = fit(module, plugin, max_epochs=3)
    assert run.global_step == plugin.ledger.steps == module.calls == 6
    # The skipped draws are not used later: steps 0 1 (2) 3 4 (5) 6 7.
    sampler = PoissonSampler(64, 16, key_from_seed(7))
    assert module.sizes == [len(sampler.draw(step)) for step in (0, 1, 3, 4, 6, 7)]


class Overrides(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        self.heard.append("optimizer_step")
        for group in optimizer.param_groups:  # warm-up, the usual reason
            group["lr"] = self.lr
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        self.heard.append("optimizer_zero_grad")
        optimizer.zero_grad(set_to_none=False)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.heard.append("backward")
        loss.backward(*args, **kwargs)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        self.heard.append("lr_scheduler_step")
        scheduler.step()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.heard.append("before_transfer")
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        self.heard.append("transfer")
        return [t.to(device) for t in batch]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.heard.append("after_transfer")
        x, y = batch
        return x * 2.0, y

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0), "interval": "step"}]


class Doubled(Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step((batch[0] * 2.0, batch[1]), batch_idx)


@pytest.mark.parametrize("physical", [None, 3])
def test_overridden_hooks_are_called_for_every_physical_batch(physical: int | None) -> None:
    module, reference = Overrides(), Doubled()
    arguments: dict[str, Any] = {"noise_multiplier": 0, "seed": 7, "physical_batch_size": physical, "self_check": False}
    fit(module, strategy(**arguments))
    fit(reference, strategy(**arguments))
    torch.testing.assert_close(flat(module), flat(reference))
    count = {name: module.heard.count(name) for name in set(module.heard)}
    steps, calls = 8, module.calls
    assert count == {
        "optimizer_step": steps,
        "optimizer_zero_grad": steps,
        "lr_scheduler_step": steps,
        "backward": calls,
        "before_transfer": calls,
        "transfer": calls,
        "after_transfer": calls,
    }


@pytest.mark.parametrize("physical", [None, 4])
def test_training_step_may_do_without_the_batch_index(physical: int | None) -> None:
    class OneArgument(Tiny):
        def training_step(self, batch: Any) -> Any:  # type: ignore[override]
            return super().training_step(batch, 0)

    module = OneArgument()
    run = fit(module, strategy(physical_batch_size=physical))
    assert run.global_step == 8


class ClosureFirst(Tiny):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer_closure()
        optimizer.step()


def test_the_closure_may_run_before_the_step() -> None:
    results = []
    for kind in (ClosureFirst, Tiny):
        module = kind()
        fit(module, strategy(seed=7, physical_batch_size=5))
        results.append(flat(module))
    torch.testing.assert_close(results[0], results[1])


class ClosureTwice(Tiny):
    """Each sample would count twice: sensitivity 2 C under noise for C."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer_closure()
        optimizer.step(closure=optimizer_closure)


class ClosureOnly(Tiny):
    """Accumulation by hand: two draws in one step that is accounted as one."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if batch_idx % 2 == 0:
            optimizer_closure()
        else:
            optimizer.step(closure=optimizer_closure)


class StepTwice(Tiny):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)
        optimizer.step(closure=optimizer_closure)


class TwiceInside(torch.optim.SGD):
    """As sharpness-aware minimisation does it."""

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            closure()
            loss = closure()
        super().step()
        return loss


@pytest.mark.parametrize(
    "make",
    [ClosureTwice, ClosureOnly, StepTwice, lambda: Tiny(optimizer=lambda p: TwiceInside(p, lr=0.1))],
    ids=["closure_twice", "closure_only", "step_twice", "optimizer_evaluates_twice"],
)
def test_a_batch_that_would_count_twice_is_refused(make: Callable[[], Tiny]) -> None:
    module, plugin = make(), strategy()
    with pytest.raises(PrivacyError, match=r"twice|several times|second step|accumulated"):
        fit(module, plugin)
    assert plugin.ledger.steps <= 1


# --- gradients inside training_step -----------------------------------------------------------------------------------
def adversarial(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(x), y), x)
    return (x + 0.1 * gradient.sign()).detach()


class FastGradient(Plain):
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.net(adversarial(self.net, x, y)), y)


@pytest.mark.parametrize("physical", [None, 5])
def test_an_input_gradient_inside_the_step_is_allowed_and_right(physical: int | None) -> None:
    """FGSM training: the inner gradient must not be recorded, and must be what an untapped network gives."""
    module = FastGradient()
    fit(module, strategy(noise_multiplier=0, seed=7, max_grad_norm=0.2, physical_batch_size=physical), max_steps=1)
    x, y = dataset().tensors
    rows = torch.from_numpy(PoissonSampler(64, 16, key_from_seed(7)).draw(0))
    net = network()
    total = torch.zeros(83)
    for i in rows.tolist():
        loss = F.cross_entropy(net(adversarial(net, x[i : i + 1], y[i : i + 1])), y[i : i + 1])
        g = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])
        total += g * min(1.0, 0.2 / float(g.norm()))
    torch.testing.assert_close(module.gradients[0], total / 16, rtol=1e-4, atol=1e-6)


class Penalised(Tiny):
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        x = x.detach().clone().requires_grad_(True)
        loss = super().loss(x, y)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        return loss + gradient.square().sum(1).mean()


def test_a_gradient_penalty_is_refused() -> None:
    module, plugin = Penalised(), strategy()
    with pytest.raises(PrivacyError):
        fit(module, plugin)
    assert plugin.ledger.steps == 0


@pytest.mark.parametrize("inner", ["sum", "mean"])
def test_the_engine_alone_refuses_a_gradient_penalty(inner: str) -> None:
    """Without the self-check the penalty's share of the weights' gradient must not go missing silently."""
    net = network()
    x, y = dataset(8).tensors
    engine = GradientEngine(net, Clipping(1.0), noise_multiplier=0, expected_batch_size=8)

    def penalised_step() -> None:
        inputs = x.clone().requires_grad_(True)
        loss = F.cross_entropy(net(inputs), y)
        (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
        engine.backward(loss + getattr(gradient.square(), inner)(), 8)

    with engine, pytest.raises(PrivacyError, match="create_graph"):
        penalised_step()
