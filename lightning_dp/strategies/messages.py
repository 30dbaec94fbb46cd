"""What a private run says about itself."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_dp.accounting import LangevinLaw, PrivacySettings
from lightning_dp.accounting.events import IN_PASSES
from lightning_dp.posterior import PosteriorSamples

__all__ = ("announcement", "budget_is_spent", "chain", "kept_samples", "not_private", "plan_exceeds_budget")


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
    what = "passes" if settings.sampling in IN_PASSES else "steps"
    return (
        f"The budget {_limit(settings)} does not cover the last {uncovered} of the planned {what}: the noise was calibrated to "
        "fewer. Training stops when the budget is spent. Plan all steps from the start, or give a larger one."
    )


def _limit(settings: PrivacySettings) -> str:
    """The budget that ends a run."""
    return f"eps={settings.eps:g} at delta={settings.delta:g}" if settings.risk is None else f"({settings.risk})"


def chain(
    law: LangevinLaw,
    noise_multiplier: float,
    learning_rate: float,
    weight_decays: Sequence[float],
    changes: Sequence[str],
) -> str:
    """The line about a Langevin chain: its temperature, its prior, and what was set in the optimizer."""
    temperature = law.temperature(learning_rate, noise_multiplier)
    scales = ", ".join(_prior(law, decay) for decay in sorted(set(weight_decays)))
    return (
        f"Langevin dynamics: temperature {temperature:.4g} = lr sigma^2 C^2 n / (2 B^2) at learning rate {learning_rate:.4g} "
        f"and noise multiplier {noise_multiplier:.4g}; prior {scales}."
        + (f" {'; '.join(changes).capitalize()}." if changes else "")
        + " Clipping biases the drift: the samples are approximate."
    )


def kept_samples(burn_in: int, every: int, samples: PosteriorSamples) -> str:
    """The line about which iterates are kept."""
    where = "in memory and in checkpoints" if samples.folder is None else f"in {samples.folder}"
    which = "every iterate" if every == 1 else f"one iterate in {every}"
    return (
        f"Posterior samples: after {burn_in} steps {which}, at most the last {samples.max_samples}, {where} as "
        f"{samples.dtype}; post-processing of accounted steps, so they cost no privacy."
    )


def _prior(law: LangevinLaw, weight_decay: float) -> str:
    if weight_decay == 0:
        return "flat (weight_decay 0)"
    return f"N(0, s^2) with s = {law.prior_scale(weight_decay):.4g} (weight_decay {weight_decay:.4g})"
