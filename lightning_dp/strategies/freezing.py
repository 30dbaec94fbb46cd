"""Which parameters a run trains, where that changes under way: frozen at first and unfrozen later, or the other way round."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn
from torch.optim import Optimizer

from lightning_dp.strategies.refusals.table import listed

__all__ = ("Freezing", "not_called", "once_unfrozen", "trained", "trained_from_here", "without_optimizer")


class Freezing:
    """Follows what is trained, so that nothing new is trained before it was looked at.

    The engine asks for each step which parameters require a gradient: those are clipped together and noised, the others
    get neither gradient nor noise. What remains is to check what becomes trainable as the rest was checked: at the start for
    what a callback froze for a while, at its first step for everything else.
    """

    def __init__(self) -> None:
        self._built: frozenset[str] = frozenset()
        self._saved: frozenset[str] | None = None
        self._parameters: list[nn.Parameter] = []
        self._state: tuple[bytes, tuple[int, ...]] | None = None
        self._states: set[tuple[bytes, tuple[int, ...]]] = set()
        self._checked: set[frozenset[str]] = set()

    def built(self, module: LightningModule) -> None:
        """The module as it comes to ``fit``, before callbacks freeze parts of it."""
        self._built = trained(module)

    def begin(self, module: LightningModule) -> None:
        """A run starts: nothing is checked yet."""
        self._parameters, self._state = list(module.parameters()), None
        self._states, self._checked = set(), set()

    def for_a_while(self, module: LightningModule) -> tuple[str, ...]:
        """What was trainable as the module was built and is frozen at the start: by a callback, which may unfreeze it."""
        now = trained(module)
        return tuple(name for name, _ in module.named_parameters() if name in self._built and name not in now)

    def changed(self, optimizers: Sequence[Optimizer], *, manual: bool) -> bool:
        """Whether other parameters are trained than when this was asked last, or optimizers hold others.

        A state that the run has been in before is no news: layers may take turns from step to step.

        Args:
            optimizers: all of them.
            manual: whether the module toggles parameters by itself, so that only the optimizers tell, and every time.
        """
        required = b"" if manual else bytes(p.requires_grad for p in self._parameters)
        before, self._state = self._state, (required, _held(optimizers))
        known = self._state in self._states and not manual
        self._states.add(self._state)
        return before is not None and before != self._state and not known

    def holds_others(self, optimizers: Sequence[Optimizer]) -> bool:
        """Whether optimizers hold other parameters than when :meth:`changed` was asked last."""
        return self._state is None or self._state[1] != _held(optimizers)

    def is_checked(self, module: nn.Module) -> bool:
        """Whether the self-check has seen exactly these parameters trained."""
        return trained(module) in self._checked

    def checked(self, module: nn.Module, thawed: Collection[str] = ()) -> None:
        """The self-check passed, with ``thawed`` trainable beside what is."""
        self._checked.add(trained(module) | frozenset(thawed))

    def load(self, names: Sequence[str] | None) -> None:
        """What was trained when a checkpoint was written."""
        self._saved = None if names is None else frozenset(names)

    def resume(self, module: LightningModule, trainer: Trainer) -> list[str]:
        """Goes on with what a checkpoint trained, where a fine-tuning callback says what is trained.

        Lightning's callbacks freeze again at the start of a resumed run, restore the optimizer's groups, and unfreeze at the
        epoch that has passed: what they had unfrozen would stay frozen without a word. A run without such a callback
        trains what the module says.

        Returns:
            The names of what was frozen or unfrozen for it.
        """
        saved, self._saved = self._saved, None
        if saved is None or not any(isinstance(c, BaseFinetuning) for c in trainer.callbacks):  # type: ignore[attr-defined]
            return []
        moved = [
            name for name, p in module.named_parameters() if name in self._built and p.requires_grad != (name in saved)
        ]
        for name in moved:
            module.get_parameter(name).requires_grad_(name in saved)
        return moved


def _held(optimizers: Sequence[Optimizer]) -> tuple[int, ...]:
    return tuple(id(p) for o in optimizers for group in o.param_groups for p in group["params"])


def trained(module: nn.Module) -> frozenset[str]:
    """Names of what requires a gradient."""
    return frozenset(name for name, p in module.named_parameters() if p.requires_grad)


def without_optimizer(module: nn.Module, optimizers: Sequence[Optimizer]) -> str | None:
    """A warning where parameters are trained that no optimizer moves; ``None`` where there are none."""
    held = set(_held(optimizers))
    left = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in held]
    if not left:
        return None
    return (
        f"{listed(left)} were unfrozen and are in no optimizer: nothing moves them, and they take a share of every clipping "
        "norm. Add them as a parameter group. (Lightning's unfreeze_and_add_param_group leaves out what equals a parameter of "
        "the optimizer in value, as normalisation layers at their initial weights do: use optimizer.add_param_group.)"
    )


def not_called(names: Sequence[str]) -> str:
    """A warning of Lightning's: a callback that unfreezes at the start of this very epoch is not asked."""
    return (
        "the checkpoint was written in the last batch of an epoch, and Lightning then begins the next one without "
        f"on_train_epoch_start: a callback that unfreezes {listed(names)} at that very epoch does not do so. Resume from a "
        "checkpoint that was written at the end of an epoch (ModelCheckpoint(every_n_epochs=1)), or unfreeze one epoch later."
    )


def once_unfrozen(names: Sequence[str], reason: Exception) -> str:
    """The refusal of what cannot be trained privately once it is unfrozen, before anything is spent."""
    return (
        f"{listed(names)} were frozen at the start of fit, by a callback or a hook, and cannot be trained privately once "
        f"they are unfrozen: {reason} (If they stay frozen for the whole run, freeze them when the module is built, by "
        "requires_grad_(False).)"
    )


def trained_from_here(module: nn.Module, max_grad_norm: float) -> str:
    """What a change means, for the log."""
    number = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return (
        f"Another set of parameters is trained from this step on, {number} numbers in all: clipped together at "
        f"{max_grad_norm:g} and noised as before; what is frozen gets neither gradient nor noise. The budget is not touched."
    )
