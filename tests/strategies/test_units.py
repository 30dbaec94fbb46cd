"""A patient is one unit: what all of their images do together is bounded, accounted and reported as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_dp import DPStrategy, PrivacyAccountant, PrivacyConfigError, PrivacyError, PrivacyWarning
from lightning_dp.accounting import GaussianEvent, LedgerEntry, get_accountant
from lightning_dp.callbacks.accountant import summary_text
from lightning_dp.gradients import Clipping, GradientEngine
from lightning_dp.sampling import PoissonSampler, UnitRows, key_from_seed, split_units
from lightning_dp.strategies.base import CHECKPOINT_KEY
from lightning_dp.strategies.messages import announcement
from lightning_dp.strategies.step import unit_map
from tests.strategies.helpers import CLASSES, FEATURES, Tiny, dataset, fit, flat, network, strategy

pytestmark = pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")

OWNERS = [0, 0, 0, 0, 0, 0, 0, 1, 2, 1, 2, 1, 3, 4, 4, 5, 6, 7, 7, 7, 6, 6, 5, 4, 3, 2, 8, 8, 9, 9, 9, 9]
C = 0.3


class Scans(Dataset[Any]):
    """Points, the patient of each, and optionally a random transform that counts its calls."""

    def __init__(self, owners: list[int] = OWNERS, jitter: float = 0.0) -> None:
        self.points = dataset(len(OWNERS))
        self.kept = [i for i, owner in enumerate(OWNERS) if owner in set(owners)]
        self.patient = [f"patient-{OWNERS[i]}" for i in self.kept]
        self.jitter, self.asked = jitter, []

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.points[self.kept[index]]
        self.asked.append(index)
        return x + self.jitter * torch.randn(FEATURES), y


def data(scans: Dataset[Any], batch_size: int = 10) -> DataLoader[Any]:
    return DataLoader(scans, batch_size=batch_size, shuffle=True)


class Kept(Tiny):
    """Keeps batches and gradients."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(lr=0.0, **arguments)  # parameters stay: every step can be worked out again
        self.batches: list[Any] = []
        self.gradients: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batches.append([t.clone() for t in batch])
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.gradients.append(torch.cat([p.grad.flatten().clone() for p in self.parameters()]))


class Summed(Kept):
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self(x), y, reduction="sum")


def gradient(x: Tensor, y: Tensor) -> Tensor:
    """Of the mean loss over some samples, by plain PyTorch."""
    module = Tiny()
    return torch.cat([g.flatten() for g in torch.autograd.grad(module.loss(x, y), list(module.parameters()))])


def clip(g: Tensor, bound: float = C) -> Tensor:
    return g * min(1.0, bound / float(g.norm()))


def owner_of(x: Tensor, jitter: float = 0.0) -> list[int]:
    points = dataset(len(OWNERS)).tensors[0]
    return [OWNERS[int((points - row).norm(dim=1).argmin())] for row in x]


def exact(**arguments: Any) -> DPStrategy:
    arguments = {"noise_multiplier": 0, "max_grad_norm": C, "seed": 7, "self_check": False, **arguments}
    return strategy(**arguments)


# --- the gradient -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("module", [Kept, Summed])
@pytest.mark.parametrize("physical", [None, 1, 5])
@pytest.mark.parametrize("m", [None, 1, 3])
def test_each_patient_is_clipped_as_a_whole(module: type[Kept], physical: int | None, m: int | None) -> None:
    """Four patients a step on average, against a loop over the patients of each step."""
    run = module()
    plugin = exact(
        unit="patient",
        max_rows_per_unit=m,
        physical_batch_size=physical,
        loss_reduction="sum" if module is Summed else "mean",
    )
    fit(run, plugin, data(Scans(), 4))
    assert len(run.gradients) == plugin.ledger.steps == 6  # ten patients, four a step, two epochs
    sampler, rows = PoissonSampler(10, 4, key_from_seed(7)), UnitRows(np.array(OWNERS), key_from_seed(7), max_rows=m)
    x, y = dataset(len(OWNERS)).tensors
    for step, got in enumerate(run.gradients):
        chosen = [list(mine) for mine in rows.choose(sampler.draw(step), step)]
        wanted = sum((clip(gradient(x[mine], y[mine])) for mine in chosen), torch.zeros_like(got)) / 4
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    if physical:
        for batch in run.batches:
            assert len(batch[1]) <= physical or len(set(owner_of(batch[0]))) == 1


