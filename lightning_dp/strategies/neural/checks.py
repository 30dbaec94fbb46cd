"""Before anything is released: does this network, as it is, fit the guarantee? On a copy, releasing nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.strategies.neural.batches import Key, Template
from lightning_dp.strategies.neural.layer import evaluating, replaced

__all__ = ("require_downstream_only", "require_fixed", "require_independent_rows")

TOLERANCE = 1e-3  # of a row's norm: kernels round otherwise for other batch sizes; a coupling moves far more


def require_independent_rows(vectors_of: Callable[[Sequence[Any]], Tensor], samples: Sequence[Any]) -> None:
    """A sample's vector must be the same alone, beside some samples and beside others.

    Args:
        vectors_of: from samples to what is released of them before clipping, ``(B, ...)``.
        samples: a few.

    Raises:
        PrivacyError: if anything before the release lets samples meet: clipping one row would bound nothing.
    """
    together, turned = vectors_of(samples), vectors_of(samples[::-1]).flip(0)
    for i, sample in enumerate(samples):
        beside = vectors_of([samples[(i + 1) % len(samples)], sample])[1]
        for other in (vectors_of([sample])[0], beside, turned[i]):
            here, there = together[i].double(), other.double()
            both = torch.isfinite(here) & torch.isfinite(there)
            same_holes = bool((torch.isfinite(here) == torch.isfinite(there)).all())
            error = float((here - there)[both].norm())
            size = max(float(here[both].norm()), float(there[both].norm()), 1e-12)
            if not same_holes or error > TOLERANCE * size:
                raise PrivacyError(
                    f"what is released of one sample changes by {error / size:.1%} when the other samples of its batch change, "
                    "so clipping it bounds nothing. Something before the release lets samples meet (a normalisation over "
                    "the batch, mixup, padding to the longest, attention over the batch) or draws random numbers. Put it "
                    "after the released layer, or take it out."
                )


def require_fixed(module: nn.Module, layer: str, upstream: Sequence[str], vectors: Tensor) -> None:
    """Nothing upstream of the release may be trained.

    Args:
        module: the network.
        layer: what is released.
        upstream: names of the modules that ran before.
        vectors: the layer's output, with its graph.

    Raises:
        PrivacyConfigError: naming the parameters.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    owned = {name for name, _ in named if name.rpartition(".")[0] in set(upstream)}
    if vectors.requires_grad and named:
        grads = torch.autograd.grad(vectors.sum(), [p for _, p in named], allow_unused=True)
        owned |= {name for (name, _), g in zip(named, grads, strict=True) if g is not None}
    if owned:
        shown = ", ".join(sorted(owned)[:5]) + (f" and {len(owned) - 5} more" if len(owned) > 5 else "")
        raise PrivacyConfigError(
            f"{shown} lie upstream of the released layer {layer!r} and are trainable: their gradients would depend on the raw "
            "inputs, which no noise protects, and what was released once would no longer be what they compute. Freeze them "
            "(requires_grad_(False)) and leave them out of the optimizer: public or random weights, or weights trained "
            "before with DPStrategy, whose budget is then added with upstream_ledger=..."
        )


def require_downstream_only(
    twin: LightningModule,
    *,
    layer: nn.Module,
    upstream: Sequence[nn.Module],
    template: Template,
    labels: dict[Key, Tensor],
    vectors: Tensor,
    run_step: Callable[[LightningModule, Any], Any],
    transfer: Callable[[Any], Any],
) -> None:
    """The loss must depend on the release, and on nothing else of the inputs.

    The raw inputs cannot reach it in training, where zeros stand in for them. A loss that uses them by another way (a skip
    connection round the layer, a reconstruction) would be trained on those zeros, which nobody wants.

    Raises:
        PrivacyConfigError: saying which.
    """
    size = len(vectors)
    release = torch.randn_like(vectors).requires_grad_()
    losses = []
    with evaluating(upstream):
        for noise in (0, 1):
            torch.manual_seed(noise + 1)
            inputs = {
                key: (torch.randn(size, *template.shapes[key]) * noise).to(template.dtypes[key])
                for key in template.layout.inputs
            }
            batch = transfer(template.batch(size, inputs, labels))
            _require_same_labels(template, batch, labels)
            torch.manual_seed(0)
            with torch.enable_grad(), replaced(layer, release):
                output = run_step(twin, batch)
            losses.append(output.get("loss") if isinstance(output, dict) else output)
    first, second = losses
    if not isinstance(first, Tensor) or not isinstance(second, Tensor) or not first.requires_grad:
        raise PrivacyConfigError("training_step must return a loss that depends on trainable parameters downstream.")
    if torch.autograd.grad(first, release, allow_unused=True, retain_graph=True)[0] is None:
        raise PrivacyConfigError(
            "the loss does not depend on the output of the released layer: training would see nothing of the data. Name the "
            "layer that the rest of the network reads."
        )
    if not torch.allclose(first.detach(), second.detach(), rtol=1e-4, atol=1e-6):
        raise PrivacyConfigError(
            "the loss depends on the inputs by a path round the released layer (a skip connection, a reconstruction of the "
            "inputs, a second branch), and zeros stand in for the inputs in training: the network would learn from zeros. "
            "Release a layer that everything passes, or compare with something else than the inputs."
        )


def _require_same_labels(template: Template, batch: Any, labels: dict[Key, Tensor]) -> None:
    """A hook that moves labels (mixup) would part them from releases that it does not see."""
    for key, value in labels.items():
        parts: Any = batch
        moved = parts[key] if isinstance(batch, (dict, list, tuple)) else None
        if not isinstance(moved, Tensor) or not torch.equal(moved.cpu().to(value.dtype), value):
            raise PrivacyConfigError(
                "a batch-transfer hook changes the labels, or the form of the batch, and it cannot change the releases "
                "along with them. Do it in the data set, before the release, or in the network, after it."
            )
