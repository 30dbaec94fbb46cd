"""Bias-aware minimisation in Lightning: the mechanism on the module as it is, and everything DP-SGD has beside it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_dp.cli
from lightning_dp import BAMStrategy, PrivacyAccountant, PrivacyConfigError, PrivacyError, PrivacyWarning
from lightning_dp.callbacks import uncovered_releases
from lightning_dp.gradients import Ascent
from lightning_dp.gradients.ascent.layers import LINEAR_LAYERS, Moved
from lightning_dp.gradients.rules.linear import linear_rule
from lightning_dp.strategies.base import CHECKPOINT_KEY
from tests.gradients.ascent.test_passes import mixed_by_hand
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

EXACT: dict[str, Any] = {"noise_multiplier": 0, "seed": 7, "max_grad_norm": 0.3}


def bam(**arguments: Any) -> BAMStrategy:
    if "eps" not in arguments:
        arguments.setdefault("noise_multiplier", 1.0)
    return BAMStrategy(**arguments)


def everything(n: int = 16) -> DataLoader[Any]:
    """Every sample in every step: the draw is known."""
    return DataLoader(dataset(n), batch_size=n)


def clipped_step(gradients: list[list[Tensor]], bound: float) -> Tensor:
    flats = [torch.cat([g.flatten() for g in unit]) for unit in gradients]
    return sum(f * min(1.0, bound / float(f.norm())) for f in flats) / len(flats)  # type: ignore[return-value]


def truth_of(module: Tiny, x: Tensor, y: Tensor, ascent: Ascent, rows: int = 1) -> Tensor:
    units = [slice(i, i + rows) for i in range(0, len(x), rows)]
    return clipped_step([mixed_by_hand(module, lambda u=u: module.loss(x[u], y[u]), ascent) for u in units], 0.3)


# --- the mechanism ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("arguments", [{"radius": 0}, {"alpha": 0}, {"direction": "previous", "radius": 0}])
@pytest.mark.parametrize("physical", [None, 5])
def test_without_ascent_it_is_dp_sgd_bit_for_bit(arguments: dict[str, Any], physical: int | None) -> None:
    one, other = Tiny(momentum=0.9), Tiny(momentum=0.9)
    fit(one, strategy(seed=3, physical_batch_size=physical))
    run = fit(other, bam(seed=3, physical_batch_size=physical, **arguments))
    assert torch.equal(flat(one), flat(other))
    assert one.sizes == other.sizes
    assert run.strategy.ledger.entries


@pytest.mark.parametrize("physical", [None, 3])
def test_a_step_is_that_of_a_plain_loop_over_units(physical: int | None) -> None:
    module, ascent = Tiny(), Ascent(0.5, 0.8)
    x, y = dataset(16).tensors
    before, step = flat(module), truth_of(module, x, y, ascent)
    plain = truth_of(module, x, y, Ascent(0.5, 0.0))
    fit(module, bam(radius=0.5, physical_batch_size=physical, **EXACT), everything(), max_steps=1)
    torch.testing.assert_close(flat(module), before - 0.5 * step, rtol=1e-4, atol=1e-6)
    assert float((step - plain).norm()) > 0.05 * float(plain.norm())


def test_a_unit_of_several_samples_climbs_once() -> None:
    module, ascent = Tiny(), Ascent(0.5, 0.8)
    x, y = dataset(16).tensors
    before, step = flat(module), truth_of(module, x, y, ascent, rows=2)
    owners = [i // 2 for i in range(16)]
    fit(module, bam(radius=0.5, unit=owners, physical_batch_size=6, **EXACT), everything(), max_steps=1)
    torch.testing.assert_close(flat(module), before - 0.5 * step, rtol=1e-4, atol=1e-6)


def test_augmentations_are_averaged_before_the_ascent() -> None:
    """Without random transforms the K copies are one: the same step."""
    runs = []
    for copies in (1, 3):
        module = Tiny()
        fit(module, bam(radius=0.5, augmentation_multiplicity=copies, **EXACT), everything(), max_steps=2)
        runs.append(flat(module))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-4, atol=1e-6)


def test_accounting_is_that_of_dp_sgd() -> None:
    runs = [fit(Tiny(), plugin) for plugin in (strategy(eps=3), bam(eps=3), bam(eps=3, direction="previous"))]
    assert len({run.strategy.noise_multiplier for run in runs}) == 1
    assert len({run.strategy.privacy_spent().eps for run in runs}) == 1
    assert [run.strategy.settings().mechanism for run in runs] == ["dp_sgd", "dp_bam", "dp_sat"]
    assert runs[0].strategy.ledger.entries == runs[1].strategy.ledger.entries == runs[2].strategy.ledger.entries


class Wide(Tiny):
    """A loss without gradient: what is left is noise."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self(x).sum() * 0.0


