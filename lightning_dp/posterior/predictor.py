"""Predictions averaged over posterior samples, with what the samples disagree about."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lightning_dp.errors import PrivacyConfigError

__all__ = ("Output", "PosteriorPrediction", "PosteriorPredictor", "class_log_probabilities", "posterior_forward")

Output = Literal["softmax", "sigmoid", "values"]


@dataclass(frozen=True)
class PosteriorPrediction:
    """What the samples together say about a batch. Entropies are in nats.

    Attributes:
        probabilities: mean over the samples of the class probabilities, ``(N, K, ...)``; of the positive class, in the
            shape of the outputs, for ``"sigmoid"``.
        entropy: ``(N, ...)``, entropy of the mean probabilities: all uncertainty.
        expected_entropy: ``(N, ...)``, mean of the samples' entropies: what is left when the parameters are known.
        mutual_information: ``(N, ...)``, their difference: what the samples disagree about, 0 where they agree.
    """

    probabilities: Tensor
    entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor


class PosteriorPredictor:
    """Averages a module's predictions over posterior samples: ``p(y|x) = (1/S) sum_s p(y|x, theta_s)``.

    **Guarantee**: post-processing of accounted iterates, so it costs no privacy, for any number of samples and of inputs
    that are not training data. It needs no Trainer, and it leaves the module as it is.

    Args:
        module: computes logits (or values), with the names of parameters that the samples have. A LightningModule does.
        samples: mappings from names of parameters and buffers to values, ``LangevinStrategy.posterior`` for one. What they
            do not name is the module's own.
        output: what the module returns: logits of K classes along dimension 1 (``"softmax"``), logits of yes or no
            (``"sigmoid"``), or numbers to be averaged as they are (``"values"``).
        prefix: of the samples' names, where ``module`` is a part of the module they were taken from (``"net."``).

    Raises:
        PrivacyConfigError: without samples, or if their names do not fit the module.

    Example:
        >>> net = torch.nn.Linear(2, 3).eval()
        >>> samples = [{"weight": torch.randn(3, 2), "bias": torch.zeros(3)} for _ in range(4)]
        >>> prediction = PosteriorPredictor(net, samples)(torch.randn(5, 2))
        >>> prediction.probabilities.shape, prediction.mutual_information.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        module: nn.Module,
        samples: Sequence[Mapping[str, Tensor]],
        *,
        output: Output = "softmax",
        prefix: str = "",
    ) -> None:
        if output not in get_args(Output):
            raise PrivacyConfigError(f"unknown output {output!r}; choose one of {get_args(Output)}")
        if not len(samples):
            raise PrivacyConfigError("there are no posterior samples to average; train past burn_in first")
        own = {prefix + name for name, _ in [*module.named_parameters(), *module.named_buffers()]}
        strange = sorted(samples[0].keys() - own)
        if strange:
            raise PrivacyConfigError(
                f"the posterior samples hold {', '.join(strange[:5])}, which {type(module).__name__} does not: leaving them "
                "out would mix the weights of different iterates. Give the module that was trained, or the part of it "
                "that holds all trained parameters."
            )
        self.module, self.samples, self.output, self.prefix = module, samples, output, prefix

    def __call__(self, *args: Any, **kwargs: Any) -> PosteriorPrediction:
        """Mean probabilities and entropies for the arguments of the module's forward pass.

        Raises:
            PrivacyConfigError: for ``output="values"``, a module in training mode, or outputs that are no logits.
        """
        if self.output == "values":
            raise PrivacyConfigError("values have no entropy; use PosteriorPredictor.averaged for their mean")
        log_mean, expected = self._log_mean(*args, **kwargs)
        entropy = _entropy(log_mean)
        probabilities = log_mean.exp()
        return PosteriorPrediction(
            probabilities if self.output == "softmax" else probabilities[:, 1],
            entropy,
            expected,
            (entropy - expected).clamp(min=0.0),  # it is; rounding aside
        )

    def averaged(self, *args: Any, **kwargs: Any) -> Tensor:
        """The averaged prediction in the form of the module's own output.

        For ``"softmax"`` the log of the mean probabilities: its softmax *is* the mean probabilities, its arg max the class,
        its cross-entropy the negative log-likelihood of the average. For ``"sigmoid"`` likewise. For ``"values"`` the mean.
        """
        if self.output == "values":
            outputs = [output / len(self.samples) for output in self._outputs(*args, **kwargs)]
            return torch.stack(outputs).sum(0)
        log_mean, _ = self._log_mean(*args, **kwargs)
        return log_mean if self.output == "softmax" else log_mean[:, 1] - log_mean[:, 0]

    def _log_mean(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Log of the mean probabilities ``(N, K, ...)`` and the mean entropy ``(N, ...)``."""
        total: Tensor | None = None
        expected: Tensor | None = None
        for output in self._outputs(*args, **kwargs):
            logs = self._log_probabilities(output)
            total = logs if total is None else torch.logaddexp(total, logs)
            expected = _entropy(logs) if expected is None else expected + _entropy(logs)
        assert total is not None
        assert expected is not None
        return total - math.log(len(self.samples)), expected / len(self.samples)

    def _log_probabilities(self, output: Tensor) -> Tensor:
        if self.output == "sigmoid":
            return torch.stack([F.logsigmoid(-output.float()), F.logsigmoid(output.float())], dim=1)
        return class_log_probabilities(output)

    @torch.no_grad()
    def _outputs(self, *args: Any, **kwargs: Any) -> Iterator[Tensor]:
        """The module's output for each sample, one after the other."""
        if self.module.training:
            raise PrivacyConfigError(
                "the module is in training mode, in which dropout adds noise of its own. Call module.eval() first."
            )
        own: dict[str, Tensor] = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        for sample in self.samples:
            values = {name.removeprefix(self.prefix): value for name, value in sample.items()}
            placed = {name: value.to(own[name].device, own[name].dtype) for name, value in values.items()}
            output = functional_call(self.module, placed, args, kwargs)
            if not isinstance(output, Tensor):
                raise PrivacyConfigError(
                    f"forward returned {type(output).__name__}, of which it is not clear what to average. Name the part of "
                    "the module that returns a tensor of logits (output_module), or average by hand."
                )
            yield output


@contextmanager
def posterior_forward(predictor: PosteriorPredictor) -> Iterator[Callable[[], int]]:
    """While it is open, calling the predictor's module gives the averaged prediction in place of its own.

    A forward hook of torch does it, for this time only: code that calls the module as ``module(x)`` and takes softmax, arg
    max or cross-entropy of the result sees the posterior's. Code that calls ``module.forward(x)``, or parts of the module,
    goes past it; the count of calls, which the context gives, tells.
    """
    calls, running = 0, False

    def average(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Tensor | None:
        nonlocal calls, running
        if running:  # the predictor's own calls
            return None
        running, calls = True, calls + 1
        try:
            return predictor.averaged(*args, **kwargs)
        finally:
            running = False

    handle = predictor.module.register_forward_hook(average, with_kwargs=True)
    try:
        yield lambda: calls
    finally:
        handle.remove()


def class_log_probabilities(logits: Tensor) -> Tensor:
    """Log probabilities ``(N, K, ...)`` of logits with the classes along dimension 1.

    Raises:
        PrivacyConfigError: for outputs that are no such logits: of one class, or probabilities already.
    """
    output = logits.float()
    if output.ndim < 2 or output.shape[1] < 2:
        raise PrivacyConfigError(
            f"outputs of shape {tuple(output.shape)} are no logits of several classes, which lie along dimension 1. Use "
            "output='sigmoid' for one logit of yes or no, output='values' for numbers."
        )
    if output.numel() and bool((output >= 0).all()) and bool(((output.sum(1) - 1).abs() < 1e-3).all()):
        raise PrivacyConfigError(
            "the module returns probabilities, and softmax would be taken of them once more. Use output='values', which "
            "averages them as they are, or return logits."
        )
    return output.log_softmax(1)


def _entropy(logs: Tensor) -> Tensor:
    """Entropy in nats along dimension 1 of log probabilities; 0 log 0 = 0."""
    return -torch.where(logs.isneginf(), 0.0, logs.exp() * logs).sum(1)
