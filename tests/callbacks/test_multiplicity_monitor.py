"""Members from checkpoints, posterior samples and trainings: their multiplicity by a plain loop, their budget composed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_dp import AbstainingEnsemble, DPStrategy, Members, MultiplicityMonitor, PrivacyConfigError, PrivacyError
from lightning_dp.accounting import GaussianEvent, PrivacyLedger, privacy_spent
from lightning_dp.callbacks.ensemble_budget import CHECKPOINT_KEY, Spending, ensemble_budget
from lightning_dp.metrics import Abstention, Multiplicity
from lightning_dp.strategies.base import CHECKPOINT_KEY as STRATEGY_KEY
from tests.callbacks.helpers import CLASSES, FEATURES, GROUPS, Grouped, N, loader, network, samples, trainer
from tests.callbacks.test_monitors import close

# Three members never convince the binomial rule, which is said; what is said is the subject of test_monitors.py.
pytestmark = pytest.mark.filterwarnings("ignore:.*these have no value:UserWarning")


def states(count: int = 3) -> list[dict[str, Tensor]]:
    return [Grouped(network(seed)).state_dict() for seed in range(10, 10 + count)]


def members(count: int = 3) -> Members:
    return Members(states(count), (None,) * count, "trained")


def monitor(given: Any = None, **arguments: Any) -> MultiplicityMonitor:
    return MultiplicityMonitor(members() if given is None else given, "multiclass", CLASSES, groups=GROUPS, **arguments)


def plain(weights: Sequence[Mapping[str, Tensor]]) -> Multiplicity:
    """All members' predictions of all samples at once, in modules of their own."""
    x, y, groups = samples()
    metric = Multiplicity(len(weights), "multiclass", CLASSES, groups=GROUPS)
    tally = metric.tally(y, groups)
    for state in weights:
        module = Grouped()
        module.load_state_dict(state)
        with torch.no_grad():
            tally.add(module(x).softmax(1))
    metric.update(tally)
    return metric


@pytest.mark.parametrize("private", [False, True])
def test_result_is_that_of_modules_of_their_own(private: bool) -> None:
    module = Grouped()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    watching = monitor()
    run = trainer(watching, **({"strategy": DPStrategy(noise_multiplier=1.0)} if private else {}))
    run.test(module, loader(), verbose=False)
    close(watching.result.to_dict(), plain(states()).result().to_dict())
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    logged = run.callback_metrics
    assert float(logged["test/ambiguity/male, old"]) == pytest.approx(watching.result.row("male, old").ambiguity.value)
    assert float(logged["test/coverage_unanimity"]) == pytest.approx(1 - watching.result.overall.ambiguity.value)
    assert float(logged["test/ensemble_epsilon"]) == math.inf
    assert 0 < watching.result.overall.ambiguity.value < 1


def test_one_member_and_members_alike_differ_in_nothing() -> None:
    for weights in (states(1), states(1) * 3):
        watching = monitor(Members(weights, (None,) * len(weights), "trained"), log=["ambiguity"])
        trainer(watching).test(Grouped(), loader(), verbose=False)
        row = watching.result.overall
        assert (row.ambiguity.value, row.discrepancy.value, row.obscurity.value) == (0, 0, 0)


# --- predictions of members are what the step would give ---------------------------------------------------------------


def test_logits_taken_for_probabilities_are_found() -> None:
    with pytest.raises(ValueError, match="predicts otherwise than the step"):
        trainer(monitor(output="probs")).test(Grouped(), loader(), verbose=False)
    doubled = monitor(predict=lambda module, batch: module(2 * batch[0]))
    with pytest.raises(ValueError, match="predicts otherwise than the step"):
        trainer(doubled).test(Grouped(), loader(), verbose=False)


def test_predictions_that_do_not_depend_on_the_weights_are_found() -> None:
    module, fixed = Grouped(), network()
    with pytest.raises(ValueError, match="different weights and the same predictions"):
        trainer(monitor(predict=lambda _, batch: fixed(batch[0]))).test(module, loader(), verbose=False)


