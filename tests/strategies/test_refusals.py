"""Every refusal: the offending set-up is refused by name, with the way out, before anything private happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch import callbacks as cb
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_dp import BAMStrategy, DPStrategy, LangevinStrategy, PrivacyConfigError
from lightning_dp.sampling import why_not_private
from lightning_dp.strategies import REFUSALS, Refusal
from lightning_dp.strategies.refusals import Subject
from tests.strategies.helpers import CLASSES, FEATURES, Tiny, dataset, flat, loader, network, strategy, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning"),
    pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated:FutureWarning"),
    # Lightning says these before a strategy is asked.
    pytest.mark.filterwarnings("ignore:.*dataloader_iter:UserWarning"),
    pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`:UserWarning"),
]


USUAL = strategy


@dataclass(frozen=True)
class Case:
    """An offending set-up and two words its refusal must contain: the offence, and what to use instead."""

    offence: str
    instead: str
    module: Callable[[], LightningModule] = Tiny
    data: Callable[[], Any] = loader
    strategy: dict[str, Any] = field(default_factory=dict)
    trainer: Callable[[], dict[str, Any]] = dict
    plugin: Callable[..., Any] = USUAL


def through(layer: Callable[[], nn.Module]) -> Callable[[], LightningModule]:
    return lambda: Tiny(net=nn.Sequential(nn.Linear(FEATURES, 8), layer(), nn.Linear(8, CLASSES)))


def beside(layer: Callable[[], nn.Module], **settings: Any) -> Callable[[], LightningModule]:
    """A module that owns a further layer, whether it is called or not."""

    def make() -> LightningModule:
        module = Tiny()
        module.extra = layer()
        for name, value in settings.items():
            setattr(module, name, value)
        return module

    return make


def frozen() -> LightningModule:
    module = Tiny()
    module.requires_grad_(False)
    return module


def complex_weight() -> LightningModule:
    module = Tiny()
    module.phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    return module


class Iterating(Tiny):
    def training_step(self, dataloader_iter: Iterator[Any]) -> Any:
        batch, _, _ = next(dataloader_iter)
        return super().training_step(batch, 0)


class TwoOptimizers(Tiny):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[0].parameters(), 0.1), torch.optim.SGD(self.net[2].parameters(), 0.1)]


class SharedParameters(Tiny):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.SGD(self.net[0].parameters(), 0.1)]


class HalfHeld(Tiny):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net[0].parameters(), 0.1)


def manual(kind: Callable[[], Tiny] = Tiny) -> LightningModule:
    module = kind()
    module.automatic_optimization = False
    return module


class NoOptimizer(Tiny):
    def configure_optimizers(self) -> Any:
        return None


class Plateau(Tiny):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "train_loss"}}


class Warming(Tiny):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 3))]


class Thawing(cb.BaseFinetuning):
    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        return None


def foreign(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD([*parameters, nn.Parameter(torch.zeros(2))], 0.1)


def langevin(**arguments: Any) -> LangevinStrategy:
    if "eps" not in arguments:
        arguments.setdefault("noise_multiplier", 1.0)
    return LangevinStrategy(**arguments)


def nesterov(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(parameters, 0.1)
    optimizer.param_groups[0]["nesterov"] = True
    return optimizer


def halves(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": parameters[:2], "lr": 0.2}, {"params": parameters[2:]}], 0.1)


class Decaying(Tiny):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def lightning_callbacks(*made: Callable[[], cb.Callback]) -> Callable[[], dict[str, Any]]:
    return lambda: {"callbacks": [make() for make in made], "enable_checkpointing": True}


def having(**arguments: Any) -> Callable[[], dict[str, Any]]:
    return lambda: dict(arguments)


def loss_scaler() -> dict[str, Any]:
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))]}


ROWS: list[tuple[str, Case]] = [
    (
        "accumulate_grad_batches",
        Case("accumulate_grad_batches=2", "physical_batch_size", trainer=having(accumulate_grad_batches=2)),
    ),
    (
        "gradient_accumulation_scheduler",
        Case(
            "GradientAccumulationScheduler",
            "physical_batch_size",
            trainer=lightning_callbacks(lambda: cb.GradientAccumulationScheduler({1: 2})),
        ),
    ),
    ("gradient_clip_val", Case("gradient_clip_val=0.5", "max_grad_norm", trainer=having(gradient_clip_val=0.5))),
    ("half_precision", Case("bf16-true", "bf16-mixed", trainer=having(precision="bf16-true"))),
    ("half_precision", Case("16-true", "bf16-mixed", trainer=having(precision="16-true"))),
    ("half_precision", Case("16-mixed", "bf16-mixed", trainer=loss_scaler)),
    ("sync_batchnorm", Case("sync_batchnorm=True", "GroupNorm", trainer=having(sync_batchnorm=True))),
    ("overfit_batches", Case("overfit_batches", "without", trainer=having(overfit_batches=2))),
    ("tuner", Case("LearningRateFinder", "public data", trainer=lightning_callbacks(cb.LearningRateFinder))),
    ("tuner", Case("BatchSizeFinder", "public data", trainer=lightning_callbacks(cb.BatchSizeFinder))),
    (
        "stochastic_weight_averaging",
        Case(
            "StochasticWeightAveraging",
            "EMAWeightAveraging",
            trainer=lightning_callbacks(lambda: cb.StochasticWeightAveraging(swa_lrs=0.1)),
        ),
    ),
    (
        "training_monitors",
        Case("train_loss", "val_", trainer=lightning_callbacks(lambda: cb.ModelCheckpoint(monitor="train_loss"))),
    ),
    (
        "training_monitors",
        Case("train/acc", "val_", trainer=lightning_callbacks(lambda: cb.EarlyStopping(monitor="train/acc"))),
    ),
    (
        "unbounded_training",
        Case("planned number of steps", "max_epochs", strategy={"eps": 8}, trainer=having(max_epochs=-1)),
    ),
    (
        "unbounded_training",
        Case(
            "planned number of steps",
            "max_steps",
            strategy={"eps": 8},
            trainer=having(max_epochs=None, max_time="00:00:01:00"),
        ),
    ),
    (
        "manual_physical_batches",
        Case(
            "physical_batch_size",
            "physical_batch_size=None and a smaller batch",
            manual,
            strategy={"physical_batch_size": 4},
        ),
    ),
    (
        "manual_ascent",
        Case("BAMStrategy", "automatic optimisation", manual, strategy={"noise_multiplier": 1.0}, plugin=BAMStrategy),
    ),
    ("post_processing_names", Case("automatic_optimization=False", "drop", strategy={"post_processing": ["net.0"]})),
    (
        "post_processing_names",
        Case("generator", "named_parameters", manual, strategy={"post_processing": ["generator"]}),
    ),
    (
        "post_processing_beside_private",
        Case("one optimizer holds", "optimizer of its own", manual, strategy={"post_processing": ["net.0"]}),
    ),
    (
        "post_processing_beside_private",
        Case("covers every optimizer", "ordinary strategy", manual, strategy={"post_processing": ["net"]}),
    ),
    ("shared_parameters", Case("net.0.weight", "to one", lambda: manual(SharedParameters))),
    ("parameters_without_optimizer", Case("net.2.weight", "requires_grad_(False)", lambda: manual(HalfHeld))),
    (
        "adaptive_with_several_optimizers",
        Case("2 private optimizers", "automatic", lambda: manual(TwoOptimizers), strategy={"clipping": "adaptive"}),
    ),
    ("dataloader_iterator", Case("dataloader_iter", "batch, batch_idx", Iterating)),
    ("no_trainable_parameters", Case("no trainable parameters", "Unfreeze", frozen)),
    ("lazy_parameters", Case("net.1", "configure_model", through(lambda: nn.LazyLinear(8)))),
    ("batch_norm", Case("net.1 (BatchNorm1d)", "GroupNorm", through(lambda: nn.BatchNorm1d(8)))),
    ("batch_norm", Case("extra (BatchNorm2d)", "GroupNorm", beside(lambda: nn.BatchNorm2d(8)))),
    ("batch_norm", Case("extra (SyncBatchNorm)", "GroupNorm", beside(lambda: nn.SyncBatchNorm(8)))),
    (
        "running_instance_norm",
        Case(
            "extra (InstanceNorm1d)",
            "track_running_stats=False",
            beside(lambda: nn.InstanceNorm1d(8, track_running_stats=True)),
        ),
    ),
    (
        "complex_ascent",
        Case("phase", "DPStrategy", complex_weight, strategy={"noise_multiplier": 1.0}, plugin=BAMStrategy),
    ),
    ("low_precision_parameters", Case("extra.weight", "bf16-mixed", beside(lambda: nn.Linear(2, 2).bfloat16()))),
    ("embedding_max_norm", Case("extra", "max_norm=None", beside(lambda: nn.Embedding(4, 2, max_norm=1.0)))),
    (
        "embedding_frequency",
        Case("extra", "scale_grad_by_freq=False", beside(lambda: nn.Embedding(4, 2, scale_grad_by_freq=True))),
    ),
    ("sparse_embedding", Case("extra", "sparse=False", beside(lambda: nn.EmbeddingBag(4, 2, sparse=True)))),
    (
        "spectral_norm",
        Case(
            "net.1",
            "remove_parametrizations",
            through(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))),
        ),
    ),
    ("spectral_norm", Case("net.1", "remove", through(lambda: nn.utils.spectral_norm(nn.Linear(8, 8))))),
    ("wrapped_modules", Case("net (DataParallel)", "Trainer(devices", lambda: Tiny(net=nn.DataParallel(network())))),
    ("several_optimizers", Case("0 optimizers", "one optimizer", NoOptimizer)),
    (
        "closure_optimizers",
        Case("LBFGS", "SGD or Adam", lambda: Tiny(optimizer=lambda p: torch.optim.LBFGS(p))),
    ),
    ("foreign_parameters", Case("1 parameters", "attribute of the module", lambda: Tiny(optimizer=foreign))),
    (
        "scheduler_of_fixed_groups",
        Case(
            "LambdaLR has one",
            "CosineAnnealingLR",
            Warming,
            trainer=lambda: {"callbacks": [Thawing()]},
        ),
    ),
    ("scheduler_monitors", Case("train_loss", "val_", Plateau)),
    (
        "langevin_finetuning",
        Case(
            "BackboneFinetuning changes",
            "DPStrategy",
            trainer=lambda: {"callbacks": [cb.BackboneFinetuning()]},
            plugin=langevin,
        ),
    ),
    ("langevin_manual_optimization", Case("automatic_optimization=False", "DPStrategy", manual, plugin=langevin)),
    ("langevin_optimizer", Case("momentum=0.9", "without momentum", lambda: Tiny(momentum=0.9), plugin=langevin)),
    ("langevin_optimizer", Case("nesterov=True", "torch.optim.SGD", lambda: Tiny(optimizer=nesterov), plugin=langevin)),
    ("langevin_optimizer", Case("Adam", "torch.optim.SGD", lambda: Tiny(optimizer=torch.optim.Adam), plugin=langevin)),
    (
        "langevin_parameter_groups",
        Case("(0.1, 0.2)", "one learning rate", lambda: Tiny(optimizer=halves), plugin=langevin),
    ),
    (
        "langevin_schedulers",
        Case("scheduler moves it", "Remove", Decaying, strategy={"eps": 3.0, "temperature": 0.1}, plugin=langevin),
    ),
    (
        "langevin_schedulers",
        Case("learning_rate", "neither", Decaying, strategy={"learning_rate": 0.1}, plugin=langevin),
    ),
]


# --- the training loader ----------------------------------------------------------------------------------------------
class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(dataset())


class Unsized:
    def __getitem__(self, index: int) -> Any:
        return dataset()[index]


class EverySecond(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(0, 64, 2))

    def __len__(self) -> int:
        return 32


class OwnIterator(DataLoader[Any]):
    def __iter__(self) -> Any:
        return iter([])


class OwnBatches(BatchSampler):
    pass


def over(data: Any = None, **arguments: Any) -> Callable[[], Any]:
    return lambda: DataLoader(dataset() if data is None else data, **{"batch_size": 16, **arguments})


LOADERS: list[Case] = [
    Case("not a torch DataLoader", "map-style", data=lambda: [torch.zeros(2)]),
    Case("OwnIterator", "collate_fn", data=lambda: OwnIterator(dataset(), batch_size=16)),
    Case("IterableDataset", "__getitem__", data=over(Stream())),
    Case("no length", "__len__", data=over(Unsized(), sampler=range(8))),
    Case("is empty", "Check the path", data=over([])),
    Case(
        "custom batch_sampler (OwnBatches)",
        "batch_size",
        data=lambda: DataLoader(dataset(), batch_sampler=OwnBatches(SequentialSampler(dataset()), 16, False)),
    ),
    Case("batch_size=None", "batch_size", data=over(batch_size=None)),
    Case("WeightedRandomSampler", "loss", data=over(sampler=WeightedRandomSampler([1.0] * 64, 64))),
    Case("SubsetRandomSampler", "Subset(dataset, indices)", data=over(sampler=SubsetRandomSampler(range(32)))),
    Case("with replacement", "shuffle=True", data=over(sampler=RandomSampler(dataset(), replacement=True))),
    Case("custom sampler (EverySecond)", "Subset", data=over(sampler=EverySecond())),
    Case("covers 8 samples", "Subset", data=over(sampler=RandomSampler(dataset(), num_samples=8))),
    Case("several training loaders", "ConcatDataset", data=lambda: {"a": loader(), "b": loader()}),
]

CASES = [pytest.param(case, id=f"{name}-{i}") for i, (name, case) in enumerate(ROWS)]
CASES += [pytest.param(case, id=f"loader-{case.offence.replace(' ', '_')}") for case in LOADERS]


@pytest.mark.parametrize("case", CASES)
def test_is_refused_before_anything_happens(case: Case, tmp_path: Path) -> None:
    module, plugin = case.module(), case.plugin(**case.strategy)
    before = [p if isinstance(p, nn.UninitializedParameter) else p.detach().clone() for p in module.parameters()]
    run = trainer(plugin, **case.trainer())
    with pytest.raises(PrivacyConfigError) as refusal:
        run.fit(module, case.data())
    assert case.offence in str(refusal.value)
    assert case.instead in str(refusal.value)
    assert module.calls == 0
    for parameter, old in zip(module.parameters(), before, strict=True):
        assert parameter is old or torch.equal(parameter, old)
    assert plugin.ledger.steps == 0
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_every_row_of_the_table_has_a_case() -> None:
    assert {name for name, _ in ROWS} == {row.name for row in REFUSALS}
    assert len({row.name for row in REFUSALS}) == len(REFUSALS)


def test_there_are_many_reasons() -> None:
    assert len(REFUSALS) + len(LOADERS) >= 40


@pytest.mark.parametrize("row", [row for row in REFUSALS if row.phase != "optimizers"], ids=lambda row: row.name)
def test_no_row_hides_behind_another(row: Refusal) -> None:
    """Each row alone refuses a case of its own, and finds nothing wrong with an ordinary run."""
    messages = []
    for name, case in ROWS:
        if name == row.name:
            plugin = case.plugin(**case.strategy)
            subject = Subject(
                trainer(plugin, **case.trainer()),
                case.module(),
                (),
                "eps" in case.strategy,
                splits="physical_batch_size" in case.strategy,
                post_processing=tuple(case.strategy.get("post_processing", ())),
                ascends=case.plugin is BAMStrategy,
                langevin=case.plugin is langevin,
            )
            messages.append(row.check(subject))
    assert any(messages)
    module, plugin = Tiny(), strategy()
    assert row.check(Subject(trainer(plugin), module, (module.configure_optimizers(),))) is None


def test_two_optimizers_are_refused() -> None:
    """By Lightning itself, before the table is asked."""
    module, plugin = TwoOptimizers(), strategy()
    with pytest.raises(RuntimeError, match="multiple optimizers"):
        trainer(plugin).fit(module, loader())
    assert module.calls == plugin.ledger.steps == 0


def test_all_offences_are_named_at_once() -> None:
    run = trainer(strategy(), accumulate_grad_batches=4, gradient_clip_val=1.0)
    with pytest.raises(PrivacyConfigError, match=r"(?s)accumulate_grad_batches=4.*gradient_clip_val=1.0"):
        run.fit(Tiny(), loader())


@pytest.mark.parametrize("method", ["lr_find", "scale_batch_size"])
def test_the_tuner_is_refused(method: str) -> None:
    module, plugin = Tiny(), strategy()
    module.batch_size = 16
    before = flat(module)
    tuner = Tuner(trainer(plugin))
    with pytest.raises(PrivacyConfigError, match="Tuner"):
        getattr(tuner, method)(module, loader())
    assert torch.equal(flat(module), before)
    assert plugin.ledger.steps == 0


def test_refusals_are_about_training_only() -> None:
    """A network that cannot be trained privately can still be evaluated under the strategy."""
    module, held_out = through(lambda: nn.BatchNorm1d(8))(), validated()[1]
    run = trainer(strategy(), accumulate_grad_batches=2)
    assert run.validate(module, held_out, verbose=False)
    assert run.test(module, held_out, verbose=False)
    assert run.predict(module, held_out)


# --- what must not be refused -----------------------------------------------------------------------------------------
class OneCycle(Tiny):
    """Asks for the number of steps before there is an optimizer."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class ParameterGroups(Tiny):
    def configure_optimizers(self) -> Any:
        groups = [{"params": self.net[0].parameters(), "lr": 0.01}, {"params": self.net[2].parameters()}]
        return torch.optim.AdamW(groups, lr=0.1, weight_decay=0.01)


