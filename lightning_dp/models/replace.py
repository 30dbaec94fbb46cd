"""From batch normalisation, which couples the samples of a batch, to group normalisation, which does not."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter
from typing_extensions import override

from lightning_dp.errors import PrivacyConfigError

__all__ = ("group_count", "replace_batch_norm")

USUAL_GROUPS = 32
CHANNELS_PER_GROUP = 4  # of a 1x1 map a group of one channel is always 0, and a group of two is +-1 whatever came in
STAGES = ("drop", "act")  # what timm puts into a normalisation layer beside the normalisation, in the order of use


def replace_batch_norm(model: nn.Module, groups: int | None = None) -> nn.Module:
    """Replaces every batch normalisation of a network by a group normalisation.

    Batch normalisation makes a sample's gradient depend on the other samples and stores averages of private data in its
    buffers, so :class:`lightning_dp.DPStrategy` refuses it. Group normalisation (Wu and He 2018, arXiv 1803.08494) works
    within one sample. The affine weight and bias stay the same parameter objects, under the same names in the state dict;
    the running statistics are dropped. **A pretrained network therefore computes another function afterwards** and needs
    fine-tuning; to keep its function, freeze the statistics instead (``timm.layers.freeze_batch_norm_2d``), which is
    private too where the statistics are public.

    ``BatchNorm1d/2d/3d``, ``SyncBatchNorm`` and timm's ``BatchNormAct2d`` (with its activation and drop layer) are
    replaced. Frozen batch normalisation (torchvision's, timm's) is a fixed map and stays. Forward hooks of the replaced
    layers are not carried over.

    Args:
        model: changed in place. If it is itself a batch normalisation, only the returned module is new.
        groups: at most so many groups: each layer of C channels gets the largest divisor of C not above it. By default 32,
            or fewer where a group would hold less than four channels: one value normalised by itself is always zero.

    Returns:
        The model, or what replaces it.

    Raises:
        PrivacyConfigError: for ``groups < 1``, lazy layers that have not seen their first input, and subclasses that
            compute something of their own (timm's ``SplitBatchNorm2d``), of which nobody knows what should replace them.

    Example:
        >>> from torch import nn
        >>> import lightning_dp
        >>> model = lightning_dp.replace_batch_norm(nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64)))
        >>> model[1].num_groups
        16
    """
    if groups is not None and groups < 1:
        raise PrivacyConfigError(f"replace_batch_norm(groups={groups!r}): give at least one group, or None")
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    replaced: dict[nn.Module, nn.Module] = {norm: _group_norm(norm, name, groups) for name, norm in found}
    for module in list(model.modules()):
        for name, child in module._modules.items():  # a layer that stands in several places is replaced in each
            if child in replaced:
                module._modules[name] = replaced[child]
    return replaced.get(model, model)


class GroupNormAct(nn.GroupNorm):
    """Group normalisation, then a drop layer, then an activation: what replaces timm's ``BatchNormAct2d``.

    Args:
        num_groups: groups.
        num_channels: channels, a multiple of ``num_groups``.
        eps: added to the variance.
        affine: whether there are a weight and a bias.
        drop: applied to the normalised values.
        act: applied last.
    """

    def __init__(
        self, num_groups: int, num_channels: int, eps: float, affine: bool, drop: nn.Module, act: nn.Module
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine)
        self.drop, self.act = drop, act

    @override
    def forward(self, input: Tensor) -> Tensor:
        """Normalised, dropped and activated; the shape stays."""
        result: Tensor = self.act(self.drop(super().forward(input)))
        return result


def _group_norm(norm: _BatchNorm, name: str, groups: int | None) -> nn.Module:
    where = f"{name or 'the model'} ({type(norm).__name__})"
    _refuse_unknown(norm, where)
    channels = norm.num_features
    stages = {stage: norm.get_submodule(stage) for stage in STAGES if stage in norm._modules}
    count = group_count(channels, groups)
    new: nn.GroupNorm
    if stages:
        drop, act = (stages.get(stage, nn.Identity()) for stage in STAGES)
        new = GroupNormAct(count, channels, norm.eps, norm.affine, drop, act)
    else:
        new = nn.GroupNorm(count, channels, norm.eps, norm.affine)
    for parameter in ("weight", "bias"):  # the objects themselves: an optimizer made earlier still holds them
        if norm._parameters.get(parameter) is not None:
            new._parameters[parameter] = norm._parameters[parameter]
    new.training = norm.training
    return new


def group_count(channels: int, groups: int | None = None) -> int:
    """The largest divisor of ``channels`` that is not above ``groups``; None: see :func:`replace_batch_norm`."""
    most = min(USUAL_GROUPS, channels // CHANNELS_PER_GROUP) if groups is None else min(groups, channels)
    return next(g for g in range(max(most, 1), 0, -1) if channels % g == 0)


def _refuse_unknown(norm: _BatchNorm, where: str) -> None:
    if isinstance(norm.weight, UninitializedParameter):
        raise PrivacyConfigError(
            f"{where} does not know its number of channels yet. Run one forward pass on a made-up batch first."
        )
    known = type(norm).__module__.startswith("torch.nn.modules.") or "act" in norm._modules
    own = "forward" in vars(type(norm)) and not known
    if own or set(norm._modules) - set(STAGES) or "forward" in vars(norm):
        raise PrivacyConfigError(
            f"{where} is a batch normalisation with a computation of its own, so nothing says what should replace it. "
            "Replace it by hand, by layers that act within one sample."
        )