def test_a_batch_of_another_kind_needs_predict() -> None:
    module = Grouped()
    module.test_step = lambda batch, batch_idx: module.validation_step(tuple(batch["all"]), batch_idx)  # type: ignore[method-assign]
    batches = [{"all": [value[i : i + 9] for value in samples()]} for i in range(0, N, 9)]
    data = DataLoader(batches, batch_size=None)
    with pytest.raises(ValueError, match="give predict=lambda"):
        trainer(monitor()).test(module, data, verbose=False)
    watching = monitor(predict=lambda module, batch: module(batch["all"][0]))
    trainer(watching).test(module, data, verbose=False)
    close(watching.result.to_dict(), plain(states()).result().to_dict())


@pytest.mark.parametrize(
    "state, message",
    [
        ({"net.0.weight": torch.zeros(6, FEATURES)}, "lacks"),
        ({**Grouped().state_dict(), "net.9.weight": torch.zeros(1)}, "holds"),
        ({**Grouped().state_dict(), "net.0.bias": torch.zeros(7)}, "another shape"),
    ],
)
def test_members_of_another_architecture_are_refused(state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(monitor(Members([state], (None,), "trained"))).test(Grouped(), loader(), verbose=False)


def test_bad_members_are_refused() -> None:
    with pytest.raises(ValueError, match="0 members"):
        Members.from_checkpoints([])
    with pytest.raises(ValueError, match="keeps no posterior"):
        trainer(monitor("posterior")).test(Grouped(), loader(), verbose=False)
    with pytest.raises(ValueError, match='output must be "logits"'):
        monitor(output="scores")


# --- where members are from ---------------------------------------------------------------------------------------------


def fit(index: int, folder: Path | None = None) -> tuple[Any, Grouped, Any]:
    run = trainer(strategy=DPStrategy(noise_multiplier=1.0 + index, delta=1e-3 / (1 + index)))
    return run, Grouped(network(index)), loader()


def composed(delta: float, *noises: float) -> float:
    """Eps of the trainings above together: each takes seven steps at q = 8 / 53."""
    ledger = PrivacyLedger()
    for noise in noises:
        ledger.charge(GaussianEvent(noise, 8 / N), 7)
    return privacy_spent(ledger.entries, delta).eps


def test_trained_members_add_their_budgets_up() -> None:
    trained = Members.trained(fit, 2)
    watching = monitor(trained)
    trainer(watching).test(Grouped(), loader(), verbose=False)
    budget = watching.budget
    assert budget is not None
    assert budget.spent is not None
    assert budget.composition == "added"
    assert budget.spent.delta == 5e-4  # the smaller of the two
    assert budget.eps == pytest.approx(composed(5e-4, 1.0, 2.0), rel=1e-9)
    assert budget.alone == pytest.approx((composed(5e-4, 1.0), composed(5e-4, 2.0)), rel=1e-9)
    assert budget.eps > max(budget.alone)
    assert "budgets added up" in str(budget)
    assert not torch.equal(trained.states[0]["net.0.weight"], trained.states[1]["net.0.weight"])


def test_checkpoints_of_separate_runs_add_up_and_those_of_one_run_do_not(tmp_path: Path) -> None:
    paths = []
    for index in range(2):
        run, module, data = fit(index)
        run.fit(module, data)
        paths.append(tmp_path / f"{index}.ckpt")
        run.save_checkpoint(paths[-1])
    watching = monitor(Members.from_checkpoints(paths))
    trainer(watching).test(Grouped(), loader(), verbose=False)
    assert watching.budget is not None
    assert watching.budget.eps == pytest.approx(composed(5e-4, 1.0, 2.0), rel=1e-9)
    assert watching.result.num_members == 2

    once = Members.from_checkpoints([paths[0], paths[0]]).budget()
    assert once.composition == "shared"
    assert once.eps == once.alone[0] == pytest.approx(composed(1e-3, 1.0), rel=1e-9)

    apart = Members.from_checkpoints(paths, disjoint=True).budget()
    assert apart.composition == "parallel"
    assert apart.eps == max(apart.alone) == pytest.approx(composed(5e-4, 1.0), rel=1e-9)
    with pytest.raises(PrivacyConfigError, match="share a part of their ledgers"):
        Members.from_checkpoints([paths[0], paths[0]], disjoint=True).budget()


def test_a_member_without_privacy_leaves_no_guarantee(tmp_path: Path) -> None:
    assert CHECKPOINT_KEY == STRATEGY_KEY
    paths = []
    for name, plugin in (("private", DPStrategy(noise_multiplier=1.0)), ("plain", "auto")):
        run = trainer(strategy=plugin)
        run.fit(Grouped(), loader())
        paths.append(tmp_path / f"{name}.ckpt")
        run.save_checkpoint(paths[-1])
    budget = Members.from_checkpoints(paths).budget()
    assert budget.eps == math.inf
    assert budget.alone[0] < math.inf == budget.alone[1]
    assert "1 of them were trained without" in str(budget)
    assert budget.to_dict()["eps"] is None


class Chain(DPStrategy):
    """Keeps iterates by hand, as a strategy with a posterior does."""

    posterior: Sequence[Mapping[str, Tensor]] = ()


def test_posterior_samples_cost_what_one_costs(tmp_path: Path) -> None:
    chain = Chain(noise_multiplier=1.0, delta=1e-3)
    watching = monitor("posterior")
    run = trainer(watching, strategy=chain)
    module = Grouped()
    run.fit(module, loader())
    chain.posterior = states(4)
    run.test(module, loader(), verbose=False)
    assert watching.budget is not None
    assert watching.budget.composition == "shared"
    assert watching.budget.eps == pytest.approx(composed(1e-3, 1.0), rel=1e-9)
    assert watching.result.num_members == 4
    run.save_checkpoint(tmp_path / "chain.ckpt")

    fresh = Chain(noise_multiplier=1.0)
    fresh.posterior = states(4)
    with pytest.raises(PrivacyError, match="ledger of Chain is empty"):
        Members.from_posterior(fresh)
    told = Members.from_posterior(fresh, checkpoint=tmp_path / "chain.ckpt")
    assert told.budget().eps == watching.budget.eps


# --- budgets --------------------------------------------------------------------------------------------------------------


def spending(noise: float = 1.0, steps: int = 10, unit: str = "sample", delta: float = 1e-5) -> Spending:
    ledger = PrivacyLedger()
    ledger.charge(GaussianEvent(noise, 0.1), steps)
    return Spending(ledger.state_dict(), delta, unit, "pld")


def test_like_members_add_up_to_more_steps() -> None:
    """k members at like settings are one ledger of k times the steps, whatever the order."""
    parts = [spending(steps=10), spending(steps=20), spending(2.0)]
    ledger = PrivacyLedger()
    ledger.charge(GaussianEvent(1.0, 0.1), 30)
    ledger.charge(GaussianEvent(2.0, 0.1), 10)
    expected = privacy_spent(ledger.entries, 1e-5).eps
    for order in (parts, parts[::-1]):
        assert ensemble_budget(order).eps == pytest.approx(expected, rel=1e-9)


def test_a_common_beginning_is_counted_once() -> None:
    common = PrivacyLedger()
    common.charge(GaussianEvent(1.0, 0.1), 10)
    branches = []
    for _ in range(2):
        branch = PrivacyLedger()
        branch.merge(common.state_dict())
        branch.charge(GaussianEvent(1.0, 0.1), 5)
        branches.append(Spending(branch.state_dict(), 1e-5, "sample", "pld"))
    ledger = PrivacyLedger()
    ledger.charge(GaussianEvent(1.0, 0.1), 20)
    budget = ensemble_budget(branches)
    assert budget.composition == "added"
    assert budget.eps == pytest.approx(privacy_spent(ledger.entries, 1e-5).eps, rel=1e-9)
    with pytest.raises(PrivacyConfigError, match="trained on from one checkpoint"):
        ensemble_budget(branches, disjoint=True)


def test_units_do_not_add_up() -> None:
    with pytest.raises(PrivacyConfigError, match="different units"):
        ensemble_budget([spending(), spending(unit="patient_id")])
    with pytest.raises(PrivacyConfigError, match="at least one member"):
        ensemble_budget([])


def test_relations_do_not_add_up_and_disjoint_data_need_add_or_remove_one() -> None:
    replacing = PrivacyLedger()
    replacing.charge(GaussianEvent(2.0, sampling="none", relation="replace_one"), 1)
    other = [Spending(replacing.state_dict(), 1e-5, "sample", "pld")]
    second = PrivacyLedger()
    second.charge(GaussianEvent(2.0, sampling="none", relation="replace_one"), 1)
    other.append(Spending(second.state_dict(), 1e-5, "sample", "pld"))
    for disjoint in (False, True):
        with pytest.raises(PrivacyError, match="different neighbouring relations"):
            ensemble_budget([spending(), other[0]], disjoint)
    added = ensemble_budget(other)
    assert added.spent is not None
    assert added.spent.relation == "replace_one"
    assert added.eps > added.alone[0]
    with pytest.raises(PrivacyConfigError, match="concern two members"):
        ensemble_budget(other, disjoint=True)


def test_a_spoilt_record_is_refused() -> None:
    with pytest.raises(PrivacyError, match="cannot be read"):
        Spending.of_checkpoint({CHECKPOINT_KEY: {}}, "x.ckpt")
    nothing = {"ledger": PrivacyLedger().state_dict(), "delta": 1e-5, "unit": "sample", "accountant": "pld"}
    with pytest.raises(PrivacyError, match="x.ckpt is empty"):
        Spending.of_checkpoint({CHECKPOINT_KEY: {"budget": nothing}}, "x.ckpt")


# --- the ensemble that abstains -------------------------------------------------------------------------------------------


def test_the_ensemble_answers_where_members_agree_and_asks_otherwise() -> None:
    x, y, groups = samples()
    module = Grouped().train()
    own = module(x)
    asked: list[Tensor] = []

    def expert(batch: Any, indices: Tensor) -> Tensor:
        asked.append(indices)
        return y[indices]

    ensemble = AbstainingEnsemble(module, members(), num_classes=CLASSES, expert=expert)
    got = ensemble((x, y, groups))
    each = torch.stack([nn.Sequential(*network(seed))(x).argmax(1) for seed in (10, 11, 12)])
    agree = (each == each[0]).all(0)
    assert torch.equal(got.deferred, ~agree)
    assert torch.equal(got.classes, torch.where(agree, each[0], y))
    assert torch.equal(asked[0], (~agree).nonzero()[:, 0])
    assert got.coverage == pytest.approx(float(agree.double().mean()))
    assert got.votes.sum(1).unique().tolist() == [3]
    assert module.training
    assert torch.equal(module(x), own)

    watching = monitor(rules=(Abstention.unanimity(),))
    trainer(watching).test(Grouped(), loader(), verbose=False)
    (row,) = watching.result.overall.ensembles
    assert row.coverage.value == pytest.approx(got.coverage)
    assert row.selective_accuracy.value == pytest.approx(float((each[0] == y)[agree].double().mean()))


def test_without_an_expert_samples_stay_open() -> None:
    x, _, _ = samples()
    got = AbstainingEnsemble(Grouped(), members(), num_classes=CLASSES)((x,))
    assert torch.equal(got.classes < 0, got.deferred)
    lazy = AbstainingEnsemble(
        Grouped(), members(), num_classes=CLASSES, expert=lambda batch, indices: torch.zeros(1, dtype=torch.int64)
    )
    with pytest.raises(ValueError, match="the expert was asked"):
        lazy((x,))


def test_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    watching = monitor(figures="figures")
    trainer(watching, root=tmp_path).test(Grouped(), loader(), verbose=False)
    assert (tmp_path / "figures" / "test_multiplicity.png").is_file()
    figure, axes = watching.plot()
    assert axes.figure is figure
