"""Which parts of a batch are private inputs, and which are labels; and batches without any raw input in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_dp.errors import PrivacyConfigError

__all__ = ("BatchLayout", "Key", "Template")

Key = int | str


@dataclass(frozen=True)
class BatchLayout:
    """The user's declaration: every part of a batch is an input, which is protected, or a label.

    Args:
        inputs: positions (tuples, lists) or keys (mappings) of the tensors whose samples are private.
        labels: those of the tensors that ``training_step`` compares with.
    """

    inputs: tuple[Key, ...]
    labels: tuple[Key, ...]

    def check(self, batch: Any) -> None:
        """Refuses a batch with a part that is neither, or that has no row for each sample.

        Raises:
            PrivacyConfigError: a part that nobody has declared could carry the private data past the noise.
        """
        parts = _parts(batch)
        declared = {*self.inputs, *self.labels}
        if parts is None or set(parts) != declared or len(declared) != len(self.inputs) + len(self.labels):
            found = f"a {type(batch).__name__}" + (f" with the parts {sorted(parts, key=str)}" if parts else "")
            raise PrivacyConfigError(
                f"a training batch is {found}, and input_keys={self.inputs} with label_keys={self.labels} must name each of "
                "its parts once: a part that is neither a protected input nor a label could carry private data past the "
                "noise. Name them (label_keys=() for none), or return fewer parts from the data set."
            )
        sizes = {key: len(value) if isinstance(value, Tensor) and value.dim() else None for key, value in parts.items()}
        if len(set(sizes.values())) != 1 or None in sizes.values():
            raise PrivacyConfigError(
                f"the parts of a training batch must be tensors with one row for each sample; their lengths are {sizes}. "
                "Collate them so."
            )

    def size(self, batch: Any) -> int:
        """Samples in a batch."""
        return len(batch[self.inputs[0]])

    def map_inputs(self, batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """The batch with its inputs changed, wherever it has them: one for prediction may be inputs alone."""
        if isinstance(batch, Tensor):
            return change(batch)
        parts = _parts(batch)
        if parts is None:
            raise PrivacyConfigError(
                f"a batch for evaluation is a {type(batch).__name__}: which of it are inputs, to be clipped as they were for "
                "training, is unclear. Return a tensor, a tuple, a list or a mapping."
            )
        changed = {key: change(value) if key in self.inputs else value for key, value in parts.items()}
        return _rebuilt(batch, changed)


@dataclass(frozen=True)
class Template:
    """Form and sizes of a training batch, without any of its values.

    Shapes and dtypes of one sample are public: they must be the same for all samples.
    """

    layout: BatchLayout
    kind: type
    order: tuple[Key, ...]
    shapes: dict[Key, tuple[int, ...]]
    dtypes: dict[Key, torch.dtype]

    @classmethod
    def of(cls, layout: BatchLayout, batch: Any) -> Template:
        """The template of a checked batch."""
        layout.check(batch)
        parts = _parts(batch)
        assert parts is not None
        return cls(
            layout,
            type(batch),
            tuple(parts),
            {key: tuple(value.shape[1:]) for key, value in parts.items()},
            {key: value.dtype for key, value in parts.items()},
        )

    def require(self, batch: Any) -> None:
        """Refuses a batch of another form: a length that varies from sample to sample would reach training unprotected."""
        if Template.of(self.layout, batch) != self:
            raise PrivacyConfigError(
                "the samples of the training set differ in shape or dtype, and a released batch would show them without "
                "noise. Pad or crop all samples to one size in the data set or in collate_fn."
            )

    def batch(self, size: int, inputs: Mapping[Key, Tensor], labels: Mapping[Key, Tensor]) -> Any:
        """A batch in the user's own form: zeros for the inputs that are not given."""
        parts = {}
        for key in self.order:
            if key in self.layout.labels:
                parts[key] = labels[key]
            else:
                zeros = torch.zeros(size, *self.shapes[key], dtype=self.dtypes[key])
                parts[key] = inputs.get(key, zeros)
        return _rebuilt(self.kind, parts)


def _parts(batch: Any) -> dict[Any, Any] | None:
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        return dict(enumerate(batch))
    return None


def _rebuilt(like: Any, parts: Mapping[Any, Any]) -> Any:
    kind: Any = like if isinstance(like, type) else type(like)
    if issubclass(kind, Mapping):
        return kind(parts) if kind is not dict else dict(parts)
    if hasattr(kind, "_fields"):  # a named tuple
        return kind(*parts.values())
    return kind(parts.values())
