"""The table that ``PrivacyAccountant`` writes at the end of ``fit``."""

from __future__ import annotations

from lightning_dp.accounting import PrivacySettings, PrivacySpent
from lightning_dp.accounting.events import IN_PASSES
from lightning_dp.callbacks.releases import Release

__all__ = ("summary_text",)

Rows = list[tuple[str, str]]


def summary_text(spent: PrivacySpent, settings: PrivacySettings, releases: list[Release]) -> str:
    """The table written at the end of ``fit``."""
    curve = spent.trade_off()
    rows = [
        ("spent", f"eps = {spent.eps:.4g} at delta = {spent.delta:.4g}"),
        ("budget", settings.budget or "none (eps is reported)"),
        *(_steps(spent, settings) if settings.released is None else _release(settings)),
        ("accountant", spent.accountant),
        (
            "membership attack",
            f"advantage <= {curve.membership_advantage:.3f}, TPR <= {curve.tpr(0.001):.3f} at FPR 0.001",
        ),
    ]
    width = max(len(name) for name, _ in rows)
    lines = ["", "Differential privacy of this run", *(f"  {name:<{width}}  {value}" for name, value in rows)]
    lines.append("Not covered by eps:")
    lines += [f"  - {release}" for release in releases]
    return "\n".join(lines)


def _rate(settings: PrivacySettings) -> str:
    """How often a unit takes part."""
    return f"q = {settings.sample_rate:.4g}" if settings.bins is None else f"1 step of {settings.bins} a pass"


def _steps(spent: PrivacySpent, settings: PrivacySettings) -> Rows:
    """A run of private steps."""
    sizes = f"n = {settings.dataset_size}, expected batch size {settings.expected_batch_size}"
    return [
        ("relation", settings.relation.replace("_", " ")),
        ("sampling", f"{settings.sampling}, {_rate(settings)}"),
        ("passes" if settings.sampling in IN_PASSES else "steps", f"{spent.steps}"),
        ("samples" if settings.unit == "sample" else f"units ({settings.unit})", sizes),
        (
            "noise",
            f"multiplier {settings.noise_multiplier:.4g} on {settings.clipping} clipping at {settings.max_grad_norm:g}"
            if settings.gradient_noise_multiplier is None
            else f"multiplier {settings.noise_multiplier:.4g} a step, {settings.gradient_noise_multiplier:.4g} on gradients; "
            f"{settings.clipping} clipping from {settings.max_grad_norm:g}",
        ),
        *(
            [("noise schedule", settings.noise_multiplier_schedule)]
            if settings.noise_multiplier_schedule is not None
            else []
        ),
        *([("bound schedule", settings.max_grad_norm_schedule)] if settings.max_grad_norm_schedule is not None else []),
        *([("temperature", f"{settings.temperature:.4g}")] if settings.temperature is not None else []),
    ]


def _release(settings: PrivacySettings) -> Rows:
    """A run on releases: training is post-processing of them."""
    times = "once" if settings.releases == 1 else f"{settings.releases} times"
    return [
        ("relation", settings.relation.replace("_", " ")),
        ("reading", "local (one sample's release) and central (all releases and the model): the same eps"),
        ("released", f"{settings.released}, {times}, no amplification by sampling"),
        ("samples", f"n = {settings.dataset_size}"),
        (
            "noise",
            f"multiplier {settings.noise_multiplier:.4g} on {settings.clipping} clipping at {settings.max_activation_norm:g}",
        ),
        ("labels", settings.labels or "none"),
    ]