class ValidationPlateau(Tiny):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class OwnLoader(Tiny):
    def train_dataloader(self) -> Any:
        return loader()

    def val_dataloader(self) -> Any:
        return DataLoader(dataset(32, seed=5), batch_size=16)


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader()

    def val_dataloader(self) -> Any:
        return DataLoader(dataset(32, seed=5), batch_size=16)


class FrozenFirst(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)


def validated() -> tuple[Any, Any]:
    return loader(), DataLoader(dataset(32, seed=5), batch_size=16)


ACCEPTED: dict[str, tuple[Callable[[], LightningModule], dict[str, Any]]] = {
    "weight_averaging": (Tiny, {"callbacks": cb.WeightAveraging}),
    "ema_weight_averaging": (Tiny, {"callbacks": cb.EMAWeightAveraging}),
    "checkpoint_on_validation": (
        Tiny,
        {"callbacks": lambda: cb.ModelCheckpoint(monitor="val_loss"), "enable_checkpointing": True},
    ),
    "early_stopping_on_validation": (Tiny, {"callbacks": lambda: cb.EarlyStopping("val_loss")}),
    "monitor_named_like_training": (
        Tiny,
        {"callbacks": lambda: cb.EarlyStopping("trainee_score", strict=False, check_on_train_epoch_end=False)},
    ),
    "device_stats": (Tiny, {"callbacks": cb.DeviceStatsMonitor, "logger": True}),
    "learning_rate_monitor": (OneCycle, {"callbacks": cb.LearningRateMonitor, "logger": True}),
    "timer": (Tiny, {"callbacks": cb.Timer}),
    "detect_anomaly": (Tiny, {"detect_anomaly": True}),
    "profiler": (Tiny, {"profiler": "simple"}),
    "val_check_interval": (Tiny, {"val_check_interval": 2}),
    "limit_train_batches": (Tiny, {"limit_train_batches": 3}),
    "limit_train_batches_fraction": (Tiny, {"limit_train_batches": 0.5}),
    "reload_dataloaders": (OwnLoader, {"reload_dataloaders_every_n_epochs": 1}),
    "fast_dev_run": (Tiny, {"fast_dev_run": 2}),
    "bf16": (Tiny, {"precision": "bf16-mixed"}),
    "double": (Tiny, {"precision": "64-true"}),
    "summary": (Tiny, {"enable_model_summary": True}),
    "adam": (lambda: Tiny(optimizer=lambda p: torch.optim.Adam(p, 0.01)), {}),
    "nesterov": (lambda: Tiny(optimizer=lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True)), {}),
    "adamw_groups": (ParameterGroups, {}),
    "plateau_on_validation": (ValidationPlateau, {}),
    "one_cycle": (OneCycle, {}),
    "own_loader": (OwnLoader, {}),
    "frozen_part": (FrozenFirst, {}),
}


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("name", ACCEPTED)
def test_is_accepted(name: str) -> None:
    make, arguments = ACCEPTED[name]
    arguments = dict(arguments)
    if callback := arguments.pop("callbacks", None):
        arguments["callbacks"] = [callback()]
    module, plugin = make(), strategy()
    before = flat(module)
    run = trainer(plugin, **arguments)
    run.fit(module) if isinstance(module, OwnLoader) else run.fit(module, *validated())
    assert run.global_step == plugin.ledger.steps > 0
    assert not torch.equal(flat(module).float(), before)


def test_a_datamodule_is_accepted() -> None:
    module, plugin = Tiny(), strategy(eps=8)
    run = trainer(plugin)
    run.fit(module, datamodule=Data())
    assert run.global_step == plugin.ledger.steps == 8


@pytest.mark.parametrize(
    "case", [c for c in LOADERS if c.offence != "several training loaders"], ids=lambda c: c.offence
)
def test_the_sampler_package_gives_the_reason(case: Case) -> None:
    reason = why_not_private(case.data())
    assert reason is not None
    assert case.offence in reason


def test_evaluation_loaders_may_be_anything() -> None:
    run = trainer(strategy())
    run.fit(Tiny(), loader(), DataLoader(Stream(), batch_size=16))
    assert run.validate(run.lightning_module, DataLoader(Stream(), batch_size=16), verbose=False)


def test_a_strategy_is_not_built_from_unknown_arguments() -> None:
    with pytest.raises(TypeError):
        DPStrategy(eps=1, find_unused_parameters=True)  # type: ignore[call-arg]
