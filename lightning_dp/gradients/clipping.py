"""Clipping: from the units' gradient norms to the coefficients of the sum, and the sensitivity that they guarantee."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError

__all__ = ("CLIPPING_NAMES", "Clipping", "ClippingName", "fits")

ClippingName = Literal["flat", "per_layer", "automatic"]
CLIPPING_NAMES: tuple[ClippingName, ...] = ("flat", "per_layer", "automatic")
STABILITY = 0.01  # gamma of automatic clipping
SMALLEST = 1e-8  # below it, a norm whose squares underflowed to zero could exceed the bound
ROUND_UP = 1.0 + 2.0**-20  # norms are rounded up: the coefficient may not exceed bound / norm by a rounding error


@dataclass(frozen=True)
class Clipping:
    """How a unit's gradient is bounded.

    **Guarantee**: for any gradients whatever, each unit's coefficients make its contribution to the sum at most
    ``max_grad_norm`` in L2 norm over all parameters together, so adding or removing one unit moves the sum by at most
    :attr:`sensitivity`. The noise takes its scale from this same object; no second copy of the bound exists that could
    go out of step with it.

    Args:
        max_grad_norm: the bound C > 0.
        name: ``"flat"``: scale by ``min(1, C / norm)`` (Abadi et al. 2016, arXiv 1607.00133, algorithm 1).
            ``"per_layer"``: the same for each of L layers by itself with the bound ``C / sqrt(L)`` (McMahan et al. 2018,
            arXiv 1710.06963), L counting modules that own trainable parameters; or with the bounds in ``layers``.
            ``"automatic"``: scale by ``C / (norm + 0.01)``, so that every unit counts alike and C is only a step size
            (Bu et al. 2023, arXiv 2206.07136, AUTO-S).
        layers: for ``"per_layer"`` with bounds of your own: ``(pattern, share)`` pairs, one group of parameters each,
            whose bound is C times its share of the root of the sum of squares. :meth:`of` builds them from bounds.

    Raises:
        PrivacyConfigError: for a bound that is not positive and finite, an unknown name, or layers that cannot be used.
    """

    max_grad_norm: float
    name: ClippingName = "flat"
    layers: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if not _is_bound(self.max_grad_norm):
            raise PrivacyConfigError(
                f"max_grad_norm={self.max_grad_norm!r} bounds nothing: it must be a finite number of at least "
                f"{SMALLEST:g} (float32 gradients much smaller than that have squares that vanish). 1.0 is a common "
                "start; smaller values with a larger learning rate often train better."
            )
        if self.name not in CLIPPING_NAMES:
            known = ", ".join(CLIPPING_NAMES)
            raise PrivacyConfigError(
                f"unknown clipping {self.name!r}; choose one of {known} (or adaptive, in a strategy)"
            )
        if self.layers and self.name != "per_layer":
            raise PrivacyConfigError(
                f"bounds for single layers need clipping='per_layer', not {self.name!r}: one norm over all parameters has "
                "one bound."
            )
        if any(not _is_bound(share) for _, share in self.layers) or len(dict(self.layers)) != len(self.layers):
            raise PrivacyConfigError(
                f"max_grad_norm={dict(self.layers)!r}: every layer needs one bound, a finite number of at least "
                f"{SMALLEST:g}."
            )

    @classmethod
    def of(cls, max_grad_norm: float | Mapping[str, float], name: ClippingName = "flat") -> Clipping:
        """The clipping that ``max_grad_norm`` describes: one bound, or one for each group of layers.

        Args:
            max_grad_norm: the bound C, or a mapping from names to bounds. A name is that of a parameter or of a module
                (all parameters below it), or a pattern with ``*`` (``"encoder.*.bias"``, ``"*"`` for the rest). The first
                that fits a parameter counts. The parameters of one name are one group, clipped together; C is then
                the root of the sum of the bounds' squares.
            name: how to clip; a mapping needs ``"per_layer"``.

        Raises:
            PrivacyConfigError: as the class.
        """
        if not isinstance(max_grad_norm, Mapping):
            return cls(max_grad_norm, name)
        layers = tuple(max_grad_norm.items())
        if not layers:
            raise PrivacyConfigError("max_grad_norm={} bounds nothing: give one bound, or one for each layer.")
        bounded = all(_is_bound(bound) for _, bound in layers)
        return cls(math.hypot(*(bound for _, bound in layers)) if bounded else 1.0, name, layers)

    @property
    def sensitivity(self) -> float:
        """The most by which one unit can move the clipped sum, in L2 norm."""
        return self.max_grad_norm

    @property
    def by_layer(self) -> bool:
        """Whether each layer is clipped by itself."""
        return self.name == "per_layer"

    def groups(
        self, module: nn.Module, parameters: Collection[nn.Parameter] | None = None
    ) -> tuple[dict[nn.Parameter, int], int]:
        """The clipping group of each parameter, and the number G of groups.

        Args:
            module: the network.
            parameters: those that take part; ``None`` for all that are trainable.

        Raises:
            PrivacyConfigError: if a trainable parameter has no bound, or a bound has no parameter (a misspelt name would
                leave the layer that was meant to another bound).
        """
        among = [p for p in module.parameters() if p.requires_grad] if parameters is None else parameters
        if not self.by_layer:
            return dict.fromkeys(among, 0), 1
        taking_part = frozenset(among)
        if self.layers:
            return self._named_groups(module, taking_part), len(self.layers)
        group: dict[nn.Parameter, int] = {}
        number = 0
        for child in module.modules():
            own = [p for p in child.parameters(recurse=False) if p in taking_part and p not in group]
            group.update(dict.fromkeys(own, number))
            number += bool(own)
        return group, number

    def _named_groups(self, module: nn.Module, taking_part: frozenset[nn.Parameter]) -> dict[nn.Parameter, int]:
        group: dict[nn.Parameter, int] = {}
        missing, unused = [], {pattern for pattern, _ in self.layers}
        for name, parameter in module.named_parameters():
            found = next((i for i, (pattern, _) in enumerate(self.layers) if fits(name, pattern)), None)
            if found is not None:
                unused.discard(self.layers[found][0])
                group[parameter] = found
            elif parameter in taking_part:
                missing.append(name)
        if missing:
            raise PrivacyConfigError(
                f"max_grad_norm gives no bound for {', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''}: a "
                'gradient without a bound is a gradient without privacy. Add their layer, or "*" for the rest.'
            )
        if unused:
            raise PrivacyConfigError(
                f"max_grad_norm gives bounds to {', '.join(sorted(unused))}, which no parameter is called (or an earlier "
                "name takes all of them). Use names as in module.named_parameters(), the particular before the general."
            )
        return {parameter: found for parameter, found in group.items() if parameter in taking_part}

    def bounds(self, num_groups: int) -> list[float]:
        """The bound of each of ``num_groups`` groups; the root of the sum of their squares is :attr:`sensitivity`."""
        if not self.layers:
            return [self.max_grad_norm / math.sqrt(num_groups)] * num_groups
        assert num_groups == len(self.layers), "one row of norms for each group"
        whole = math.hypot(*(share for _, share in self.layers))
        return [self.max_grad_norm * (share / whole) for _, share in self.layers]

    def coefficients(self, squared_norms: Tensor) -> tuple[Tensor, Tensor]:
        """The factor of every unit in every group of parameters.

        Args:
            squared_norms: ``(G, U)``, one row for each layer, or a single row.

        Returns:
            Coefficients ``(G, U)``, and the boolean ``(U,)`` of units whose norm is finite. A unit that is not finite
            gets coefficient zero everywhere: one such sample must neither destroy the model nor escape the bound.
        """
        finite = torch.isfinite(squared_norms.sum(0))
        norms = torch.where(finite, squared_norms, squared_norms.new_zeros(())).sqrt() * ROUND_UP
        bound = norms.new_tensor(self.bounds(norms.shape[0])).unsqueeze(1)
        scale = bound / (norms + STABILITY) if self.name == "automatic" else (bound / norms).clamp(max=1.0)
        return torch.where(finite, scale, scale.new_zeros(())), finite


def _is_bound(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and SMALLEST <= value < math.inf  # type: ignore[operator]


def fits(name: str, pattern: str) -> bool:
    """Whether a parameter's name is, lies below, or matches ``pattern``."""
    return name == pattern or name.startswith(f"{pattern}.") or ("*" in pattern and fnmatchcase(name, pattern))
