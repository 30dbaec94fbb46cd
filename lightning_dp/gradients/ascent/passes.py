"""The two passes of bias-aware minimisation and the gradients that they are mixed to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.gradients.ascent.directions import Directions
from lightning_dp.gradients.ascent.shift import Shift
from lightning_dp.gradients.contributions import Contribution, mixed
from lightning_dp.gradients.memory import Memory
from lightning_dp.gradients.units import UnitMap

if TYPE_CHECKING:
    from lightning_dp.gradients.backward import BackwardPass
    from lightning_dp.gradients.taps import Taps

__all__ = ("Ascent", "Gradients", "TwoPasses")

Gradients = tuple[Mapping[nn.Parameter, Tensor], Mapping[nn.Parameter, Sequence[Contribution]]]
"""Squared norms ``(U,)`` and contributions of each parameter."""


@dataclass(frozen=True)
class Ascent:
    """Bias-aware minimisation (Knolle et al. 2023, arXiv 2308.12018): which gradient of a unit is clipped.

    With ``g = grad l_u(theta)`` and ``g' = grad l_u(theta + radius * g / ||g||)``, norms over all parameters together, it is
    ``(1 - alpha) g + alpha g'``: to first order the gradient of ``l_u + alpha * radius * ||grad l_u||``, so that the part
    of the gradients that clipping cuts away, and with it the bias of the private gradient, is made small as well.

    **Guarantee**: none by itself, and none is needed. The mixture is a function of one unit's data and of the parameters,
    and it is clipped as every other gradient is, so the sensitivity is the bound, as in DP-SGD.

    Args:
        radius: how far a unit's parameters are moved, in L2 norm.
        alpha: the share of the second gradient, in [0, 1].

    Raises:
        PrivacyConfigError: for values out of range.
    """

    radius: float = 0.05
    alpha: float = 0.8

    def __post_init__(self) -> None:
        for name, value, most in (("radius", self.radius, float("inf")), ("alpha", self.alpha, 1.0)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and 0 <= value <= most and value < float("inf")):
                raise PrivacyConfigError(
                    f"{name}={value!r} must be a finite number >= 0{'' if most > 1 else ' and at most 1'}; 0 is DP-SGD, and "
                    "the defaults are radius=0.05 and alpha=0.8."
                )

    @property
    def is_none(self) -> bool:
        """Whether the mixture is the plain gradient, so that one ordinary pass gives it."""
        return self.radius == 0 or self.alpha == 0


class TwoPasses:
    """Runs the two passes over one physical batch and mixes what they found, unit by unit.

    Args:
        taps: on the network.
        units: whose the rows are.
        ascent: the mechanism's two numbers.
        memory: what may be held.
        arithmetic: a context in which float32 means float32.
        collecting: the engine's context around one backward pass.
    """

    def __init__(
        self,
        taps: Taps,
        units: UnitMap,
        ascent: Ascent,
        memory: Memory,
        arithmetic: Callable[[], AbstractContextManager[None]],
        collecting: Callable[[], AbstractContextManager[BackwardPass]],
    ) -> None:
        self.taps, self.units, self.ascent, self.memory = taps, units, ascent, memory
        self._arithmetic, self._collecting = arithmetic, collecting
        self._first: Gradients | None = None
        self._second: dict[nn.Parameter, list[Contribution]] = {}
        self._finite: Tensor | None = None
        self._again = False

    @contextmanager
    def first(self) -> Iterator[None]:
        """Around the backward pass of the ordinary loss."""
        with self._collecting() as backward:
            yield
        with torch.no_grad(), self._arithmetic():
            backward.refuse_empty()
            norms, kept = backward.finish()
            self._finite = torch.isfinite(torch.stack(list(norms.values())).sum(0))
            if not bool(self._finite.all()):
                # Exact zeros, so that nothing that is not finite can reach another unit, whatever a kernel that works on
                # several units at once does with it.
                kept = {p: [use.keep(self._finite) for use in uses] for p, uses in kept.items()}
            self._first = norms, kept

    @contextmanager
    def again(self) -> Iterator[None]:
        """Around the second forward and backward pass: layers meet each unit's own parameters."""
        norms, kept = self.plain()
        squares = torch.stack(list(norms.values())).sum(0)
        shift = Shift(
            Directions(kept, squares.sqrt(), self.ascent.radius),
            self.units,
            self.taps.row_memory,
            self._arithmetic,
            self.taps.paused,
        )
        self.taps.expect(self.taps.expected)  # as for the first pass
        self.taps.shift = shift
        try:
            yield
            if not self._again:
                raise PrivacyError("the second pass of bias-aware minimisation ended without a backward pass")
        finally:
            self.taps.shift = None
            found = shift.end()
        for parameter, uses in found.items():
            self._second.setdefault(parameter, []).extend(uses)

    @contextmanager
    def second(self) -> Iterator[None]:
        """Around the second backward pass, inside :meth:`again`."""
        with self._collecting() as backward:
            backward.norms_wanted = False  # a norm is taken once, of the mixture
            yield
        with torch.no_grad():
            self._second = {parameter: list(uses) for parameter, uses in backward.contributions().items()}
        self._again = True

    def plain(self) -> Gradients:
        """The units' gradients of the first pass."""
        if self._first is None:
            raise PrivacyError("the first pass of bias-aware minimisation did not run")
        return self._first

    def mixed(self) -> Gradients:
        """The units' mixed gradients. A unit whose first gradient was not finite counts as not finite."""
        (_, first), finite = self.plain(), self._finite
        if finite is None or not self._again:
            raise PrivacyError("the second pass of bias-aware minimisation did not run")
        norms: dict[nn.Parameter, Tensor] = {}
        kept: dict[nn.Parameter, list[Contribution]] = {}
        with self._arithmetic():
            for parameter in dict.fromkeys((*first, *self._second)):
                for use in self._second.get(parameter, ()):
                    use.choose_route(self.memory)
                found = mixed(first.get(parameter, ()), self._second.get(parameter, ()), self.ascent.alpha)
                if found is None:  # alpha = 1, and the second pass did not use it
                    continue
                found.choose_route(self.memory)
                squares = found.repaired(found.squared_norms())
                norms[parameter] = torch.where(finite, squares, squares.new_full((), float("inf")))
                kept[parameter] = [found]
        return norms, kept
