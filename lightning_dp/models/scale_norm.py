"""ScaleNorm: one more normalisation after the addition of a residual block, and a surgeon that puts it into networks.

Where a skip connection and a residual branch meet, two activations of different scales are mixed, and over the depth of a
network their variances add up. A group normalisation after the addition undoes both (Klause et al. 2022, "Differentially
private training of residual networks with scale normalisation", arXiv 2203.00324).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.replace import USUAL_GROUPS, group_count

__all__ = ("GroupSearch", "ResidualBlock", "ScaleNorm", "add_scale_norm", "search_groups")

GROUPS = (1, 2, 4, 8, 16, 32, 64)  # what the paper searches


class ScaleNorm(nn.GroupNorm):
    """Group normalisation of what a residual addition gives; a class of its own only in order to be found again.

    Args:
        num_channels: channels C.
        groups: the most groups: the largest divisor of C not above it is taken.
        eps: added to the variance.
        affine: whether there are a weight and a bias.

    Shape:
        ``(N, C, ...)`` -> the same.
    """

    def __init__(self, num_channels: int, groups: int = USUAL_GROUPS, eps: float = 1e-5, affine: bool = True) -> None:
        if groups < 1:
            raise PrivacyConfigError(f"ScaleNorm(groups={groups!r}): give at least one group.")
        super().__init__(group_count(num_channels, groups), num_channels, eps, affine)


@dataclass(frozen=True)
class ResidualBlock:
    """What :func:`add_scale_norm` has to know of a class of residual blocks.

    Attributes:
        last_conv: Name of the convolution whose output channels are the block's.
        activation: Name of the activation that follows the addition and is called nowhere else; None: there is none, or it
            is called in several places.
    """

    last_conv: str
    activation: str | None = None


_KNOWN: Mapping[str, ResidualBlock] = {
    "torchvision.models.resnet.BasicBlock": ResidualBlock("conv2"),
    "torchvision.models.resnet.Bottleneck": ResidualBlock("conv3"),
    "timm.models.resnet.BasicBlock": ResidualBlock("conv2", "act2"),
    "timm.models.resnet.Bottleneck": ResidualBlock("conv3", "act3"),
    "timm.models.resnetv2.Bottleneck": ResidualBlock("conv3", "act3"),
    "timm.models.resnetv2.PreActBasic": ResidualBlock("conv2"),
    "timm.models.resnetv2.PreActBottleneck": ResidualBlock("conv3"),
}
#: Blocks whose final activation is the same module as the earlier ones: their forward pass is written out here.
_SHARED_ACTIVATION = ("torchvision.models.resnet.BasicBlock", "torchvision.models.resnet.Bottleneck")


class NormalisedBlock(nn.Module):
    """A residual block, and a ScaleNorm of its complete output."""

    def __init__(self, block: nn.Module, scale_norm: ScaleNorm) -> None:
        super().__init__()
        self.block, self.scale_norm = block, scale_norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalised output of the block."""
        out: Tensor = self.scale_norm(self.block(x))
        return out


class NormalisedAddition(nn.Module):
    """A residual block of torchvision with a ScaleNorm between its addition and its last activation.

    There one activation module serves the whole block, so that the norm cannot be slipped in before it; the forward pass
    is the block's own, written out.
    """

    def __init__(self, block: nn.Module, scale_norm: ScaleNorm) -> None:
        super().__init__()
        self.block, self.scale_norm = block, scale_norm

    def forward(self, x: Tensor) -> Tensor:
        """Output of the block with its sum normalised."""
        block, out = self.block, x
        stages = [n for n in ("1", "2", "3") if f"conv{n}" in block._modules]
        for number in stages:
            out = block.get_submodule(f"bn{number}")(block.get_submodule(f"conv{number}")(out))
            if number != stages[-1]:
                out = block.get_submodule("relu")(out)
        shortcut = x if block._modules.get("downsample") is None else block.get_submodule("downsample")(x)
        result: Tensor = block.get_submodule("relu")(self.scale_norm(out + shortcut))
        return result