@pytest.mark.parametrize("m", [None, 2])
def test_a_whole_patient_changes_the_sum_by_at_most_c(m: int | None) -> None:
    """Everybody in every step, with the ninth patient and without: the difference is that patient's clipped gradient."""
    sums = []
    for owners in (OWNERS, [owner for owner in OWNERS if owner != 9]):
        run = Kept()
        fit(run, exact(unit="patient", max_rows_per_unit=m), data(Scans(owners)), max_epochs=3)
        sums.append([g * len(set(owners)) for g in run.gradients])
    for with_it, without in zip(*sums, strict=True):
        assert 0.5 * C < float((with_it - without).norm()) <= C * (1 + 1e-4)
    if m is None:
        x, y = Scans().points.tensors
        mine = torch.tensor([owner == 9 for owner in OWNERS])
        torch.testing.assert_close(sums[0][0] - sums[1][0], clip(gradient(x[mine], y[mine])), rtol=1e-3, atol=1e-5)


def test_one_draw_with_and_without_a_patient_on_every_rank_and_split() -> None:
    """The same draw of the same key, one patient taken out of it: clipped sums differ by at most C, however huge."""
    x, y = dataset(len(OWNERS)).tensors
    x = x.clone()
    x[torch.tensor(OWNERS) == 4] *= 1e4
    rows, sampler = UnitRows(np.array(OWNERS), key_from_seed(3), max_rows=3), PoissonSampler(10, 6, key_from_seed(3))
    module = network()

    def clipped(units: np.ndarray, step: int, world_size: int, physical: int | None) -> Tensor:
        total = torch.zeros(sum(p.numel() for p in module.parameters()))
        for rank in range(world_size):
            share = split_units(
                rows.choose(units, step), rank=rank, world_size=world_size, physical_batch_size=physical
            )
            with GradientEngine(module, Clipping(C), noise_multiplier=0.0, expected_batch_size=1) as engine:
                for number, (chunk, real) in enumerate(zip(share.chunks, share.real, strict=True)):
                    assert share.rows is not None
                    owners = unit_map(len(chunk), 1, share.rows[number])
                    weights = None if real else torch.zeros(owners.num_units)
                    engine.backward(F.cross_entropy(module(x[list(chunk)]), y[list(chunk)]), owners, weights)
                total += torch.cat([g.flatten() for g in engine.clipped_sum()])
        return total

    seen = 0
    for step in range(12):
        drawn = sampler.draw(step)
        for unit in drawn:
            rest = drawn[drawn != unit]
            for world_size, physical in ((1, None), (1, 4), (2, 2)):
                change = clipped(drawn, step, world_size, physical) - clipped(rest, step, world_size, None)
                assert float(change.norm()) <= C * (1 + 1e-3)
                seen += unit == 4
    assert seen > 0


@pytest.mark.parametrize("sampling", ["poisson", "shuffle", "balls_in_bins"])
def test_samples_that_are_their_own_patients_train_as_without_units(sampling: Any) -> None:
    results = []
    for unit in (None, list(range(len(OWNERS)))):
        module = Tiny()
        plugin = exact(unit=unit, sampling=sampling, physical_batch_size=3)
        fit(module, plugin, data(Scans(), 8))
        results.append((flat(module), plugin.ledger.entries, plugin.settings().sample_rate))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


@pytest.mark.parametrize("sampling", ["shuffle", "balls_in_bins"])
def test_a_pass_takes_every_patient_once(sampling: Any) -> None:
    run = Kept()
    plugin = exact(unit="patient", sampling=sampling)
    fit(run, plugin, data(Scans(), 4), max_epochs=1)
    owners = [owner_of(x) for x, _ in run.batches]
    assert sorted(o for step in owners for o in set(step)) == list(range(10))
    assert sorted(o for step in owners for o in step) == sorted(OWNERS)
    assert plugin.ledger.steps == 1


# --- augmentations ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("module", [Kept, Summed])
@pytest.mark.parametrize("physical", [None, 7])
def test_augmentations_are_averaged_before_clipping(module: type[Kept], physical: int | None) -> None:
    """The transform runs K times for each drawn sample; the clipped gradient is that of the mean over them."""
    run, scans, k = module(), Scans(jitter=0.1), 3
    plugin = exact(
        augmentation_multiplicity=k,
        physical_batch_size=physical,
        loss_reduction="sum" if module is Summed else "mean",
    )
    fit(run, plugin, data(scans, 32), max_epochs=1)  # everybody in the one step
    assert scans.asked == [i for i in range(32) for _ in range(k)]
    x, y = (torch.cat(parts) for parts in zip(*run.batches, strict=True))
    assert len({tuple(row.tolist()) for row in x}) == 32 * k
    assert physical is None or max(len(batch[1]) for batch in run.batches) == 6  # two samples, never a half
    wanted = sum(clip(gradient(x[i * k : i * k + k], y[i * k : i * k + k])) for i in range(32)) / 32
    torch.testing.assert_close(run.gradients[0], wanted, rtol=1e-4, atol=1e-6)
    assert plugin.settings().expected_batch_size == plugin.settings().dataset_size == 32  # copies cost no privacy