def test_the_noise_on_the_gradient_is_sigma_times_the_bound() -> None:
    """20 000 coordinates, within 5 standard errors (6e-7)."""
    module = Wide(net=nn.Linear(FEATURES, 3334, bias=False), lr=1.0)
    before = flat(module)
    fit(module, bam(noise_multiplier=3.0, max_grad_norm=0.5, self_check=False), loader(64, 16), max_steps=1)
    noise = (flat(module) - before).double() * 16 / (3.0 * 0.5)
    assert abs(float(noise.std()) - 1) < 5 / math.sqrt(2 * noise.numel())


# --- both passes are one step -----------------------------------------------------------------------------------------
class Drawing(Tiny):
    """Draws from every generator, logs, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__(net=nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES)))
        self.drawn: list[tuple[float, float, float]] = []
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.drawn.append((float(torch.rand(())), float(np.random.rand()), random.random()))
        loss = super().training_step(batch, batch_idx)
        self.losses.append(float(loss.detach()))
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return {"loss": loss}


@pytest.mark.parametrize("physical", [None, 6])
def test_both_passes_draw_the_same_numbers_and_the_second_logs_nothing(physical: int | None) -> None:
    module = Drawing()
    run = fit(module, bam(radius=0.5, physical_batch_size=physical, self_check=False), everything(), max_steps=1)
    assert module.drawn[0::2] == module.drawn[1::2]
    assert len(set(module.drawn)) == len(module.drawn) // 2 == (1 if physical is None else 3)
    first, second = module.losses[0::2], module.losses[1::2]
    assert all(b > a for a, b in zip(first, second, strict=True))  # an ascent
    sizes = module.sizes[0::2]
    mean = sum(a * n for a, n in zip(first, sizes, strict=True)) / sum(sizes)
    assert float(run.callback_metrics["train_loss_epoch"]) == pytest.approx(mean, rel=1e-5)


def test_a_compiled_network_runs_uncompiled_in_both_passes() -> None:
    runs = []
    for net in (network(), torch.compile(network(), backend="eager")):
        module = Tiny(net=net)
        fit(module, bam(radius=0.5, **EXACT), max_epochs=1)
        runs.append(flat(module))
    torch.testing.assert_close(runs[0], runs[1])


@pytest.mark.parametrize("direction", ["unit", "previous"])
def test_an_adapting_bound_follows_the_gradients_that_are_clipped(direction: str) -> None:
    bounds = []
    for physical in (None, 5):
        run = fit(
            Tiny(), bam(direction=direction, clipping="adaptive", physical_batch_size=physical, **EXACT), max_epochs=1
        )
        bounds.append(run.strategy.clipping.max_grad_norm)
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-6)
    assert bounds[0] != 0.3


def test_mixed_precision_trains() -> None:
    module = Tiny()
    before = flat(module)
    fit(module, bam(), precision="bf16-mixed", max_epochs=1)
    assert bool(torch.isfinite(flat(module)).all())
    assert not torch.equal(flat(module), before)


def test_the_network_is_left_as_it_was_found() -> None:
    module = Tiny()
    names = list(module.state_dict())
    fit(module, bam())
    assert hooks(module) == []
    assert list(module.state_dict()) == names
    assert all(type(p) is nn.Parameter for p in module.parameters())


def test_empty_draws_are_steps() -> None:
    module = Tiny()
    run = fit(module, bam(seed=7), loader(30, 1), max_epochs=1)
    assert run.strategy.ledger.steps == run.global_step == 30
    assert bool(torch.isfinite(flat(module)).all())


# --- along the previous private gradient ------------------------------------------------------------------------------
class Watch(Callback):
    """The parameters that each pass and each validation saw, and the gradients that were used."""

    def __init__(self) -> None:
        self.passes: list[Tensor] = []
        self.validations: list[Tensor] = []
        self.starts: list[Tensor] = []
        self.gradients: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self.starts.append(flat(module))

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        self.passes.append(flat(module))

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        self.gradients.append(torch.cat([p.grad.flatten().clone() for p in module.parameters()]))
        self.passes.append(flat(module))

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.validations.append(flat(module))


@pytest.mark.parametrize("physical", [None, 8])
def test_the_gradient_is_taken_along_the_last_release_and_nowhere_else(physical: int | None) -> None:
    module, watch = Tiny(), Watch()
    run = trainer(bam(direction="previous", radius=0.4, physical_batch_size=physical), callbacks=[watch], max_epochs=4)
    run.fit(module, everything(), everything())
    per_step = 2 if physical is None else 3  # backward passes, and once before the optimizer
    for step in range(4):
        *moved, at_update = watch.passes[step * per_step : (step + 1) * per_step]
        expected = watch.starts[step]
        if step:
            last = watch.gradients[step - 1]
            expected = expected + 0.4 * last / last.norm()
        for point in moved:
            torch.testing.assert_close(point, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(at_update, watch.starts[step])  # bit for bit
    assert all(torch.equal(a, b) for a, b in zip(watch.validations[1:], watch.starts[1:], strict=False))


def test_a_step_along_the_last_release_is_that_of_a_plain_loop() -> None:
    module = Tiny()
    x, y = dataset(16).tensors
    twin = Tiny()

    def gradient() -> Tensor:
        return truth_of(twin, x, y, Ascent(0.5, 0.0))

    def move(by: Tensor) -> None:
        vector = nn.utils.parameters_to_vector(twin.parameters()) + by
        nn.utils.vector_to_parameters(vector.detach(), twin.parameters())

    first = gradient()
    move(-0.5 * first)
    up = 0.4 * first / first.norm()
    move(up)
    second = gradient()
    move(-up - 0.5 * second)
    fit(module, bam(direction="previous", radius=0.4, **EXACT), everything(), max_steps=2)
    torch.testing.assert_close(flat(module), flat(twin), rtol=1e-4, atol=1e-6)


class Failing(Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen = flat(self)
        if self.calls == 2:
            raise KeyError("data")
        return super().training_step(batch, batch_idx)


def test_the_parameters_come_back_when_the_step_fails() -> None:
    module, watch = Failing(), Watch()
    with pytest.raises(KeyError, match="data"):
        fit(module, bam(direction="previous", radius=0.4, self_check=False), callbacks=[watch])
    assert torch.equal(flat(module), watch.starts[-1])
    assert not torch.equal(module.seen, watch.starts[-1])


# --- runs -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("direction", ["unit", "previous"])
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_a_resumed_run_without_noise_is_the_uninterrupted_one(direction: str, tmp_path: Path) -> None:
    """Four steps, save, fresh objects, load, four more: equal bits; the checkpoint loads weights-only."""
    arguments = {**EXACT, "direction": direction, "radius": 0.3}
    whole = fit(Tiny(momentum=0.9), bam(**arguments))
    half = fit(Tiny(momentum=0.9), bam(**arguments), max_epochs=1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)[CHECKPOINT_KEY]
    assert ("previous" in state) == (direction == "previous")
    resumed = fit(Tiny(momentum=0.9), bam(**arguments), ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(flat(resumed.lightning_module), flat(whole.lightning_module))
    assert resumed.strategy.ledger.entries == whole.strategy.ledger.entries


def test_string_and_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer("dp_bam")
    assert isinstance(run.strategy, BAMStrategy)
    run.fit(Tiny(), loader())
    assert run.strategy.privacy_spent().eps <= 8
    path = tmp_path / "config.yaml"
    path.write_text(
        "trainer:\n  strategy:\n    class_path: BAMStrategy\n    init_args: {noise_multiplier: 1.0, radius: 0.1, alpha: 0.5}\n"
        "  callbacks: [{class_path: PrivacyAccountant}]\n  accelerator: cpu\n  devices: 1\n  logger: false\n"
        "  enable_checkpointing: false\n  enable_progress_bar: false\n  max_epochs: 1\n"
        "model:\n  class_path: ClassificationTask\n  init_args:\n    network: {class_path: GroupNormMLP, init_args: {in_features: 64, hidden: 16}}\n"  # noqa: E501
        "data: {class_path: DigitsDataModule}\n"
    )
    monkeypatch.setattr("sys.argv", ["lightning-dp"])
    session = lightning_dp.cli.command_line(["--config", str(path)], run=False)
    assert session.trainer.strategy._ascent == Ascent(0.1, 0.5)
    session.trainer.fit(session.model, session.datamodule)
    assert session.trainer.strategy.ledger.steps > 0


def test_the_accountant_reports_it_and_the_bias_is_named_as_uncovered() -> None:
    run = trainer(bam(log_bias_not_private=True), callbacks=[PrivacyAccountant()], max_epochs=1)
    with pytest.warns(PrivacyWarning, match="log_bias_not_private=True") as seen:
        run.fit(Tiny(), loader())
    assert seen
    names = {"not_private/bias_norm", "not_private/bias_bound", "not_private/bias_cosine"}
    assert names < set(run.callback_metrics)
    found = uncovered_releases(run, names)[0]
    assert "not_private/bias_norm" in found.what
    assert "without noise" in found.why


def test_the_bias_is_that_of_the_whole_step_and_changes_nothing() -> None:
    """In physical batches or whole; with alpha = 0 it keeps its bound; the trained network is the same with and without."""
    found = []
    for physical, alpha in ((None, 0), (5, 0), (5, 0.8)):
        module, other = Tiny(), Tiny()
        arguments = {**EXACT, "physical_batch_size": physical, "alpha": alpha, "radius": 0.3}
        run = fit(module, bam(log_bias_not_private=True, **arguments), everything(), max_steps=1)
        fit(other, bam(**arguments), everything(), max_steps=1)
        assert torch.equal(flat(module), flat(other))
        found.append({k: float(v) for k, v in run.callback_metrics.items()})
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert 0 < found[0]["not_private/bias_norm"] <= found[0]["not_private/bias_bound"]
    assert found[2]["not_private/bias_bound"] == pytest.approx(found[0]["not_private/bias_bound"], rel=1e-5)


# --- what is refused --------------------------------------------------------------------------------------------------
class InPlace(Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        batch[0].mul_(0.5)
        return super().training_step(batch, batch_idx)


class Counting(Tiny):
    """Its second run on a batch is not its first."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self(x) * (1.0 + self.calls % 2), y)