def add_scale_norm(
    model: nn.Module,
    groups: int = USUAL_GROUPS,
    where: Literal["output", "addition"] = "output",
    blocks: Mapping[type[nn.Module], ResidualBlock] | None = None,
) -> nn.Module:
    """Puts a ScaleNorm of its own into every residual block of a network, **in place**.

    Known are the blocks of torchvision's ResNet family (ResNeXt, Wide ResNet) and of timm's ``resnet`` and ``resnetv2``
    families: BasicBlock, Bottleneck, PreActBasic, PreActBottleneck. ``copy.deepcopy`` the network first in order to keep
    the old one. Names in the state dict change (``layer1.0.conv1`` becomes ``layer1.0.block.conv1``), so that pretrained
    weights are loaded before. Batch normalisation stays; :func:`replace_batch_norm` replaces it.

    Args:
        model: changed in place. If it is itself a residual block, only the returned module is new.
        groups: the most groups: each block of C channels gets the largest divisor of C not above it.
        where: ``"output"`` normalises a block's complete output, as the paper's public code does, where no activation
            follows the addition; ``"addition"`` normalises before the activation that follows the addition. In blocks
            where none follows (pre-activation) the two are the same.
        blocks: further classes of blocks, and what to know of them.

    Returns:
        The model, or what replaces it.

    Raises:
        PrivacyConfigError: no known block was found, ScaleNorm is already there, a block stands in several places (it would
            share its norm), or ``where="addition"`` cannot be done in a class of blocks.

    Example:
        >>> import torchvision
        >>> from lightning_dp.models import add_scale_norm, replace_batch_norm
        >>> model = add_scale_norm(replace_batch_norm(torchvision.models.resnet18(num_classes=10)))
    """
    if where not in ("output", "addition"):
        raise PrivacyConfigError(f"add_scale_norm(where={where!r}): choose 'output' or 'addition'.")
    if any(isinstance(module, ScaleNorm) for module in model.modules()):
        raise PrivacyConfigError(
            "The network has ScaleNorm already: it would be normalised twice. Start from a new one."
        )
    found = list(_found(model, blocks or {}))
    if not found:
        raise PrivacyConfigError(
            f"add_scale_norm found no residual block that it knows in {type(model).__name__}, and changed nothing. Known are "
            f"{', '.join(sorted(_KNOWN))}. For other classes give blocks={{MyBlock: ResidualBlock(last_conv='conv2')}}."
        )
    _refuse_shared(model, found)
    new = {block: _normalised(block, facts, groups, where) for block, facts in found}
    for module in list(model.modules()):
        if isinstance(module, (NormalisedBlock, NormalisedAddition)):
            continue
        for name, child in module._modules.items():
            if child in new:
                module._modules[name] = new[child]
    return new.get(model, model)


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _found(
    model: nn.Module, blocks: Mapping[type[nn.Module], ResidualBlock]
) -> Iterator[tuple[nn.Module, ResidualBlock]]:
    for module in model.modules():
        facts = next((blocks[k] for k in type(module).__mro__ if k in blocks), None) or _KNOWN.get(
            _qualified(type(module))
        )
        if facts is not None:
            yield module, facts


def _refuse_shared(model: nn.Module, found: Sequence[tuple[nn.Module, ResidualBlock]]) -> None:
    places: dict[nn.Module, list[str]] = {block: [] for block, _ in found}
    for name, module in model.named_modules(remove_duplicate=False):
        if module in places:
            places[module].append(name)
    for names in places.values():
        if len(names) > 1:
            raise PrivacyConfigError(
                f"One residual block stands in several places ({', '.join(names)}), which would share one ScaleNorm. Give "
                "each place a block of its own (copy.deepcopy)."
            )


def _normalised(block: nn.Module, facts: ResidualBlock, groups: int, where: str) -> nn.Module:
    conv = block._modules.get(facts.last_conv)
    channels = getattr(conv, "out_channels", None)
    if not isinstance(channels, int):
        raise PrivacyConfigError(
            f"{_qualified(type(block))} has no convolution {facts.last_conv!r}, so that its channels are not known. "
            "Name its last one: ResidualBlock(last_conv=...)."
        )
    norm = ScaleNorm(channels, groups).to(next(iter(block.parameters())).device)
    if where == "output":
        return NormalisedBlock(block, norm)
    if _qualified(type(block)) in _SHARED_ACTIVATION:
        return NormalisedAddition(block, norm)
    if facts.activation is None:  # nothing follows the addition
        return NormalisedBlock(block, norm)
    activation = block.get_submodule(facts.activation)
    block._modules[facts.activation] = nn.Sequential(norm, activation)
    return block


@dataclass(frozen=True)
class GroupSearch:
    """Scores by number of groups.

    Attributes:
        scores: Score of each number of groups, in the order in which they were tried.
    """

    scores: Mapping[int, float]

    @property
    def best(self) -> int:
        """The number of groups with the highest score; of equals, the first that was tried."""
        return max(self.scores, key=self.scores.__getitem__)


def search_groups(score: Callable[[int], float], groups: Sequence[int] = GROUPS) -> GroupSearch:
    """Tries numbers of groups: the paper's search over 1 to 64.

    **Every try on private data is a training run of its own**, with an eps of its own that no later report includes: score
    on public data, or account for all tries.

    Args:
        score: from the number of groups to a score, higher is better: builds, trains and evaluates a network.
        groups: what to try.

    Raises:
        PrivacyConfigError: nothing to try.
    """
    if not groups:
        raise PrivacyConfigError("search_groups: no number of groups to try.")
    return GroupSearch({count: float(score(count)) for count in groups})