def test_augmentations_of_a_patients_images() -> None:
    run, scans, k = Kept(), Scans(jitter=0.01), 2
    fit(run, exact(unit="patient", max_rows_per_unit=2, augmentation_multiplicity=k), data(scans), max_epochs=1)
    ((x, y),) = run.batches
    owners = owner_of(x)
    assert [owners.count(o) for o in range(10)] == [min(OWNERS.count(o), 2) * k for o in range(10)]
    mine = [torch.tensor([i for i, owner in enumerate(owners) if owner == o]) for o in range(10)]
    wanted = sum(clip(gradient(x[m], y[m])) for m in mine) / 10
    torch.testing.assert_close(run.gradients[0], wanted, rtol=1e-4, atol=1e-6)


def test_copies_that_are_all_alike_change_nothing() -> None:
    results = []
    for k in (1, 4):
        module = Tiny()
        fit(module, exact(augmentation_multiplicity=k), data(Scans(), 8))
        results.append(flat(module))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


# --- what is reported -------------------------------------------------------------------------------------------------
def test_the_ledger_and_every_report_count_patients() -> None:
    plugin = strategy(unit="patient", max_rows_per_unit=2)
    run = fit(Tiny(), plugin, data(Scans(), 4), max_epochs=3)
    settings, spent = plugin.settings(), plugin.privacy_spent()
    assert (settings.dataset_size, settings.expected_batch_size, settings.sample_rate) == (10, 4, 0.4)
    assert settings.delta == spent.delta == 1 / 100
    assert settings.unit == spent.unit == "patient"
    assert run.global_step == run.num_training_batches * 3 == 9
    entries = [LedgerEntry(GaussianEvent(1.0, 0.4), 9)]
    assert list(spent.entries) == entries
    assert spent.eps == get_accountant("pld").epsilon(entries, 1 / 100)
    assert "add or remove one unit (patient)" in str(spent)
    assert "of 10 units (patient)" in announcement(settings, 1, 9)
    assert "units (patient)" in summary_text(spent, settings, [])


def test_without_units_reports_say_what_they_always_did() -> None:
    plugin = strategy()
    fit(Tiny(), plugin, data(Scans(), 8))
    settings = plugin.settings()
    assert settings.unit == plugin.privacy_spent().unit == "sample"
    assert "of 32 samples" in announcement(settings, 1, 9)
    assert "add or remove one;" in str(plugin.privacy_spent())


def test_ids_stay_out_of_checkpoints_and_messages(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scans = Scans()
    plugin = strategy(unit=scans.patient)
    saver = ModelCheckpoint(dirpath=tmp_path, filename="c")
    run = fit(Tiny(), plugin, data(scans, 4), callbacks=[saver, PrivacyAccountant()], enable_checkpointing=True)
    content = (tmp_path / "c.ckpt").read_bytes()
    out, err = capfd.readouterr()
    assert b"patient-" not in content
    assert "patient-" not in out + err + repr(plugin.settings()) + str(plugin.privacy_spent())
    state = torch.load(tmp_path / "c.ckpt", weights_only=True)[CHECKPOINT_KEY]
    assert state["budget"]["unit"] == "given id"
    assert sorted(state["budget"]) == ["accountant", "delta", "eps", "ledger", "noise_multiplier", "risk", "unit"]
    assert run.strategy is plugin


def test_more_patients_a_step_than_there_are_is_said() -> None:
    with pytest.warns(PrivacyWarning, match=r"batch size 16 exceeds the 10 training units \(patient\)"):
        fit(Tiny(), exact(unit="patient"), data(Scans(), 16))


# --- resume -----------------------------------------------------------------------------------------------------------
def saved(tmp_path: Path, **arguments: Any) -> Path:
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit(Tiny(), strategy(**arguments), data(Scans(), 4), callbacks=[saver], enable_checkpointing=True)
    return tmp_path / "step=4.ckpt"


QUIET = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]


def quiet(test: Any) -> Any:
    for mark in QUIET:
        test = mark(test)
    return test


@quiet
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "noise_multiplier": 0, "seed": 7, "unit": "patient", "max_rows_per_unit": 2, "physical_batch_size": 3,
    }  # fmt: skip
    path = saved(tmp_path, **arguments)
    whole, resumed = Tiny(), Tiny()
    first, second = strategy(**arguments), strategy(**arguments)
    fit(whole, first, data(Scans(), 4))
    fit(resumed, second, data(Scans(), 4), ckpt_path=path)
    assert torch.equal(flat(whole), flat(resumed))
    assert first.ledger.entries == second.ledger.entries
    assert second.ledger.steps == 6


