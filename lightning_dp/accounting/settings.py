"""The public facts of a private run."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_dp.accounting.events import RELATION

__all__ = ("PrivacySettings",)


@dataclass(frozen=True)
class PrivacySettings:
    """What a reader needs beside eps to judge it. Everything here is public by assumption, n included.

    Attributes:
        mechanism: name of the training mechanism, such as ``"dp_sgd"``.
        delta: the additive slack of (eps, delta)-differential privacy.
        noise_multiplier: noise standard deviation over sensitivity of a whole step, as it is accounted; of a release, over
            its clipping bound.
        max_grad_norm: clipping bound C of gradients; the first one where it moves; ``None`` where none are clipped.
        clipping: how units are clipped.
        sampling: how units are drawn.
        sample_rate: the rate that was accounted, in (0, 1].
        expected_batch_size: B, the expected number of units in a step, over all ranks.
        dataset_size: n, the number of units.
        accountant: which accountant turns the ledger into eps.
        eps: the budget, or ``None`` if eps is only reported.
        risk: the budget in words where it limits an attack in place of eps, or ``None``.
        relation: the neighbouring relation.
        gradient_noise_multiplier: noise standard deviation of the gradients over ``max_grad_norm``, where a step releases
            something else as well and the gradients therefore get more noise; ``None`` where it is ``noise_multiplier``.
        noise_multiplier_schedule: factors on the noise multiplier, in words; ``None`` for none.
        max_grad_norm_schedule: factors on the bound, in words; ``None`` for none.
        post_processing: names of the parameters that the user declared to be trained by post-processing.
        unit: what is added or removed: ``"sample"``, or the name of the ids (``"patient_id"``).
        temperature: of Langevin dynamics, at the first step; ``None`` for other mechanisms.
        released: what of each sample is released, in words, where training is post-processing of that; else ``None``.
        max_activation_norm: clipping bound C of what is released.
        releases: noisy copies of each sample.
        labels: what protects the labels, in words, where that is a question of its own.
        bins: steps of a pass in which a unit takes part once, for balls-in-bins sampling; else
            ``None``.
        labels_covered: whether eps holds for labels as well, or they are public.
    """

    mechanism: str
    delta: float
    noise_multiplier: float
    max_grad_norm: float | None
    clipping: str
    sampling: str
    sample_rate: float
    expected_batch_size: int
    dataset_size: int
    accountant: str
    eps: float | None
    relation: str = RELATION
    gradient_noise_multiplier: float | None = None
    noise_multiplier_schedule: str | None = None
    max_grad_norm_schedule: str | None = None
    post_processing: str | None = None
    unit: str = "sample"
    temperature: float | None = None
    released: str | None = None
    max_activation_norm: float | None = None
    releases: int | None = None
    labels: str | None = None
    labels_covered: bool = True
    risk: str | None = None
    bins: int | None = None

    @property
    def budget(self) -> str | None:
        """What the run may spend, in words; ``None`` if eps is only reported."""
        return self.risk if self.eps is None else f"eps <= {self.eps:g}"
