"""HiResCAM: where a network's score comes from, as a map to set beside the attention's slice weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.volumes.convert import VolumeNet
from lightning_dp.models.volumes.network import SliceNet
from lightning_dp.models.volumes.slices import AXES, check_volumes, split_by_axis

__all__ = ("hirescam", "slice_mass")


def hirescam(
    model: nn.Module, inputs: Tensor, layer: nn.Module | None = None, target: int | Tensor | None = None
) -> list[Tensor]:
    """The maps ``sum_k (ds/dA_k) * A_k``, element by element, of a score s and the features A that a layer returns.

    Unlike Grad-CAM it does not average the gradient over positions first (Draelos and Carin 2020, arXiv 2011.08891). The maps
    have a sign; apply ``relu`` to show what speaks *for* the class. The model is evaluated in evaluation mode and left in
    the mode it was in. A map shows its input: those of training records are as private as the records.

    Args:
        model: maps inputs to logits ``(N, K)``.
        inputs: a batch.
        layer: a submodule that returns ``(R, channels, *positions)``; by default ``model.backbone``, for networks of this
            package whose backbone ends with maps.
        target: the class whose logit is the score: one for all, or one for each input ``(N,)``. ``None``: the class with
            the largest logit.

    Returns:
        ``(R, *positions)`` for each call of the layer. For a :class:`SliceNet` R counts slices, for a :class:`VolumeNet`
        volumes.

    Raises:
        PrivacyConfigError: the layer is no part of the model, was not called, or returns no maps.
    """
    layer = getattr(model, "backbone", None) if layer is None else layer
    if layer is None or layer not in set(model.modules()):
        raise PrivacyConfigError("hirescam(layer=...) must be a submodule of the model: model.get_submodule(name).")
    seen: list[Tensor] = []
    modes = {module: module.training for module in model.modules()}
    handle = layer.register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        model.eval()
        with torch.enable_grad():
            # Frozen layers or not: an input that requires a gradient makes every activation require one.
            logits = model(inputs.detach().clone().requires_grad_())
            score = _score(logits, target)
            if not seen or any(not isinstance(a, Tensor) or a.dim() < 3 for a in seen):
                raise PrivacyConfigError(
                    f"{type(layer).__name__} returned no maps (R, channels, *positions) to weigh. Choose a layer before "
                    "the pooling: hirescam(model, inputs, layer=model.get_submodule(name))."
                )
            gradients = torch.autograd.grad(score, seen)
    finally:
        handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return [(gradient * a).sum(1).detach() for gradient, a in zip(gradients, seen, strict=True)]


def slice_mass(
    model: SliceNet | VolumeNet,
    volumes: Tensor,
    layer: nn.Module | None = None,
    target: int | Tensor | None = None,
) -> dict[str, Tensor]:
    """The share of the HiResCAM map that falls on each slice: ``(N, Z)``, ``(N, X)``, ``(N, Y)`` by axis.

    The absolute values of the map are summed over each slice. (Projecting the map to slices is this project's choice, to
    compare it with attention weights.) For a :class:`SliceNet` the sum over the slices of all its views is 1. A map of a
    :class:`VolumeNet`, coarser than the volume, is interpolated linearly along each axis, and the sum along each axis is 1.

    Args:
        model: one of this package's networks on volumes.
        volumes: ``(N, C, Z, X, Y)``.
        layer: see :func:`hirescam`.
        target: see :func:`hirescam`.
    """
    volumes = check_volumes(volumes, model.in_channels)
    maps = hirescam(model, volumes, layer, target)
    if isinstance(model, SliceNet):
        mass = torch.cat([m.abs().flatten(1).sum(1).reshape(len(volumes), -1) for m in maps], 1)
        return split_by_axis(_shares(mass), model.lengths(volumes))
    (found,) = maps
    return _along_axes(found.abs(), {axis: volumes.shape[dim] for axis, dim in AXES.items()})


def _along_axes(mass: Tensor, lengths: Mapping[str, int]) -> dict[str, Tensor]:
    result = {}
    for position, (axis, length) in enumerate(lengths.items()):
        others = [1 + p for p in range(len(lengths)) if p != position]
        profile = F.interpolate(mass.sum(others).unsqueeze(1), size=length, mode="linear", align_corners=False)
        result[axis] = _shares(profile.squeeze(1))
    return result


def _shares(mass: Tensor) -> Tensor:
    """Divided by the sum; equal shares where there is nothing to share."""
    total = mass.sum(1, keepdim=True)
    return torch.where(total > 0, mass / total, 1 / mass.shape[1])


def _score(logits: Tensor, target: int | Tensor | None) -> Tensor:
    if logits.dim() != 2:
        raise PrivacyConfigError(f"hirescam needs logits (N, classes), got {tuple(logits.shape)}.")
    if target is None:
        chosen = logits.argmax(1)
    else:
        chosen = torch.as_tensor(target, device=logits.device).expand(len(logits))
    # The samples do not meet in the network, so the gradient of the sum holds that of each.
    return logits.gather(1, chosen.unsqueeze(1)).sum()
