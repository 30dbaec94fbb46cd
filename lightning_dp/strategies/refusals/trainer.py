"""Refusals about the Trainer, asked before any process touches data."""

from __future__ import annotations

from lightning.pytorch import callbacks
from lightning.pytorch.plugins.precision import MixedPrecision

from lightning_dp.strategies.refusals.table import Subject, callbacks_of, listed, names_training, row


@row("trainer")
def accumulate_grad_batches(s: Subject) -> str | None:
    if s.trainer.accumulate_grad_batches != 1:
        return (
            f"Trainer(accumulate_grad_batches={s.trainer.accumulate_grad_batches}) would clip gradients of a scaled loss "
            "and draw several batches for one step. Set it to 1, give the DataLoader the batch size you want per step, "
            "and use DPStrategy(physical_batch_size=...) to fit it into memory."
        )
    return None


@row("trainer")
def gradient_accumulation_scheduler(s: Subject) -> str | None:
    if callbacks_of(s, callbacks.GradientAccumulationScheduler):
        return (
            "GradientAccumulationScheduler changes how many batches make a step, so the sampling rate that was "
            "accounted would no longer hold. Use DPStrategy(physical_batch_size=...) for memory and a fixed batch size."
        )
    return None


@row("trainer")
def gradient_clip_val(s: Subject) -> str | None:
    if s.trainer.gradient_clip_val:
        return (
            f"Trainer(gradient_clip_val={s.trainer.gradient_clip_val}) clips the noisy mean, which bounds no single "
            "sample. Use DPStrategy(max_grad_norm=...), which clips each sample's gradient, and drop gradient_clip_val."
        )
    return None


@row("trainer")
def half_precision(s: Subject) -> str | None:
    precision = s.trainer.precision
    if precision in ("32-true", "64-true", "bf16-mixed"):
        if isinstance(s.trainer.precision_plugin, MixedPrecision) and s.trainer.precision_plugin.scaler is not None:
            return _fp16("a loss scaler")
        return None
    if precision == "16-mixed":
        return _fp16("precision='16-mixed'")
    return (
        f"Trainer(precision={precision!r}) keeps parameters in low precision, where rounding can exceed the clipping "
        "bound and swallow the noise. Use '32-true', '64-true' or 'bf16-mixed'."
    )


def _fp16(what: str) -> str:
    return (
        f"{what} multiplies the loss before gradients are clipped and skips steps that overflow, and both depend on "
        "private data. Use precision='bf16-mixed', which needs no scaling, or '32-true'."
    )


@row("trainer")
def sync_batchnorm(s: Subject) -> str | None:
    if getattr(s.trainer.strategy, "_layer_sync", None) is not None:
        return (
            "Trainer(sync_batchnorm=True) couples all samples of the batch across ranks, so one sample's gradient "
            "depends on the others. Drop it and use GroupNorm or LayerNorm."
        )
    return None


@row("trainer")
def overfit_batches(s: Subject) -> str | None:
    if s.trainer.overfit_batches:  # type: ignore[attr-defined]
        return (
            "Trainer(overfit_batches=...) repeats the same batches, which no amplification by sampling covers. Train "
            "without it, or debug with an ordinary strategy on public data."
        )
    return None


@row("trainer")
def tuner(s: Subject) -> str | None:
    found = callbacks_of(s, callbacks.LearningRateFinder, callbacks.BatchSizeFinder)
    found += [type(c).__name__ for c in s.trainer.callbacks if type(c).__name__ == "_LRCallback"]  # type: ignore[attr-defined]
    if found:
        return (
            f"{listed(found)} (the Tuner) takes real steps on private data and then rewinds the checkpoint, so its "
            "choice leaks and is not accounted. Choose the learning rate or batch size on public data or by experience."
        )
    return None


@row("trainer")
def stochastic_weight_averaging(s: Subject) -> str | None:
    if callbacks_of(s, callbacks.StochasticWeightAveraging):
        return (
            "StochasticWeightAveraging runs an extra pass over the training data that is neither noised nor accounted. "
            "Use lightning.pytorch.callbacks.EMAWeightAveraging or WeightAveraging: averaging private iterates is free."
        )
    return None


@row("trainer")
def training_monitors(s: Subject) -> str | None:
    watched = {
        f"{type(c).__name__}(monitor={c.monitor!r})"
        for c in s.trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(c, (callbacks.ModelCheckpoint, callbacks.EarlyStopping))
        and c.monitor is not None
        and names_training(c.monitor)
    }
    if watched:
        return (
            f"{listed(sorted(watched))} chooses the released model by a number computed from training data without "
            "noise. Monitor a metric of held-out data (val_...), or 'privacy/epsilon', or use no monitor."
        )
    return None


@row("trainer")
def unbounded_training(s: Subject) -> str | None:
    endless = s.trainer.max_epochs in (None, -1) and s.trainer.max_steps == -1 and s.trainer.fit_loop.max_epochs == -1
    if s.calibrates and endless:
        return (
            "DPStrategy(eps=...) calibrates the noise to a planned number of steps, and this Trainer has none. Set "
            "max_epochs or max_steps, or give DPStrategy a noise_multiplier instead of eps and read eps as it grows."
        )
    return None
