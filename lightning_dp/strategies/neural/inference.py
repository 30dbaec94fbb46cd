"""Samples that are not trained on: clipped as the training samples were, with noise only if asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_dp.accounting import PrivacyLedger, PrivacySpent, Relation, privacy_spent, release_event
from lightning_dp.accounting.accountants import AccountantName
from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import NoiseSource
from lightning_dp.strategies.neural.batches import BatchLayout
from lightning_dp.strategies.neural.layer import changed
from lightning_dp.strategies.neural.privatise import clip_rows, privatise_rows

__all__ = ("Inference",)


class Inference:
    """What happens at the released layer in ``validate``, ``test`` and ``predict``.

    Without noise a new sample is clipped and nothing else: the trained model is private in its *training* samples, and
    tells whoever gets a prediction as much about the new sample as any network would. **Guarantee** with noise: each sample
    that ``test`` or ``predict`` sees passes the same mechanism once in each pass, and the prediction is a function of that.

    Args:
        layer: name of the released layer; ``None`` for the inputs.
        layout: which parts of a batch are inputs.
        bound: clipping bound C.
        relation: of the query ledger.
        noisy: whether ``test`` and ``predict`` keep the noise.
    """

    def __init__(self, layer: str | None, layout: BatchLayout, bound: float, relation: Relation, noisy: bool) -> None:
        self._layer, self._layout, self._bound, self._relation = layer, layout, bound, relation
        self.noisy = noisy
        self.ledger = PrivacyLedger()
        """What a sample has spent that every pass so far has seen once."""
        self._noise: NoiseSource | None = None

    def charge(self, noise_multiplier: float) -> None:
        """Enters one pass, before it begins.

        Its noise comes from a source made here: one that was made earlier would be copied into every worker process, and
        samples that differ would get the same noise.
        """
        self.ledger.charge(release_event(noise_multiplier, self._relation))
        self._noise = NoiseSource()

    def spent(self, delta: float, accountant: AccountantName) -> PrivacySpent:
        """For one sample of the passes."""
        return privacy_spent(self.ledger.entries, delta, accountant)

    def inputs(self, batch: Any, noise_multiplier: float | None) -> Any:
        """The batch with clipped inputs, noised if asked for: where the release is of the inputs."""
        return self._layout.map_inputs(batch, partial(self._clipped, noise_multiplier=noise_multiplier))

    @contextmanager
    def at_layer(self, module: nn.Module, noise_multiplier: float | None) -> Iterator[None]:
        """Within one step, the layer's output is clipped, and noised if asked for."""
        if self._layer is None:
            yield
            return
        with changed(module.get_submodule(self._layer), self._once(noise_multiplier)):
            yield

    def _once(self, noise_multiplier: float | None) -> Callable[[Tensor], Tensor]:
        calls = 0

        def change(rows: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if noise_multiplier is not None and calls > 1:
                raise PrivacyError(
                    "the released layer was called twice in one step with inference_noise=True: that is two releases of each "
                    "sample, and one is counted. Call it once in a step."
                )
            return self._clipped(rows, noise_multiplier)

        return change

    def _clipped(self, rows: Tensor, noise_multiplier: float | None) -> Tensor:
        if noise_multiplier is None:
            return clip_rows(rows, self._bound).to(rows)
        if self._noise is None:
            raise PrivacyError("a query with noise was not charged before it; use Trainer.test or Trainer.predict")
        return privatise_rows(rows, self._bound, noise_multiplier, self._noise).to(rows)
