"""Differential privacy for PyTorch Lightning: one argument of the Trainer, and an eps that can be trusted."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from lightning.pytorch.strategies import StrategyRegistry

from lightning_dp.accounting import MembershipRisk, ReconstructionRisk
from lightning_dp.callbacks import (
    AbstainingEnsemble,
    CalibrationMonitor,
    FairnessMonitor,
    Members,
    MultiplicityMonitor,
    PosteriorCalibration,
    Predictions,
    PrivacyAccountant,
    ReconstructionRiskMonitor,
    RiskReport,
)
from lightning_dp.errors import PrivacyConfigError, PrivacyError, PrivacyWarning
from lightning_dp.inspection import inspect
from lightning_dp.metrics import Groups
from lightning_dp.models import replace_batch_norm
from lightning_dp.posterior import PosteriorPredictor
from lightning_dp.strategies import BAMStrategy, DPStrategy, LangevinStrategy, NeuralDPStrategy

try:
    __version__ = version("lightning-dp")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+unknown"

__all__ = (
    "AbstainingEnsemble",
    "BAMStrategy",
    "CalibrationMonitor",
    "DPStrategy",
    "FairnessMonitor",
    "Groups",
    "LangevinStrategy",
    "Members",
    "MembershipRisk",
    "MultiplicityMonitor",
    "NeuralDPStrategy",
    "PosteriorCalibration",
    "PosteriorPredictor",
    "Predictions",
    "PrivacyAccountant",
    "PrivacyConfigError",
    "PrivacyError",
    "PrivacyWarning",
    "ReconstructionRisk",
    "ReconstructionRiskMonitor",
    "RiskReport",
    "__version__",
    "inspect",
    "replace_batch_norm",
)

# Lightning has no entry points for strategies: a string exists once its package is imported. The guard makes a second
# import (reload, notebooks) harmless. A string can carry only a default: eps = 8; any other budget needs the class.
if "dp_sgd" not in StrategyRegistry:
    StrategyRegistry.register(
        "dp_sgd", DPStrategy, "DP-SGD with the default budget eps = 8 at delta = 1/(10 n)", eps=8.0
    )
if "dp_bam" not in StrategyRegistry:
    StrategyRegistry.register(
        "dp_bam", BAMStrategy, "bias-aware minimisation with the default budget eps = 8 at delta = 1/(10 n)", eps=8.0
    )
if "dp_langevin" not in StrategyRegistry:
    StrategyRegistry.register(
        "dp_langevin",
        LangevinStrategy,
        "DP-SGD as Langevin dynamics, predictions averaged over posterior samples; eps = 8 at delta = 1/(10 n)",
        eps=8.0,
    )
if "neural_dp" not in StrategyRegistry:
    StrategyRegistry.register(
        "neural_dp",
        NeuralDPStrategy,
        "Training on inputs that were clipped and noised once, with the default budget eps = 8 at delta = 1/(10 n)",
        eps=8.0,
    )