class ByHand(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def recurrent() -> nn.Module:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.LSTM(FEATURES, CLASSES, 2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x.unsqueeze(1))[0][:, -1]

    return Last()


@pytest.mark.parametrize(
    ("module", "word"),
    [(InPlace, "in place"), (Counting, "cannot be repeated"), (lambda: Tiny(net=recurrent()), "dropout=0")],
)
def test_is_stopped_before_the_first_step(module: Callable[[], Tiny], word: str) -> None:
    built = module()
    before = flat(built)
    private = bam()
    with pytest.raises(PrivacyError, match=word):
        fit(built, private)
    assert private.ledger.steps == 0
    assert torch.equal(flat(built), before)


def test_a_layer_moved_wrongly_is_seen_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    right = LINEAR_LAYERS[linear_rule]
    monkeypatch.setitem(LINEAR_LAYERS, linear_rule, lambda call: 10 * right(call))  # type: ignore[operator]
    with pytest.raises(PrivacyError, match=r"at a point of its own differs .* repeatable"):
        fit(Tiny(), bam(radius=0.5))


def test_units_that_share_a_point_are_seen_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every unit moved along the first one's gradient: alone each is right, beside others it is not."""
    right = LINEAR_LAYERS[linear_rule]

    def shared(call: Moved) -> Tensor:
        moved = right(Moved(call.module, call.x[:1].expand_as(call.x), call.trainable, call.directions))
        assert moved is not None
        return moved

    monkeypatch.setitem(LINEAR_LAYERS, linear_rule, shared)
    with pytest.raises(PrivacyError, match="alone and beside others|when the other samples"):
        fit(Tiny(), bam(radius=0.5))


def test_a_batch_changed_in_place_is_seen_without_the_self_check() -> None:
    with pytest.raises(PrivacyError, match="in place"):
        fit(InPlace(), bam(self_check=False))


@pytest.mark.parametrize("direction", ["unit", "previous"])
def test_manual_optimisation_is_refused(direction: str) -> None:
    with pytest.raises(PrivacyConfigError, match="automatic optimisation"):
        fit(ByHand(), bam(direction=direction))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"alpha": 2.0}, "alpha=2.0"),
        ({"radius": -0.1}, "radius=-0.1"),
        ({"direction": "previous", "alpha": 0.5}, "Leave alpha out"),
        ({"direction": "next"}, "unknown direction"),
    ],
)
def test_settings_that_mean_nothing_are_refused(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(PrivacyConfigError, match=word):
        bam(**arguments)
