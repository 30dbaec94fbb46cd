"""What is refused, why, and what to use instead: one small function for each, all in one table.

A refusal returns its message or ``None``. It is asked as early as its answer can be known: about the Trainer before any
process touches data, about the module once it exists, about the optimizers once they are configured. Refusals about
the training loader live with the sampler (:func:`lightning_dp.sampling.why_not_private`).
"""

from __future__ import annotations

from lightning_dp.strategies.refusals import langevin, manual, module, optimizers, trainer  # noqa: F401  (importing fills the table)
from lightning_dp.strategies.refusals.table import REFUSALS, Refusal, Subject, refuse

__all__ = ("REFUSALS", "Refusal", "Subject", "refuse")
