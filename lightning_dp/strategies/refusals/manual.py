"""Refusals about manual optimisation and what is declared as post-processing."""

from __future__ import annotations

from collections import Counter

from lightning_dp.gradients.clipping import fits
from lightning_dp.strategies.refusals.table import Subject, listed, row


@row("module")
def manual_physical_batches(s: Subject) -> str | None:
    if not s.module.automatic_optimization and s.splits:
        return (
            "physical_batch_size repeats the step for parts of a draw, and with automatic_optimization=False the step is "
            "inside training_step: the parts would be released one by one. Use physical_batch_size=None and a smaller batch."
        )
    return None


@row("module")
def manual_ascent(s: Subject) -> str | None:
    if s.ascends and not s.module.automatic_optimization:
        return (
            "BAMStrategy takes the gradient at other parameters than the module's, or runs the step twice, and with "
            "automatic_optimization=False training_step steps the optimizer itself. Use automatic optimisation, or DPStrategy."
        )
    return None


@row("module")
def post_processing_names(s: Subject) -> str | None:
    if s.post_processing and s.module.automatic_optimization:
        return (
            "post_processing needs an optimizer of its own for what is trained without noise, hence "
            "automatic_optimization=False. Without it everything is private: drop post_processing."
        )
    named = [name for name, _ in s.module.named_parameters()]
    unknown = [pattern for pattern in s.post_processing if not any(fits(name, pattern) for name in named)]
    if unknown:
        return (
            f"post_processing names {listed(unknown)}, and no parameter is called so. Use names of modules or parameters as in "
            "module.named_parameters()."
        )
    return None


@row("optimizers")
def post_processing_beside_private(s: Subject) -> str | None:
    if s.module.automatic_optimization:
        return None
    declared = set(s.declared())
    public = {p for name, p in s.module.named_parameters() if name in declared}
    shares = [{p in public for group in o.param_groups for p in group["params"]} for o in s.optimizers]
    if any(len(share) == 2 for share in shares):
        return (
            "one optimizer holds parameters declared as post_processing beside private ones, and a step of it would be both. "
            "Give what is post-processing an optimizer of its own."
        )
    if s.optimizers and not any(False in share for share in shares):
        return (
            "post_processing covers every optimizer, so nothing would be private and eps would mean nothing. Declare only what "
            "never sees private data, or use an ordinary strategy."
        )
    return None


@row("optimizers")
def shared_parameters(s: Subject) -> str | None:
    counts = Counter(p for o in s.optimizers for p in {p for group in o.param_groups for p in group["params"]})
    shared = [name for name, p in s.module.named_parameters() if counts[p] > 1]
    if shared:
        return f"{listed(shared)} is in several optimizers, so whose gradient it gets would be undecided. Give each to one."
    return None


@row("optimizers")
def parameters_without_optimizer(s: Subject) -> str | None:
    if s.module.automatic_optimization:
        return None
    held = {p for o in s.optimizers for group in o.param_groups for p in group["params"]}
    left = [name for name, p in s.module.named_parameters() if p.requires_grad and p not in held]
    if left:
        return (
            f"{listed(left)} is trainable and in no optimizer: under manual optimisation its raw gradient would be left in "
            ".grad. Add it to an optimizer, or freeze it with requires_grad_(False)."
        )
    return None


@row("optimizers")
def adaptive_with_several_optimizers(s: Subject) -> str | None:
    if s.module.automatic_optimization or not s.adapts:
        return None
    declared = set(s.declared())
    public = {p for name, p in s.module.named_parameters() if name in declared}
    private = [o for o in s.optimizers if not any(p in public for group in o.param_groups for p in group["params"])]
    if len(private) > 1:
        return (
            f"adaptive clipping follows one quantile, and {len(private)} private optimizers have norms of their own. Use a "
            "fixed max_grad_norm, or clipping='automatic'."
        )
    return None
