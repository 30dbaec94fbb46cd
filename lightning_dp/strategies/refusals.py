"""What is refused, why, and what to use instead: one small function for each, all in one table.

A refusal returns its message or ``None``. It is asked as early as its answer can be known: about the Trainer before any
process touches data, about the module once it exists, about the optimizers once they are configured. Refusals about
the training loader live with the sampler (:func:`lightning_dp.sampling.why_not_private`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from lightning.pytorch import callbacks
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from lightning_dp.errors import PrivacyConfigError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ("REFUSALS", "Refusal", "Subject", "refuse")

Phase = Literal["trainer", "module", "optimizers"]


@dataclass(frozen=True)
class Subject:
    """What the refusals look at."""

    trainer: Trainer
    module: LightningModule
    optimizers: tuple[torch.optim.Optimizer, ...] = ()
    calibrates: bool = False


@dataclass(frozen=True)
class Refusal:
    """One row of the table."""

    name: str
    phase: Phase
    check: Callable[[Subject], str | None]


REFUSALS: list[Refusal] = []


def refuse(phase: Phase, subject: Subject) -> None:
    """Raises PrivacyConfigError with every refusal of ``phase`` that applies, so that all can be mended at once."""
    messages = [message for row in REFUSALS if row.phase == phase and (message := row.check(subject))]
    if messages:
        raise PrivacyConfigError("\n".join(messages))


def _row(phase: Phase) -> Callable[[Callable[[Subject], str | None]], Callable[[Subject], str | None]]:
    def add(check: Callable[[Subject], str | None]) -> Callable[[Subject], str | None]:
        REFUSALS.append(Refusal(check.__name__, phase, check))
        return check

    return add


def _callbacks(s: Subject, *kinds: type[callbacks.Callback]) -> list[str]:
    return [type(c).__name__ for c in s.trainer.callbacks if isinstance(c, kinds)]  # type: ignore[attr-defined]


def _modules(s: Subject, *kinds: type) -> list[str]:
    return [f"{name} ({type(m).__name__})" for name, m in s.module.named_modules() if isinstance(m, kinds)]


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


# --- the Trainer ------------------------------------------------------------------------------------------------------


@_row("trainer")
def accumulate_grad_batches(s: Subject) -> str | None:
    if s.trainer.accumulate_grad_batches != 1:
        return (
            f"Trainer(accumulate_grad_batches={s.trainer.accumulate_grad_batches}) would clip gradients of a scaled loss "
            "and draw several batches for one step. Set it to 1, give the DataLoader the batch size you want per step, "
            "and use DPStrategy(physical_batch_size=...) to fit it into memory."
        )
    return None


@_row("trainer")
def gradient_accumulation_scheduler(s: Subject) -> str | None:
    if _callbacks(s, callbacks.GradientAccumulationScheduler):
        return (
            "GradientAccumulationScheduler changes how many batches make a step, so the sampling rate that was "
            "accounted would no longer hold. Use DPStrategy(physical_batch_size=...) for memory and a fixed batch size."
        )
    return None


@_row("trainer")
def gradient_clip_val(s: Subject) -> str | None:
    if s.trainer.gradient_clip_val:
        return (
            f"Trainer(gradient_clip_val={s.trainer.gradient_clip_val}) clips the noisy mean, which bounds no single "
            "sample. Use DPStrategy(max_grad_norm=...), which clips each sample's gradient, and drop gradient_clip_val."
        )
    return None


@_row("trainer")
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


@_row("trainer")
def sync_batchnorm(s: Subject) -> str | None:
    if getattr(s.trainer.strategy, "_layer_sync", None) is not None:
        return (
            "Trainer(sync_batchnorm=True) couples all samples of the batch across ranks, so one sample's gradient "
            "depends on the others. Drop it and use GroupNorm or LayerNorm."
        )
    return None


@_row("trainer")
def overfit_batches(s: Subject) -> str | None:
    if s.trainer.overfit_batches:  # type: ignore[attr-defined]
        return (
            "Trainer(overfit_batches=...) repeats the same batches, which no amplification by sampling covers. Train "
            "without it, or debug with an ordinary strategy on public data."
        )
    return None


@_row("trainer")
def tuner(s: Subject) -> str | None:
    found = _callbacks(s, callbacks.LearningRateFinder, callbacks.BatchSizeFinder)
    found += [type(c).__name__ for c in s.trainer.callbacks if type(c).__name__ == "_LRCallback"]  # type: ignore[attr-defined]
    if found:
        return (
            f"{_listed(found)} (the Tuner) takes real steps on private data and then rewinds the checkpoint, so its "
            "choice leaks and is not accounted. Choose the learning rate or batch size on public data or by experience."
        )
    return None


@_row("trainer")
def stochastic_weight_averaging(s: Subject) -> str | None:
    if _callbacks(s, callbacks.StochasticWeightAveraging):
        return (
            "StochasticWeightAveraging runs an extra pass over the training data that is neither noised nor accounted. "
            "Use lightning.pytorch.callbacks.EMAWeightAveraging or WeightAveraging: averaging private iterates is free."
        )
    return None


@_row("trainer")
def training_monitors(s: Subject) -> str | None:
    watched = {
        f"{type(c).__name__}(monitor={c.monitor!r})"
        for c in s.trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(c, (callbacks.ModelCheckpoint, callbacks.EarlyStopping))
        and c.monitor is not None
        and _names_training(c.monitor)
    }
    if watched:
        return (
            f"{_listed(sorted(watched))} chooses the released model by a number computed from training data without "
            "noise. Monitor a metric of held-out data (val_...), or 'privacy/epsilon', or use no monitor."
        )
    return None


def _names_training(monitor: str) -> bool:
    return any(monitor == word or monitor.startswith((f"{word}_", f"{word}/")) for word in ("train", "training"))


@_row("trainer")
def unbounded_training(s: Subject) -> str | None:
    endless = s.trainer.max_epochs in (None, -1) and s.trainer.max_steps == -1 and s.trainer.fit_loop.max_epochs == -1
    if s.calibrates and endless:
        return (
            "DPStrategy(eps=...) calibrates the noise to a planned number of steps, and this Trainer has none. Set "
            "max_epochs or max_steps, or give DPStrategy a noise_multiplier instead of eps and read eps as it grows."
        )
    return None


# --- the module -------------------------------------------------------------------------------------------------------


@_row("module")
def manual_optimization(s: Subject) -> str | None:
    if not s.module.automatic_optimization:
        return (
            "automatic_optimization=False lets the module call backward and step by itself, past the private step. Use "
            "automatic optimization with one optimizer; for other loops use lightning_dp.gradients.GradientEngine."
        )
    return None


@_row("module")
def dataloader_iterator(s: Subject) -> str | None:
    if is_param_in_hook_signature(s.module.training_step, "dataloader_iter", explicit=True):
        return (
            "training_step(dataloader_iter) fetches batches by itself, any number for one step, so which samples a "
            "step used is unknown. Take the batch as the argument: training_step(self, batch, batch_idx)."
        )
    return None


@_row("module")
def no_trainable_parameters(s: Subject) -> str | None:
    if not any(p.requires_grad for p in s.module.parameters()):
        return "the module has no trainable parameters, so there is nothing to train. Unfreeze some, or use validate."
    return None


@_row("module")
def lazy_parameters(s: Subject) -> str | None:
    lazy = [name for name, m in s.module.named_modules() if isinstance(m, LazyModuleMixin) and m.has_uninitialized_params()]  # type: ignore[misc]
    if lazy:
        return (
            f"{_listed(lazy)} is not initialised yet: its shape would be read from the first private batch. Run one "
            "forward pass on a made-up batch in configure_model, or give the layer its sizes."
        )
    return None


@_row("module")
def batch_norm(s: Subject) -> str | None:
    found = _modules(s, _BatchNorm)
    if found:
        return (
            f"{_listed(found)} normalises by the whole batch: a sample's gradient depends on the others, and running "
            "statistics store private data without noise. Use nn.GroupNorm (e.g. GroupNorm(min(32, C), C)), LayerNorm, "
            "or in timm a model with norm_layer=timm.layers.GroupNorm1, before creating the optimizer."
        )
    return None


@_row("module")
def running_instance_norm(s: Subject) -> str | None:
    found = [
        f"{name} ({type(m).__name__})"
        for name, m in s.module.named_modules()
        if isinstance(m, (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)) and m.track_running_stats
    ]
    if found:
        return (
            f"{_listed(found)} with track_running_stats=True stores private data in its buffers without noise. Set "
            "track_running_stats=False."
        )
    return None


@_row("module")
def complex_parameters(s: Subject) -> str | None:
    found = [name for name, p in s.module.named_parameters() if p.is_complex()]
    if found:
        return (
            f"complex parameters ({_listed(found)}) are not supported yet: norms and noise on real and imaginary parts "
            "need rules of their own. Represent them as two real channels."
        )
    return None


@_row("module")
def low_precision_parameters(s: Subject) -> str | None:
    found = [
        name
        for name, p in s.module.named_parameters()
        if p.requires_grad and p.is_floating_point() and p.dtype not in (torch.float32, torch.float64)
    ]
    if found:
        return (
            f"trainable parameters in low precision ({_listed(found)}): noise added to them is partly rounded away. "
            "Keep parameters in float32 (module.float()) and use precision='bf16-mixed' for speed."
        )
    return None


@_row("module")
def embedding_max_norm(s: Subject) -> str | None:
    found = [name for name, m in s.module.named_modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.max_norm]
    if found:
        return (
            f"{_listed(found)} has max_norm set: its rows are rescaled in place when private data look them up, an "
            "update without noise. Set max_norm=None."
        )
    return None


@_row("module")
def embedding_frequency(s: Subject) -> str | None:
    kinds = (nn.Embedding, nn.EmbeddingBag)
    found = [name for name, m in s.module.named_modules() if isinstance(m, kinds) and m.scale_grad_by_freq]
    if found:
        return (
            f"{_listed(found)} has scale_grad_by_freq=True: a sample's gradient depends on how often others use the "
            "same word. Set scale_grad_by_freq=False."
        )
    return None


@_row("module")
def sparse_embedding(s: Subject) -> str | None:
    kinds = (nn.Embedding, nn.EmbeddingBag)
    found = [name for name, m in s.module.named_modules() if isinstance(m, kinds) and m.sparse]
    if found:
        return (
            f"{_listed(found)} has sparse=True, and a gradient that is non-zero only where data touched it reveals "
            "which words occurred. Set sparse=False; the noise makes the gradient dense anyway."
        )
    return None


@_row("module")
def spectral_norm(s: Subject) -> str | None:
    found = [
        name
        for name, m in s.module.named_modules()
        if type(m).__name__ == "_SpectralNorm" or any("SpectralNorm" in type(h).__name__ for h in m._forward_pre_hooks.values())
    ]
    if found:
        return (
            f"spectral_norm on {_listed(found)} updates its buffers in every forward pass and ties all weights of the "
            "layer together. Remove it (torch.nn.utils.parametrize.remove_parametrizations)."
        )
    return None


@_row("module")
def recurrent_layers(s: Subject) -> str | None:
    found = [
        f"{name} ({type(m).__name__})"
        for name, m in s.module.named_modules()
        if isinstance(m, nn.RNNBase) and any(p.requires_grad for p in m.parameters())
    ]
    if found:
        return (
            f"{_listed(found)} reads its weights inside one fused function, where no gradient per sample can be seen. "
            "Use opacus.layers.DPLSTM, DPGRU or DPRNN with batch_first=True, or freeze it."
        )
    return None


@_row("module")
def multihead_attention(s: Subject) -> str | None:
    found = [
        f"{name} (dropout={m.dropout:g}, batch_first={m.batch_first})"
        for name, m in s.module.named_modules()
        if isinstance(m, nn.MultiheadAttention)
        and any(p.requires_grad for p in m.parameters())
        and (m.dropout > 0 or not m.batch_first)
    ]
    if found:
        return (
            f"nn.MultiheadAttention at {_listed(found)}: its gradient per sample is found by repeating the layer for each "
            "sample, which needs the batch on axis 0 and no dropout inside. Use batch_first=True and set the attention's "
            "dropout to 0 (layer.self_attn.dropout = 0.0 in nn.TransformerEncoderLayer; its other dropouts may stay), or "
            "opacus.layers.DPMultiheadAttention(..., batch_first=True)."
        )
    return None


@_row("module")
def compiled_modules(s: Subject) -> str | None:
    found = [
        name or "the module"
        for name, m in s.module.named_modules()
        if type(m).__name__ == "OptimizedModule" or m._compiled_call_impl is not None  # the latter: module.compile()
    ]
    if getattr(s.module, "_compiler_ctx", None) is not None:
        found.append("the module")
    if found:
        return (
            f"torch.compile on {_listed(found)} is not tested with the gradient taps yet. Train without it; validate, "
            "test and predict may use a compiled copy."
        )
    return None


@_row("module")
def wrapped_modules(s: Subject) -> str | None:
    kinds = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    found = _modules(s, *kinds)
    if found:
        return (
            f"{_listed(found)} exchanges raw gradients between devices before they are clipped. Remove the wrapper and "
            "let Trainer(devices=...) run the ranks."
        )
    return None


# --- the optimizers ---------------------------------------------------------------------------------------------------


@_row("optimizers")
def several_optimizers(s: Subject) -> str | None:
    # Lightning puts a stand-in where configure_optimizers returned None.
    number = sum(type(o).__name__ != "_MockOptimizer" for o in s.optimizers)
    if number != 1:
        return (
            f"configure_optimizers returned {number} optimizers; a private step accounts for exactly one. Use "
            "one optimizer with several parameter groups."
        )
    return None


@_row("optimizers")
def closure_optimizers(s: Subject) -> str | None:
    if any(isinstance(o, torch.optim.LBFGS) for o in s.optimizers):
        return (
            "LBFGS evaluates the loss several times in one step, each time on private data. Use a first-order "
            "optimizer such as SGD or Adam."
        )
    return None


@_row("optimizers")
def foreign_parameters(s: Subject) -> str | None:
    own = {id(p) for p in s.module.parameters()}
    foreign = sum(id(p) not in own for o in s.optimizers for g in o.param_groups for p in g["params"])
    if foreign:
        return (
            f"the optimizer holds {foreign} parameters that are not part of the LightningModule; their gradients would be "
            "neither clipped nor noised. Assign the object that owns them to an attribute of the module."
        )
    return None


@_row("optimizers")
def scheduler_monitors(s: Subject) -> str | None:
    monitors = [c.monitor for c in s.trainer.lr_scheduler_configs if c.reduce_on_plateau]
    watched = [m for m in monitors if isinstance(m, str) and _names_training(m)]
    if watched:
        return (
            f"a learning-rate scheduler monitors {_listed(watched)}, a number computed from training data without "
            "noise, and the learning rate shows what it was. Monitor a metric of held-out data (val_...), or use a "
            "scheduler that follows the step count."
        )
    return None
