"""Which iterates of a Langevin chain are kept, and where."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError, PrivacyError

__all__ = ("KeptIterate", "PosteriorSamples", "SampleDtype", "Thinning")

SampleDtype = Literal["float16", "float32"]
_DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Thinning:
    """Which steps of a run give a sample: every ``every``-th after ``burn_in``, of which the last ``max_samples`` stay.

    The choice depends on the step's number alone. A choice by what is in an iterate, or by its loss on training data,
    would be no post-processing.

    Args:
        burn_in: steps to leave out, or, as a float in [0, 1), the part of the planned steps to leave out.
        every: the distance of kept steps; ``None`` spreads ``max_samples`` evenly over the planned steps.
        max_samples: the most samples kept.

    Raises:
        PrivacyConfigError: for values out of range.
    """

    burn_in: int | float = 0.5
    every: int | None = None
    max_samples: int = 20

    def __post_init__(self) -> None:
        fraction = isinstance(self.burn_in, float) and 0 <= self.burn_in < 1
        if not (fraction or _whole(self.burn_in, 0)):
            raise PrivacyConfigError(
                f"burn_in={self.burn_in!r} must be a whole number of steps >= 0, or a part of the planned steps in [0.0, 1.0)"
            )
        if self.every is not None and not _whole(self.every, 1):
            raise PrivacyConfigError(f"thinning={self.every!r} must be a whole number >= 1, or None")
        if not _whole(self.max_samples, 1):
            raise PrivacyConfigError(f"max_samples={self.max_samples!r} must be a whole number >= 1")

    def settled(self, planned: float) -> tuple[int, int]:
        """``burn_in`` and ``every`` in steps, for a run of ``planned`` steps.

        Raises:
            PrivacyConfigError: if they depend on an end that the run does not have, or nothing would be kept.
        """
        if not math.isfinite(planned) and (isinstance(self.burn_in, float) or self.every is None):
            raise PrivacyConfigError(
                "burn_in as a part of the run, and thinning=None, need a run with an end. Set max_epochs or max_steps on the "
                "Trainer, or give burn_in and thinning in steps."
            )
        burn_in = int(self.burn_in * planned) if isinstance(self.burn_in, float) else self.burn_in
        every = math.ceil((planned - burn_in) / self.max_samples) if self.every is None else self.every
        if burn_in + max(1, every) > planned:
            raise PrivacyConfigError(
                f"burn_in={burn_in} and thinning={every} keep no sample of {planned:g} planned steps. Lower them."
            )
        return burn_in, max(1, every)


@dataclass(frozen=True)
class KeptIterate:
    """One posterior sample: the iterate after ``step`` steps.

    Attributes:
        step: how many steps led to it.
        learning_rate: the size of the last of them.
        temperature: the temperature of the last of them.
        values: parameters and buffers by name; ``None`` where they lie in ``file``.
        file: name of the file in the samples' folder.
    """

    step: int
    learning_rate: float
    temperature: float
    values: Mapping[str, Tensor] | None = None
    file: str | None = None


class PosteriorSamples(Sequence[Mapping[str, Tensor]]):
    """The kept iterates, as mappings from names to values, oldest first: at most ``max_samples``, the last ones.

    A sample holds the trainable parameters and the buffers of the state dict, floating-point ones in ``dtype``. What is
    frozen is the same in every sample and stays in the module.

    **Guarantee**: none of its own. Keeping an iterate is post-processing if the step that led to it was accounted: the
    ledger composes *all* steps of a run, so that (eps, delta) holds for the whole sequence of iterates together, not only
    for the last one, and any number of them may be kept, published and averaged.

    Args:
        max_samples: the most samples kept.
        dtype: ``"float32"`` or ``"float16"``.
        folder: write each sample to a file there, and to the checkpoint its name only; ``None`` keeps them in memory, and
            the checkpoint holds them. Several machines need a folder that all of them see.
    """

    def __init__(self, max_samples: int = 20, dtype: SampleDtype = "float32", folder: str | Path | None = None) -> None:
        if dtype not in get_args(SampleDtype):
            raise PrivacyConfigError(f"unknown sample_dtype {dtype!r}; choose one of {get_args(SampleDtype)}")
        self.max_samples, self.dtype = max_samples, dtype
        self.folder = None if folder is None else Path(folder)
        self._kept: list[KeptIterate] = []

    @property
    def kept(self) -> tuple[KeptIterate, ...]:
        """What is kept, with steps, learning rates and temperatures."""
        return tuple(self._kept)

    @property
    def steps(self) -> tuple[int, ...]:
        """After how many steps each sample was kept."""
        return tuple(one.step for one in self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> list[Mapping[str, Tensor]]: ...
    def __getitem__(self, index: int | slice) -> Mapping[str, Tensor] | list[Mapping[str, Tensor]]:
        if isinstance(index, slice):
            return [self._values(one) for one in self._kept[index]]
        return self._values(self._kept[index])

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        return (self._values(one) for one in tuple(self._kept))

    def keep(
        self, module: nn.Module, step: int, learning_rate: float, temperature: float, *, run: str, write: bool = True
    ) -> None:
        """Adds a copy of the module's iterate after ``step`` steps, and forgets the oldest one beyond ``max_samples``.

        Args:
            module: whose parameters and buffers to copy.
            step: how many steps led to it.
            learning_rate: the size of the last of them.
            temperature: the temperature of the last of them.
            run: a word that no other run has, for names of files.
            write: whether this process is the one that writes files.

        Raises:
            PrivacyError: if a value is beyond what ``dtype`` can hold.
        """
        values = self._copy(module)
        if self.folder is None:
            self._kept.append(KeptIterate(step, learning_rate, temperature, values))
        else:
            file = f"sample-{run}-{step:08d}.pt"
            if write:
                self.folder.mkdir(parents=True, exist_ok=True)
                torch.save(values, self.folder / file)
            self._kept.append(KeptIterate(step, learning_rate, temperature, file=file))
        while len(self._kept) > self.max_samples:
            oldest = self._kept.pop(0)
            if write and oldest.file is not None and self.folder is not None:
                (self.folder / oldest.file).unlink(missing_ok=True)

    def forget_after(self, step: int) -> None:
        """Forgets samples of later steps than ``step``, which a run that stands at ``step`` has not taken."""
        self._kept = [one for one in self._kept if one.step <= step]

    def missing_files(self) -> list[str]:
        """Names of samples' files that are not in the folder."""
        if self.folder is None:
            return [one.file for one in self._kept if one.file is not None]
        return [one.file for one in self._kept if one.file is not None and not (self.folder / one.file).is_file()]

    def drop(self, files: Sequence[str]) -> None:
        """Forgets the samples that lie in ``files``."""
        self._kept = [one for one in self._kept if one.file not in files]

    def state_dict(self) -> list[dict[str, Any]]:
        """Plain values and tensors."""
        return [
            {
                "step": one.step,
                "learning_rate": one.learning_rate,
                "temperature": one.temperature,
                "values": None if one.values is None else dict(one.values),
                "file": one.file,
            }
            for one in self._kept
        ]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Replaces the samples by those of a checkpoint, whose weights they go with."""
        self._kept = [KeptIterate(**one) for one in state][-self.max_samples :]

    def _values(self, one: KeptIterate) -> Mapping[str, Tensor]:
        if one.values is not None:
            return one.values
        if self.folder is None or one.file is None or not (self.folder / one.file).is_file():
            raise PrivacyError(
                f"the posterior sample of step {one.step} should lie in {one.file}, which is not in "
                f"samples_dir={None if self.folder is None else str(self.folder)!r}. Give the folder of the run that wrote it."
            )
        values: Mapping[str, Tensor] = torch.load(self.folder / one.file, weights_only=True)
        return values

    def _copy(self, module: nn.Module) -> dict[str, Tensor]:
        buffers = module.state_dict(keep_vars=True).keys() & dict(module.named_buffers()).keys()
        before = self._kept[-1].values if self._kept else None
        values = {name: self._stored(name, p) for name, p in module.named_parameters() if p.requires_grad}
        for name, buffer in module.named_buffers():
            if name not in buffers:
                continue
            new, old = self._stored(name, buffer), None if before is None else before.get(name)
            # A buffer that did not change is held once.
            values[name] = old if old is not None and torch.equal(old, new) else new
        return values

    def _stored(self, name: str, tensor: Tensor) -> Tensor:
        dtype = _DTYPES[self.dtype] if tensor.is_floating_point() else tensor.dtype
        stored = tensor.detach().to("cpu", dtype, copy=True)
        if stored.is_floating_point() and bool((stored.isinf() & tensor.detach().isfinite().cpu()).any()):
            raise PrivacyError(f"{name} holds values beyond the range of {self.dtype}. Use sample_dtype='float32'.")
        return stored


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