@quiet
@pytest.mark.parametrize(("before", "after"), [(None, "patient"), ("patient", None), (OWNERS, "patient")], ids=str)
def test_spending_on_other_units_is_not_added_up(before: Any, after: Any, tmp_path: Path) -> None:
    path = saved(tmp_path, unit=before)
    plugin = strategy(unit=after)
    with pytest.raises(PrivacyError, match="do not add up"):
        fit(Tiny(), plugin, data(Scans(), 4), ckpt_path=path)
    assert plugin.ledger.steps == 0


@quiet
def test_checkpoints_from_before_units_had_names_are_of_samples(tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = torch.load(path, weights_only=True)
    del content[CHECKPOINT_KEY]["budget"]["unit"]
    torch.save(content, path)
    plugin = strategy()
    fit(Tiny(), plugin, data(Scans(), 4), ckpt_path=path)
    assert plugin.ledger.steps == 16
    with pytest.raises(PrivacyError, match="do not add up"):
        fit(Tiny(), strategy(unit="patient"), data(Scans(), 4), ckpt_path=path)


# --- self-check and refusals ------------------------------------------------------------------------------------------
class Centred(Tiny):
    """Couples the samples of a batch, and so the patients."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return super().loss(x - x.mean(0), y)


class MeanOfSums(Tiny):
    """A sum over samples, called a mean."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self(x), y, reduction="sum")


UNITS: list[dict[str, Any]] = [
    {"unit": "patient"},
    {"unit": "patient", "max_rows_per_unit": 2, "augmentation_multiplicity": 2},
    {"unit": "patient", "max_rows_per_unit": 1},
    {"augmentation_multiplicity": 4},
]


@pytest.mark.parametrize("units", UNITS, ids=str)
def test_ordinary_modules_pass_the_self_check(units: dict[str, Any]) -> None:
    dropout = nn.Sequential(nn.Dropout(0.3), network())
    for module, reduction in ((Tiny(), "mean"), (MeanOfSums(), "sum"), (Tiny(net=dropout), "mean")):
        fit(module, strategy(loss_reduction=reduction, **units), data(Scans(), 4), max_epochs=1)


@pytest.mark.parametrize("units", UNITS, ids=str)
def test_the_self_check_knows_units(units: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError, match="couples the samples"):
        fit(Centred(), strategy(**units), data(Scans(), 4))
    with pytest.raises(PrivacyError, match="loss_reduction='sum'"):
        fit(MeanOfSums(), strategy(**units), data(Scans(), 4))
    with pytest.raises(PrivacyError, match="loss_reduction='mean'"):
        fit(Tiny(), strategy(loss_reduction="sum", **units), data(Scans(), 4))


class Normed(Tiny):
    """Normalises over all rows of a patient's chunk: allowed within a patient, not across."""

    def __init__(self) -> None:
        super().__init__(net=nn.Sequential(nn.Linear(FEATURES, 8), nn.GroupNorm(2, 8), nn.Linear(8, CLASSES)))


def test_norms_over_channels_pass() -> None:
    fit(Normed(), strategy(unit="patient"), data(Scans(), 4), max_epochs=1)


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        (OWNERS[:-1], "one id for each of the 32 training samples"),
        ([None, *OWNERS[1:]], "none may be missing"),
        ("person", "no attribute 'person'"),
        (lambda data: data, "whole numbers"),
    ],
    ids=["too few", "missing", "unknown name", "no ids"],
)
def test_ids_that_do_not_fit_are_refused_before_training(unit: Any, words: str) -> None:
    module, plugin = Tiny(), strategy(unit=unit)
    with pytest.raises(PrivacyConfigError, match=words):
        fit(module, plugin, data(Scans(), 4))
    assert module.calls == plugin.ledger.steps == 0


def test_ids_of_the_whole_data_set_for_a_part_of_it_are_refused() -> None:
    part = Subset(Scans(), list(range(20)))
    with pytest.raises(PrivacyConfigError, match="through Subset"):
        fit(Tiny(), strategy(unit=OWNERS), data(part, 4))
    plugin = strategy(unit="patient")
    fit(Tiny(), plugin, data(part, 4))
    assert plugin.settings().dataset_size == len(set(OWNERS[:20]))


@pytest.mark.parametrize(
    "arguments",
    [{"max_rows_per_unit": 2}, {"unit": "patient", "max_rows_per_unit": 0}, {"augmentation_multiplicity": 0}],
    ids=str,
)
def test_impossible_settings_are_refused_at_once(arguments: dict[str, Any]) -> None:
    with pytest.raises(PrivacyConfigError):
        DPStrategy(eps=8, **arguments)
