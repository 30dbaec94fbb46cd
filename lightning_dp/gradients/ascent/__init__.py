"""Per-unit ascent: a second pass in which every unit's rows meet parameters of that unit's own.

Bias-aware minimisation (Knolle et al. 2023, arXiv 2308.12018) mixes each unit's gradient with the gradient at the point that
lies one step up along it. The first pass is an ordinary recorded one. In the second, each layer's output is moved to what
the unit's own parameters give, and the layer rules read the new gradient from the new records.
"""

from __future__ import annotations

from lightning_dp.gradients.ascent.passes import Ascent, Gradients, TwoPasses
from lightning_dp.gradients.ascent.shift import Shift, ShiftedCall

__all__ = ("Ascent", "Gradients", "Shift", "ShiftedCall", "TwoPasses")
