"""Refusals about the LightningModule, asked once it is configured."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter

from lightning_dp.gradients.reals import carries_gradient, real_dtype
from lightning_dp.strategies.refusals.table import Subject, listed, modules_of, row


@row("module")
def dataloader_iterator(s: Subject) -> str | None:
    if is_param_in_hook_signature(s.module.training_step, "dataloader_iter", explicit=True):
        return (
            "training_step(dataloader_iter) fetches batches by itself, any number for one step, so which samples a "
            "step used is unknown. Take the batch as the argument: training_step(self, batch, batch_idx)."
        )
    return None


@row("module")
def no_trainable_parameters(s: Subject) -> str | None:
    if not any(p.requires_grad for p in s.module.parameters()):
        return "the module has no trainable parameters, so there is nothing to train. Unfreeze some, or use validate."
    return None


@row("module")
def lazy_parameters(s: Subject) -> str | None:
    lazy = [name for name, p in s.module.named_parameters() if isinstance(p, UninitializedParameter)]
    if lazy:
        return (
            f"{listed(lazy)} is not initialised yet: its shape would be read from the first private batch. Run one "
            "forward pass on a made-up batch in configure_model, or give the layer its sizes."
        )
    return None


@row("module")
def batch_norm(s: Subject) -> str | None:
    found = modules_of(s, _BatchNorm)
    if found:
        return (
            f"{listed(found)} normalises by the whole batch: a sample's gradient depends on the others, and running "
            "statistics store private data without noise. Call lightning_dp.replace_batch_norm(model) when the module is "
            "built, which puts nn.GroupNorm in its place with the same weights, or use GroupNorm or LayerNorm yourself."
        )
    return None


@row("module")
def running_instance_norm(s: Subject) -> str | None:
    found = [
        f"{name} ({type(m).__name__})"
        for name, m in s.module.named_modules()
        if isinstance(m, (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)) and m.track_running_stats
    ]
    if found:
        return (
            f"{listed(found)} with track_running_stats=True stores private data in its buffers without noise. Set "
            "track_running_stats=False."
        )
    return None


@row("module")
def complex_ascent(s: Subject) -> str | None:
    found = [name for name, p in s.module.named_parameters() if p.is_complex()]
    if found and s.ascends:
        return (
            f"BAMStrategy moves parameters along their gradients before it takes the gradient again, which is not built for "
            f"complex parameters ({listed(found)}). Use DPStrategy, or two real channels for each complex one."
        )
    return None


@row("module")
def low_precision_parameters(s: Subject) -> str | None:
    found = [
        name
        for name, p in s.module.named_parameters()
        if p.requires_grad and carries_gradient(p) and real_dtype(p.dtype) not in (torch.float32, torch.float64)
    ]
    if found:
        return (
            f"trainable parameters in low precision ({listed(found)}): noise added to them is partly rounded away. "
            "Keep parameters in float32 (module.float()) and use precision='bf16-mixed' for speed."
        )
    return None


@row("module")
def embedding_max_norm(s: Subject) -> str | None:
    found = [
        name for name, m in s.module.named_modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.max_norm
    ]
    if found:
        return (
            f"{listed(found)} has max_norm set: its rows are rescaled in place when private data look them up, an "
            "update without noise. Set max_norm=None."
        )
    return None


@row("module")
def embedding_frequency(s: Subject) -> str | None:
    kinds = (nn.Embedding, nn.EmbeddingBag)
    found = [name for name, m in s.module.named_modules() if isinstance(m, kinds) and m.scale_grad_by_freq]
    if found:
        return (
            f"{listed(found)} has scale_grad_by_freq=True: a sample's gradient depends on how often others use the "
            "same word. Set scale_grad_by_freq=False."
        )
    return None


@row("module")
def sparse_embedding(s: Subject) -> str | None:
    kinds = (nn.Embedding, nn.EmbeddingBag)
    found = [name for name, m in s.module.named_modules() if isinstance(m, kinds) and m.sparse]
    if found:
        return (
            f"{listed(found)} has sparse=True, and a gradient that is non-zero only where data touched it reveals "
            "which words occurred. Set sparse=False; the noise makes the gradient dense anyway."
        )
    return None


@row("module")
def spectral_norm(s: Subject) -> str | None:
    found = [
        name
        for name, m in s.module.named_modules()
        if type(m).__name__ == "_SpectralNorm"
        or any("SpectralNorm" in type(h).__name__ for h in m._forward_pre_hooks.values())
    ]
    if found:
        return (
            f"spectral_norm on {listed(found)} updates its buffers in every forward pass and ties all weights of the "
            "layer together. Remove it (torch.nn.utils.parametrize.remove_parametrizations)."
        )
    return None


@row("module")
def wrapped_modules(s: Subject) -> str | None:
    kinds = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    found = modules_of(s, *kinds)
    if found:
        return (
            f"{listed(found)} exchanges raw gradients between devices before they are clipped. Remove the wrapper and "
            "let Trainer(devices=...) run the ranks."
        )
    return None
