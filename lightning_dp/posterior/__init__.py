"""Posterior samples of a Langevin chain and predictions that average over them; torch only."""

from __future__ import annotations

from lightning_dp.posterior.predictor import (
    Output,
    PosteriorPrediction,
    PosteriorPredictor,
    class_log_probabilities,
    posterior_forward,
)
from lightning_dp.posterior.samples import KeptIterate, PosteriorSamples, SampleDtype, Thinning
from lightning_dp.posterior.step_sizes import PolynomialStepSize

__all__ = (
    "KeptIterate",
    "Output",
    "PolynomialStepSize",
    "PosteriorPrediction",
    "PosteriorPredictor",
    "PosteriorSamples",
    "SampleDtype",
    "Thinning",
    "class_log_probabilities",
    "posterior_forward",
)
