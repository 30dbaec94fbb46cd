"""Which numbers left a run without being covered by its eps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint

from lightning_dp.accounting import PrivacySettings

__all__ = ("Release", "uncovered_releases")


@dataclass(frozen=True)
class Release:
    """One kind of number that left the run, and why eps says nothing about it.

    Attributes:
        what: the number, with its name where it has one.
        why: why it is not covered.
        remedy: what to do about it.
    """

    what: str
    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}. {self.remedy}."


def uncovered_releases(
    trainer: Trainer, training_metrics: Iterable[str], settings: PrivacySettings | None = None
) -> list[Release]:
    """The list that belongs beside every eps.

    Args:
        trainer: after, or during, ``fit``.
        training_metrics: names of metrics logged in training hooks.
        settings: the public facts of the run, if there are any beyond those of private steps.

    Returns:
        One entry for each finding, the gravest first.
    """
    # Where training reads releases alone, what it computes is covered as they are.
    covered = settings is not None and settings.released is not None and settings.labels_covered
    logged = [] if covered else sorted(name for name in training_metrics if not name.startswith("privacy/"))
    found = [
        *_labels(settings),
        *_declared(None if settings is None else settings.post_processing),
        *_training_metrics(logged),
        *_monitors(trainer, set(logged)),
        *_schedulers(trainer, set(logged)),
    ]
    found += _held_out(trainer)
    found.append(
        Release(
            "the choice of hyper-parameters",
            "runs that were tried and discarded on the same data are not in this ledger",
            "Tune on public or separate data, or add up the eps of all runs",
        )
    )
    return found


def _labels(settings: PrivacySettings | None) -> list[Release]:
    if settings is None or settings.labels_covered:
        return []
    return [
        Release(
            "the training labels",
            "they were used in the clear, and the model, its losses and its metrics may reveal them",
            "Say labels='public' if they need no protection, or protect them with labels='randomized'",
        )
    ]


def _declared(post_processing: str | None) -> list[Release]:
    if post_processing is None:
        return []
    return [
        Release(
            f"parameters declared as post-processing ({post_processing})",
            "they were trained without noise, which eps covers only if their loss used private data through the private "
            "parameters alone; that is a declaration (the self-check, unless switched off, looks at one early step)",
            "Review that their loss sees no real sample, label or batch size, or leave them out of post_processing",
        )
    ]


def _training_metrics(logged: list[str]) -> list[Release]:
    if not logged:
        return []
    return [
        Release(
            f"training metrics ({', '.join(logged)})",
            "they are computed from private batches without noise, and loggers and progress bars show them",
            "Do not publish these curves, or log metrics of held-out data only",
        )
    ]


def _monitors(trainer: Trainer, logged: set[str]) -> list[Release]:
    watching = [
        f"{type(c).__name__}(monitor={c.monitor!r})"
        for c in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(c, (ModelCheckpoint, EarlyStopping)) and c.monitor in logged
    ]
    if not watching:
        return []
    return [
        Release(
            ", ".join(watching),
            "the model to keep, or the time to stop, was chosen by a metric of the training data",
            "Monitor a metric of held-out data, or none",
        )
    ]


def _schedulers(trainer: Trainer, logged: set[str]) -> list[Release]:
    watching = [c.monitor for c in trainer.lr_scheduler_configs if c.reduce_on_plateau and c.monitor in logged]
    if not watching:
        return []
    return [
        Release(
            f"the learning rate (ReduceLROnPlateau on {', '.join(map(repr, watching))})",
            "every later step depends on a training metric that has no noise",
            "Use a schedule fixed in advance, or monitor a metric of held-out data",
        )
    ]


def _held_out(trainer: Trainer) -> list[Release]:
    if not trainer.enable_validation or not sum(trainer.num_val_batches):
        return []
    selecting = any(
        isinstance(c, (Checkpoint, EarlyStopping)) and getattr(c, "monitor", None)
        for c in trainer.callbacks  # type: ignore[attr-defined]
    )
    return [
        Release(
            "validation metrics" + (" and the model selected by them" if selecting else ""),
            "eps protects the training set only, and these numbers are computed from the validation set without noise",
            "Keep validation people apart from training people, and do not publish the numbers if they need protection too",
        )
    ]
