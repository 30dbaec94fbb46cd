"""How much equally good models differ in what they say of the same samples, and what their ensemble does about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_dp.callbacks.ensemble_budget import EnsembleBudget
from lightning_dp.callbacks.extraction import Extract, Predictions, same_probabilities
from lightning_dp.callbacks.members import (
    Members,
    Output,
    Predict,
    as_probabilities,
    forward_of,
    member_probabilities,
    own_weights_kept,
)
from lightning_dp.callbacks.monitor import Monitor, Stage
from lightning_dp.callbacks.sections import multiplicity_section
from lightning_dp.metrics import Abstention, Groups, Multiplicity, MultiplicityResult
from lightning_dp.metrics.functional.outcomes import Task
from lightning_dp.report import Section

__all__ = ("MultiplicityMonitor",)


class MultiplicityMonitor(Monitor[MultiplicityResult]):
    """Ambiguity, discrepancy, disagreement and viable range of a set of models, and an ensemble of them that may abstain.

    The members are weights for the module that is tested; the first one is the baseline that the others are compared with.
    Each batch is predicted by one member after another, so predictions of all members are never in memory at once. The
    targets and the groups are those of the step's outputs, as for the other monitors; the tested weights themselves are no
    member, and the module has them back after each batch.

    **Guarantee**: this gives none, it adds up those of the members. Members trained on the same private data each spend a
    budget, and whatever is computed from all of them spends the composition of all: `budget`, logged as
    ``test/ensemble_epsilon``. Posterior samples of one chain are covered by its one ledger and add nothing.

    Args:
        members: `Members`, or ``"posterior"`` for the samples that the Trainer's strategy has kept. May be set later.
        task: "multiclass" or "binary".
        num_classes: number of classes.
        class_names: their names.
        groups: the groups; None for all samples together.
        threshold: a probability of the positive class above it is a positive prediction.
        rules: when the ensemble abstains and leaves a sample to an expert; each is evaluated.
        confidence: level of the intervals.
        predict: the predictions ``(module, batch) -> Tensor`` of a module; None: it is called on the batch, or on the first
            item of a tuple.
        output: whether these are ``"logits"`` or ``"probs"``. On the first batch they are compared with what the step gave.
        stages: ``"val"``, ``"test"`` or both.
        extract: makes `Predictions` of a step's outputs and its batch, where the step returns something else.
        log: names of the measures to log; None for all of them.
        prefix: goes before the logged names.
        figures: folder for the figures, relative to the Trainer's ``default_root_dir``; None saves none.
        dataloader_idx: which loader to listen to, where there are several.

    Attributes:
        results: stage -> its last `MultiplicityResult`: coverage, selective accuracy and abstention by group are in the
            ``ensembles`` of its rows.
        budget: what all members together have spent.

    Raises:
        ValueError: in the stage, for members that do not fit the module, predictions that are not those of the step, members
            whose weights differ and whose predictions do not, and bad input as in the other monitors.
        PrivacyConfigError: budgets that do not add up.
    """

    def __init__(
        self,
        members: Members | Literal["posterior"],
        task: Task = "multiclass",
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        groups: Groups | None = None,
        threshold: float = 0.5,
        rules: Sequence[Abstention] = (Abstention("unanimity"), Abstention("binomial", 0.05)),
        confidence: float = 0.95,
        *,
        predict: Predict | None = None,
        output: Output = "logits",
        stages: Sequence[Stage] = ("test",),
        extract: Extract | None = None,
        log: Sequence[str] | None = None,
        prefix: str = "",
        figures: str | Path | None = None,
        dataloader_idx: int | None = None,
    ) -> None:
        super().__init__(groups, stages, extract, log, {"all": True}, prefix, figures, dataloader_idx)
        if output not in get_args(Output):
            raise ValueError(f'output must be "logits" or "probs", got {output!r}.')
        self.members = members
        self.predict: Predict = forward_of if predict is None else predict
        self.output = output
        self.budget: EnsembleBudget | None = None
        self._settings = (task, num_classes, class_names, groups, threshold, tuple(rules), confidence)
        Multiplicity(1, *self._settings)  # refuses bad settings now
        self._heard: Members | None = None
        self._compared = False

    @override
    def _new_metric(self, trainer: Trainer) -> Multiplicity:
        members = Members.from_posterior(trainer.strategy) if self.members == "posterior" else self.members
        assert isinstance(members, Members)
        members.check(trainer.lightning_module)
        self._heard, self.budget = members, members.budget()
        self._compared = members.source == "posterior"  # there the step's predictions may be the samples' average
        return Multiplicity(len(members), *self._settings)

    @override
    def _hear(self, metric: Multiplicity, found: Predictions, trainer: Trainer, batch: Any) -> None:
        # Not kept: the members need the batch.
        module, task, members = trainer.lightning_module, metric.outcomes.task, self._heard
        assert members is not None
        tally = metric.tally(found.target, found.groups, num_samples=len(found))
        with own_weights_kept(module), trainer.precision_plugin.forward_context():
            if not self._compared:
                self._compare(module, batch, found, task)
            for probs in member_probabilities(module, members.states, batch, self.predict, self.output, task):
                tally.add(probs[: len(found)] if trainer.world_size > 1 else probs)  # repeats of a sampler are cut
        metric.update(tally)

    @override
    def _add(self, metric: Multiplicity, found: Predictions) -> None:
        raise NotImplementedError  # _hear has added them

    def _compare(self, module: LightningModule, batch: Any, found: Predictions, task: Task) -> None:
        mine = as_probabilities(self.predict(module, batch), self.output, task)[: len(found)]
        said = found.probabilities(task)
        if not same_probabilities(said, mine):
            raise ValueError(
                "MultiplicityMonitor predicts otherwise than the step: with the tested weights, predict= with "
                f"output={self.output!r} gives probabilities of shape {tuple(mine.shape)} that are not those of the step's "
                f"outputs, of shape {tuple(said.shape)}. Give predict=lambda module, batch: ..., which does what that does, "
                'and output="probs" if it gives probabilities.'
            )
        self._compared = True

    @override
    def _named(self, metric: Any, counts: Any, result: Callable[[], MultiplicityResult]) -> dict[str, float]:
        members = self._heard
        assert members is not None
        if result().overall.viable_range.value == 0.0 and members.differ():
            raise ValueError(
                f"the {len(members)} members have different weights and the same predictions, to the last bit: something else "
                "than the weights decides (a hook that averages, a cache). predict= must use the module it is given."
            )
        rank_zero_info(f"MultiplicityMonitor: {self.budget}.")
        return {**result().scalars(), **({} if self.budget is None else {"ensemble_epsilon": self.budget.eps})}

    @override
    def _draw(self, result: MultiplicityResult) -> Iterator[tuple[str, Any]]:
        yield "multiplicity", result.plot()[0]

    @override
    def _section(self, result: MultiplicityResult, where: str) -> Section:
        return multiplicity_section(result, self.budget, where, self.prefix)

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Selective accuracy against coverage of the last result's ensemble, by group and rule: ``(fig, ax)``."""
        return self.result.plot(ax)
