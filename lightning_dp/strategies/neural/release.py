"""One pass over the training set: check, charge, clip, noise, keep. The raw samples are not needed after it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from lightning_dp.accounting import RandomizedResponseEvent
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.gradients import NoiseSource
from lightning_dp.strategies.muted import muted_copy
from lightning_dp.strategies.neural.batches import BatchLayout, Key, Template
from lightning_dp.strategies.neural.cache import Releases
from lightning_dp.strategies.neural.checks import require_downstream_only, require_fixed, require_independent_rows
from lightning_dp.strategies.neural.layer import captured, layer_of, upstream_of
from lightning_dp.strategies.neural.privatise import privatise_rows, randomise_labels

__all__ = ("DTYPES", "Mechanism", "Releaser", "StoredAs", "announce_size")

StoredAs = Literal["float32", "float16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}
_CHECKED = 5  # samples that are looked at before anything is released


@dataclass(frozen=True)
class Mechanism:
    """What is released of each sample.

    Attributes:
        layer: name of the module whose output is released; ``None`` for the inputs themselves.
        bound: clipping bound C.
        releases: noisy copies of each sample.
        answer: how labels are randomised; ``None`` leaves them.
        stored_as: how the cache holds what was released.
        batch_size: samples computed together.
    """

    layer: str | None
    bound: float
    releases: int
    answer: RandomizedResponseEvent | None
    stored_as: StoredAs
    batch_size: int | None

    def terms(self, noise_multiplier: float, relation: str, labels: str | None) -> dict[str, Any]:
        """What tells one release from another, as plain values."""
        return {
            "layer": self.layer,
            "bound": self.bound,
            "releases": self.releases,
            "noise_multiplier": noise_multiplier,
            "relation": relation,
            "labels": labels,
            "answer": None if self.answer is None else [self.answer.eps, self.answer.num_classes],
        }


class Releaser:
    """Computes what is to be released on a copy of the module, in evaluation mode.

    The copy keeps every side effect of the pass away from what is trained.

    Args:
        module: the network.
        mechanism: what is released.
        layout: which parts of a batch are what.
        loader: the user's training loader.
        run_step: runs ``training_step`` in the precision of the run.
        transfer: moves a batch to the device through a module's hooks.
    """

    def __init__(
        self,
        module: LightningModule,
        mechanism: Mechanism,
        layout: BatchLayout,
        loader: DataLoader[Any],
        run_step: Callable[[LightningModule, Any], Any],
        transfer: Callable[[LightningModule, Any], Any],
    ) -> None:
        self._twin = muted_copy(module)
        self._twin.eval()
        self._mechanism, self._layout, self._loader = mechanism, layout, loader
        self._run_step, self._move = run_step, transfer
        self._dataset: Any = loader.dataset
        self.upstream: tuple[str, ...] = ()
        """Names of the modules before the release, known after :meth:`check`."""
        self.shape: tuple[int, ...] = ()
        """Shape of one sample's vector, known after :meth:`check`."""

    def check(self) -> Template:
        """Refuses what cannot keep the guarantee; see :mod:`~lightning_dp.strategies.neural.checks`."""
        n = len(self._dataset)
        with isolate_rng(include_cuda=self._twin.device.type == "cuda"):
            samples = [self._dataset[i] for i in sorted({i * (n - 1) // (_CHECKED - 1) for i in range(_CHECKED)})]
            batch = self._loader.collate_fn(samples)
            template = Template.of(self._layout, batch)
            if self._mechanism.layer is None:
                self._require_one_float_input(template)
                self.shape = template.shapes[self._layout.inputs[0]]
                require_independent_rows(partial(self._checked_vectors, template), samples)
                return template
            layer = layer_of(self._twin, self._mechanism.layer)
            moved = self._move(self._twin, batch)

            def run() -> Any:
                return self._run_step(self._twin, moved)

            with torch.enable_grad():
                self.upstream = tuple(upstream_of(self._twin, layer, run, len(samples)))
                vectors = captured(layer, run, len(samples))
                require_fixed(self._twin, self._mechanism.layer, self.upstream, vectors)
            self.shape = tuple(vectors.shape[1:])
            require_independent_rows(partial(self._checked_vectors, template), samples)
            self._twin.train()
            try:
                require_downstream_only(
                    self._twin,
                    layer=layer,
                    upstream=[self._twin.get_submodule(name) for name in self.upstream],
                    template=template,
                    labels={key: batch[key] for key in self._layout.labels},
                    vectors=vectors.detach(),
                    run_step=self._run_step,
                    transfer=lambda made: self._move(self._twin, made),
                )
            finally:
                self._twin.eval()
        return template

    def fingerprint(self) -> str:
        """Of the weights before the release: with others, what was released before is not what this network would release."""
        digest = hashlib.sha256()
        for name in self.upstream:
            child = self._twin.get_submodule(name)
            for tensor in (*child.parameters(recurse=False), *child.buffers(recurse=False)):
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def release(
        self,
        template: Template,
        noise_multiplier: float,
        noise: NoiseSource,
        gather: Callable[[Tensor], Tensor],
        rank: int,
        world_size: int,
        terms: dict[str, Any],
    ) -> Releases:
        """The private pass. The caller has charged it.

        Args:
            template: from :meth:`check`.
            noise_multiplier: noise standard deviation over the bound.
            noise: this rank's own source of chance.
            gather: sums a tensor over the ranks; each holds its own samples and zeros elsewhere.
            rank: this process.
            world_size: number of processes; each releases every ``world_size``-th sample.
            terms: kept with the releases.
        """
        n, mechanism = len(self._dataset), self._mechanism
        share = range(rank, n, world_size)
        vectors = torch.zeros(mechanism.releases, n, *self.shape, dtype=DTYPES[mechanism.stored_as])
        labels = {key: torch.zeros(n, *template.shapes[key], dtype=template.dtypes[key]) for key in self._layout.labels}
        for number in range(mechanism.releases):
            for indices, batch in self._batches(share, template):
                rows = privatise_rows(self._vectors(batch).cpu(), mechanism.bound, noise_multiplier, noise)
                limit = torch.finfo(vectors.dtype).max  # rounding what was released is free, infinities are of no use
                vectors[number, indices] = rows.clamp(-limit, limit).to(vectors.dtype)
                if number == 0:
                    self._keep_labels(labels, batch, indices, noise)
        vectors = _gathered(vectors, gather)
        labels = {key: _gathered(value, gather) for key, value in labels.items()}
        return Releases(vectors, labels, template, terms)

    def labels_only(self, template: Template) -> dict[Key, Tensor]:
        """The labels of all samples as they are, for releases that a checkpoint held without them."""
        n = len(self._dataset)
        labels = {key: torch.zeros(n, *template.shapes[key], dtype=template.dtypes[key]) for key in self._layout.labels}
        for indices, batch in self._batches(range(n), template):
            for key, kept in labels.items():
                kept[indices] = batch[key]
        return labels

    def _keep_labels(self, labels: dict[Key, Tensor], batch: Any, indices: Tensor, noise: NoiseSource) -> None:
        for key, kept in labels.items():
            answer = self._mechanism.answer
            kept[indices] = batch[key] if answer is None else randomise_labels(batch[key], answer, noise)

    def _batches(self, share: Sequence[int], template: Template) -> Iterator[tuple[Tensor, Any]]:
        """The user's samples, each once, loaded as the user loads them."""
        user = self._loader
        batches: Any = user.batch_sampler
        loader: DataLoader[Any] = DataLoader(
            Subset(self._dataset, share),
            batch_size=self._mechanism.batch_size or int(batches.batch_size),
            num_workers=user.num_workers,
            collate_fn=user.collate_fn,
            timeout=user.timeout,
            worker_init_fn=user.worker_init_fn,
            multiprocessing_context=user.multiprocessing_context,
        )
        done = 0
        for batch in loader:
            template.require(batch)
            size = self._layout.size(batch)
            yield torch.tensor(list(share[done : done + size])), batch
            done += size
        if done != len(share):
            raise PrivacyConfigError(
                f"collate_fn made {done} rows of {len(share)} samples, so which row is whose is unknown. Return one row for "
                "each sample."
            )

    def _vectors(self, batch: Any) -> Tensor:
        """What is to be released of a batch, unclipped, ``(B, ...)``; on the device of the computation."""
        if self._mechanism.layer is None:
            return batch[self._layout.inputs[0]]  # type: ignore[no-any-return]
        moved = self._move(self._twin, batch)
        layer = self._twin.get_submodule(self._mechanism.layer)
        with torch.no_grad():
            return captured(layer, lambda: self._run_step(self._twin, moved), self._layout.size(batch))

    def _checked_vectors(self, template: Template, samples: Sequence[Any]) -> Tensor:
        batch = self._loader.collate_fn(list(samples))
        template.require(batch)
        return self._vectors(batch).detach().cpu()

    def _require_one_float_input(self, template: Template) -> None:
        inputs = self._layout.inputs
        if len(inputs) != 1 or not template.dtypes[inputs[0]].is_floating_point:
            raise PrivacyConfigError(
                f"layer=None releases the inputs themselves, which must be one floating-point tensor; they are "
                f"{[str(template.dtypes[key]) for key in inputs]}. Convert them in the data set (complex numbers by "
                "torch.view_as_real), or name the layer whose output is to be released: NeuralDPStrategy(layer=...)."
            )


def announce_size(shape: Sequence[int], n: int, mechanism: Mechanism) -> None:
    """Says how much memory the cache will take, before it is made."""
    elements = mechanism.releases * n
    for side in shape:
        elements *= side
    size = elements * DTYPES[mechanism.stored_as].itemsize
    rank_zero_info(
        f"Releasing {mechanism.releases} noisy vector(s) of shape {tuple(shape)} for each of {n} samples, once: "
        f"{size / 2**20:.1f} MiB in memory ({mechanism.stored_as})."
    )


def _gathered(tensor: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum over ranks in a dtype that every backend adds up exactly: all but one of the terms are zero."""
    if tensor.is_complex():  # labels alone can be
        return torch.view_as_complex(_gathered(torch.view_as_real(tensor), gather))
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    summed = gather(tensor.to(wide if tensor.is_floating_point() else torch.int64))
    return summed.to(tensor.dtype)
