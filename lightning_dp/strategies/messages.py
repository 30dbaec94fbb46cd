"""What a private run says about itself."""

from __future__ import annotations

from lightning_dp.accounting import PrivacySettings

__all__ = ("announcement", "budget_is_spent", "not_private", "plan_exceeds_budget")


def announcement(settings: PrivacySettings, world_size: int, planned_steps: float) -> str:
    """The line at the start of training: everything that eps means, in one place."""
    s = settings
    units = "samples" if s.unit == "sample" else f"units ({s.unit})"
    budget = "reports eps" if s.budget is None else s.budget if s.risk is None else f"{s.risk}; reports eps"
    return (
        f"Differential privacy: {budget} at delta={s.delta:g}, {s.relation.replace('_', '-')}; {s.sampling} sampling of "
        f"{s.dataset_size} {units}, expected batch size {s.expected_batch_size} over {world_size} process(es), "
        f"{planned_steps:g} steps planned; noise multiplier {s.noise_multiplier:.4g}{_gradients(s)}, {s.clipping} clipping "
        f"{'from' if s.clipping == 'adaptive' else 'at'} {s.max_grad_norm:g}; accountant {s.accountant}.{_schedules(s)}"
        f"{_post_processing(s)}"
    )


def _schedules(s: PrivacySettings) -> str:
    noise, bound = s.noise_multiplier_schedule, s.max_grad_norm_schedule
    found = [f"noise multiplier {noise}"] if noise else []
    found += [f"max_grad_norm {bound}"] if bound else []
    return f" Schedules: {'; '.join(found)}." if found else ""


def _post_processing(s: PrivacySettings) -> str:
    if not s.post_processing:
        return ""
    return (
        f" Declared as post-processing and trained WITHOUT noise: {s.post_processing}; eps covers them only if their loss uses "
        "private data through the other parameters alone."
    )


def _gradients(s: PrivacySettings) -> str:
    """Where a step releases more than gradients: what noise those get."""
    if s.gradient_noise_multiplier is None:
        return ""
    return f" for a whole step ({s.gradient_noise_multiplier:.4g} on its gradients)"


def budget_is_spent(settings: PrivacySettings, steps: int) -> str:
    """The line when the budget ends training."""
    return (
        f"The privacy budget {_limit(settings)} is spent after {steps} steps: training stops here. More steps need a larger "
        f"{'eps' if settings.risk is None else 'limit'}, or noise calibrated to more steps from the start."
    )


def not_private(settings: PrivacySettings, seed: int | None) -> list[str]:
    """Warnings about settings that take the privacy away."""
    found = []
    if settings.noise_multiplier == 0:
        found.append("noise_multiplier=0: gradients are clipped but not noised. This run is NOT private (eps = inf).")
    if seed is not None:
        found.append(
            "DPStrategy(seed=...) fixes the noise: whoever knows the seed can subtract it. This run is NOT private and is "
            "for tests only."
        )
    return found


def plan_exceeds_budget(settings: PrivacySettings, uncovered: int) -> str:
    """Warning at the start of a run that the budget will end before the plan does."""
    what = "passes" if settings.sampling == "shuffle" else "steps"
    return (
        f"The budget {_limit(settings)} does not cover the last {uncovered} of the planned {what}: the noise was calibrated to "
        "fewer. Training stops when the budget is spent. Plan all steps from the start, or give a larger one."
    )


def _limit(settings: PrivacySettings) -> str:
    """The budget that ends a run."""
    return f"eps={settings.eps:g} at delta={settings.delta:g}" if settings.risk is None else f"({settings.risk})"
