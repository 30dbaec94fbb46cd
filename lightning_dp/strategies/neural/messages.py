"""What a run on releases refuses of the Trainer and the module, and what it says about itself."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer

from lightning_dp.accounting import PrivacySettings
from lightning_dp.strategies.refusals.table import listed

__all__ = ("announcement", "cautions", "refusals", "unfrozen_upstream")

LABELS_OUTSIDE = (
    "labels are used in the clear: they are OUTSIDE the guarantee, which covers the inputs alone, and the model, its losses "
    "and its metrics may reveal them. If they need no protection, say so with labels='public'; to protect them use "
    "labels='randomized' with label_eps and num_classes."
)


def refusals(trainer: Trainer, module: LightningModule) -> list[str]:
    """Messages about settings that a run on releases cannot have; empty if it is fine."""
    found = []
    if not module.automatic_optimization:
        found.append(
            "automatic_optimization=False: what a manual step computes cannot be checked on a copy before the release, since "
            "it steps the real optimizers. Use automatic optimisation."
        )
    if trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
        found.append(
            "Trainer(reload_dataloaders_every_n_epochs=...) changes the training data under way, and they are released once, "
            "at the start. Set it to 0; use several releases of augmented samples with releases=k."
        )
    if not any(p.requires_grad for p in module.parameters()):
        found.append(
            "the module has no trainable parameters, so there is nothing to train. Unfreeze what lies downstream."
        )
    return found


def unfrozen_upstream(names: Sequence[str]) -> str:
    """The refusal of a callback that unfreezes what lies before the release."""
    return (
        f"{listed(names)} lie upstream of the released layer and were unfrozen during the run. Training goes on from what was "
        "released at its start, so they would get no gradient and stay as they are. Take the callback out, or train them "
        "with DPStrategy."
    )


def cautions(settings: PrivacySettings, seed: int | None) -> list[str]:
    """Warnings about settings that take privacy away."""
    found = []
    if settings.noise_multiplier == 0:
        found.append("noise_multiplier=0: activations are clipped but not noised. This run is NOT private (eps = inf).")
    if seed is not None:
        found.append(
            "NeuralDPStrategy(seed=...) fixes the noise: whoever knows the seed can subtract it. This run is NOT private and "
            "is for tests only."
        )
    if not settings.labels_covered:
        found.append(LABELS_OUTSIDE)
    return found


def announcement(settings: PrivacySettings, world_size: int) -> str:
    """The line at the start of training: everything that eps means, in one place."""
    s = settings
    budget = "reports eps" if s.eps is None else f"eps <= {s.eps:g}"
    return (
        f"Differential privacy of released activations: {budget} at delta={s.delta:g}, {s.relation.replace('_', '-')}, local "
        f"and central; {s.released}, clipped at {s.max_activation_norm:g}, {s.releases} release(s) of each of {s.dataset_size} "
        f"samples with noise multiplier {s.noise_multiplier:.4g}, over {world_size} process(es); labels {s.labels or 'none'}; "
        f"accountant {s.accountant}. Training itself is post-processing, without noise and without amplification; what lies "
        "upstream of the release is taken as fixed independently of these samples, or as accounted in upstream_ledger."
    )
