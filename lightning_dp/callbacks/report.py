"""One page that says what a run's guarantee means, written when training ends and completed when testing does."""

from __future__ import annotations

import json
import math
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_dp import _compat
from lightning_dp.accounting import PrivacySettings, PrivacySpent, RiskCorridor, relaxed_risk, risk_corridor
from lightning_dp.callbacks.protocol import PrivateStrategy
from lightning_dp.callbacks.reconstruction import ReconstructionRiskMonitor
from lightning_dp.callbacks.releases import Release, uncovered_releases
from lightning_dp.errors import PrivacyWarning
from lightning_dp.report import Figure, Reports, Section, build_document, load_document, render_card, render_page
from lightning_dp.report.figures import draw_budget, draw_corridor, draw_roc, require_matplotlib

__all__ = ("RiskReport",)

_CURVE_POINTS = 7
PACKAGES = ("lightning-dp", "torch", "lightning", "dp-accounting")


class RiskReport(Callback):
    """Writes ``report.html``, ``report.json`` and ``model_card.md`` about a run, private or not.

    After ``fit``: what is guaranteed, to whom and under which assumptions, bounds on membership and reconstruction attacks,
    eps over training, validation metrics, what other callbacks contribute (calibration, fairness, multiplicity), and the
    numbers that were released without being part of eps. After ``test``: the same with the test metrics. The page needs
    nothing but itself: no network, no script.

    Callbacks with a ``report_sections`` method (:class:`~lightning_dp.report.Reports`) are asked for their part, and a
    :class:`ReconstructionRiskMonitor` for its corridor.

    Args:
        dirpath: the folder to write to; it is made.
        baseline: folder or ``report.json`` of a run to show beside this one, such as the same training without privacy.
        kappa: chance of a blind guess for reconstruction, where there is no ReconstructionRiskMonitor; ``None`` means 1/n.
        name: of the model; its class by default.

    Attributes:
        document: what ``report.json`` holds, once written.

    Raises:
        PrivacyConfigError: if the baseline is missing or no report.
        ImportError: without matplotlib.
    """

    def __init__(
        self,
        dirpath: str | Path = "report",
        *,
        baseline: str | Path | None = None,
        kappa: float | None = None,
        name: str | None = None,
    ) -> None:
        require_matplotlib()
        self.dirpath, self.kappa, self.name = Path(dirpath), kappa, name
        self.baseline = None if baseline is None else load_document(baseline)  # now, not after a day of training
        self.document: dict[str, Any] | None = None
        self._logged: set[str] = set()
        self._history: list[tuple[int, float]] = []
        self._settings: PrivacySettings | None = None
        self._spent: PrivacySpent | None = None
        self._corridor: RiskCorridor | None = None
        self._releases: list[Release] = []
        self._utility: dict[str, float] = {}
        self._fitted = False

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged, self._history, self._utility, self._releases = set(), [], {}, []
        self._settings = self._spent = self._corridor = None
        self._fitted = False

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self._logged |= _compat.names_logged_in_training(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged |= _compat.names_logged_in_training(trainer)
        if isinstance(trainer.strategy, PrivateStrategy):
            self._history.append((trainer.global_step, trainer.strategy.epsilon()))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy = trainer.strategy
        if isinstance(strategy, PrivateStrategy):
            self._settings, self._spent = strategy.settings(), strategy.privacy_spent()
            if not self._history or self._history[-1][0] != trainer.global_step:  # the budget ended it in mid-epoch
                self._history.append((trainer.global_step, strategy.epsilon()))
        self._releases = uncovered_releases(trainer, self._logged, self._settings)
        self._fitted = True

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._utility = self._metrics(trainer)
        self.write(trainer, pl_module)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._utility = {**self._utility, **self._metrics(trainer)}
        self.write(trainer, pl_module)

    def write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the three files from what is known; on rank 0 alone. Called after ``fit`` and after ``test``.

        Without a ``fit`` in this process it warns and writes nothing: whether the model is private is then not known, and an
        earlier report that says so must not be replaced.
        """
        if not trainer.is_global_zero:
            return
        if not self._fitted:
            rank_zero_warn(
                "RiskReport saw no training in this process, so it does not know what the model guarantees and writes nothing. "
                "Call trainer.test with the Trainer that fitted the model (strategies that spawn processes forget it; ddp does "
                "not).",
                category=PrivacyWarning,
            )
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        sections = [s for c in callbacks if isinstance(c, Reports) for s in c.report_sections(trainer)]
        self._corridor = self._find_corridor(callbacks)
        self.document = build_document(
            model={
                "name": self.name or type(pl_module).__name__,
                "parameters": sum(p.numel() for p in pl_module.parameters()),
            },
            settings=self._settings,
            spent=self._spent,
            history=self._history,
            corridor=self._corridor,
            utility=self._utility,
            uncovered=[{"what": r.what, "why": r.why, "remedy": r.remedy} for r in self._releases],
            sections=sections,
            baseline=self.baseline,
            versions=_versions(),
        )
        self.dirpath.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.document, indent=1, allow_nan=False)
        (self.dirpath / "report.json").write_text(text + "\n", encoding="utf-8")
        page = render_page(self.document, self._figures(sections))
        (self.dirpath / "report.html").write_text(page, encoding="utf-8")
        (self.dirpath / "model_card.md").write_text(render_card(self.document), encoding="utf-8")
        rank_zero_info(f"Report written to {self.dirpath / 'report.html'}")

    def _find_corridor(self, callbacks: list[Callback]) -> RiskCorridor | None:
        if self._spent is None or self._settings is None:
            return None
        monitored = [
            c.corridor for c in callbacks if isinstance(c, ReconstructionRiskMonitor) and c.corridor is not None
        ]
        if monitored:
            return monitored[0]
        if self._corridor is not None:
            return self._corridor
        return risk_corridor(self._spent.entries, kappa=self.kappa, dataset_size=self._settings.dataset_size)

    def _metrics(self, trainer: Trainer) -> dict[str, float]:
        """Metrics of held-out data: those of training are private, and are named elsewhere."""
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        hidden = {name for name in found if name.startswith("privacy/")} | self._training_names()
        return {name: value for name, value in found.items() if name not in hidden}

    def _training_names(self) -> set[str]:
        return {f"{name}{suffix}" for name in self._logged for suffix in ("", "_step", "_epoch")}

    def _figures(self, sections: list[Section]) -> dict[str, list[Figure]]:
        found = {section.key: list(section.figures) for section in sections}
        assert self.document is not None
        if self._spent is None or not self.document["private"]:
            return found
        history = [(step, eps) for step, eps in self._history if math.isfinite(eps)]
        if history:
            limit = None if self._settings is None else self._settings.eps
            found["budget"] = [draw_budget([step for step, _ in history], [eps for _, eps in history], limit)]
        roc = self.document["membership"]["roc"]
        found["membership"] = [draw_roc(roc["fpr"], roc["tpr"])]
        if self._corridor is not None:
            found["reconstruction"] = [draw_corridor(*_corridor_curves(self._spent, self._corridor))]
        return found


def _corridor_curves(
    spent: PrivacySpent, corridor: RiskCorridor
) -> tuple[list[float], list[tuple[str, list[float], bool]]]:
    """Success of the two attackers over the chance of a blind guess, from the report's own kappa on."""
    kappa = [float(k) for k in np.geomspace(min(max(corridor.kappa, 1e-12), 0.1), 0.5, _CURVE_POINTS)]
    worst = [float(gamma) for gamma in spent.trade_off().tpr(kappa)]
    relaxed = [relaxed_risk(spent.entries, k).gamma for k in kappa]
    return kappa, [("worst case", worst, True), ("relaxed threat model", relaxed, False)]


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
