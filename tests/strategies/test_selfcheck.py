"""The self-check knows behaviour, not names: what couples samples or leaks is stopped, ordinary networks pass."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_dp import PrivacyConfigError, PrivacyError
from tests.strategies.helpers import CLASSES, FEATURES, Tiny, dataset, fit, flat, hooks, loader, network, strategy

pytestmark = pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")


# --- what must be stopped ---------------------------------------------------------------------------------------------
class Centred(nn.Module):
    """Batch normalisation under another name."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if self.training else x


class CentredAlways(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.std(0, unbiased=False) + 0.1)


class Running(nn.Module):
    """Statistics of the data in a buffer: released with the checkpoint, without noise."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 0.1 * (x.detach().mean(0) - self.seen)
        return x


class Prototype(nn.Module):
    """Statistics of the data in a parameter, written past the optimizer (an averaged codebook)."""

    def __init__(self) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(FEATURES), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.centre.lerp_(x.mean(0), 0.1)
        return x


class Assigned(Running):
    """The same by assignment, not in place."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen = 0.9 * self.seen + 0.1 * x.detach().mean(0)
        return x


def before(layer: Callable[[], nn.Module]) -> Callable[[], Tiny]:
    return lambda: Tiny(net=nn.Sequential(layer(), network()))


def between(layer: Callable[[], nn.Module]) -> Callable[[], Tiny]:
    return lambda: Tiny(net=nn.Sequential(nn.Linear(FEATURES, 8), layer(), nn.Linear(8, CLASSES)))


class Contrastive(Tiny):
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        z = F.normalize(self(x), dim=1)
        return F.cross_entropy(z @ F.normalize(self(x + 0.1), dim=1).T / 0.5, torch.arange(len(x)))


class ValidTokens(Tiny):
    """A mean over the valid entries of the batch: the weight of each sample depends on the others."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self(x), torch.where(x[:, 0] > 0, y, -100), ignore_index=-100)


class Balanced(Tiny):
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        weight = torch.bincount(y, minlength=CLASSES).float().add(1).reciprocal()
        return F.cross_entropy(self(x), y, weight=weight)


class BalancedSum(Tiny):
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        weight = torch.bincount(y, minlength=CLASSES).float().add(1).reciprocal()
        return F.cross_entropy(self(x), y, weight=weight, reduction="sum") / len(y)


class Standardised(Tiny):
    """Not in a layer, but in the step."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return super().loss((x - x.mean(0)) / (x.std(0, unbiased=False) + 0.1), y)


class Mixup(Tiny):
    """Each sample is mixed with its neighbour in the batch."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return super().loss(0.5 * x + 0.5 * x.roll(1, 0), y)


class Trimmed(Tiny):
    """Only the easier half of the batch counts: each sample's weight depends on the others' losses."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        losses = F.cross_entropy(self(x), y, reduction="none")
        return (losses * (losses <= losses.median())).mean()


class Summed(Tiny):
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self(x), y, reduction="sum")


class DroppedSum(Tiny):
    """A sum whose gradients cannot be compared: it is random in evaluation mode too."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.net(F.dropout(x, 0.5, training=True)), y, reduction="sum")


class Regularised(Tiny):
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return super().loss(x, y) + 0.1 * self.net[0].weight.square().sum()


class Functional(Tiny):
    """A weight used past its layer."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.net[0](x))
        return F.linear(hidden, self.net[2].weight) + F.linear(hidden, self.net[2].weight)


class Logarithm(Tiny):
    """Log of a mean: no mean of terms of one sample each, although no layer couples anything."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return super().loss(x, y).add(1).log()


class Positions(nn.Module):
    """An embedding of the positions, shared by all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(16, 8), nn.Embedding(5, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x[:, :5].abs() * 4).long().clamp(max=15)
        return self.head((self.tokens(tokens) + self.places(torch.arange(5))).mean(1))


class AttendsOverTheBatch(nn.Module):
    """Queries meet the keys of other samples, in a branch whose rows are all equal and that moves the loss very little."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(1), nn.Linear(1, 3, bias=False)
        nn.init.constant_(self.norm.bias, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x.unsqueeze(-1))).unbind(-1)
        return x + 3e-4 * (q @ k.transpose(-1, -2)).softmax(-1) @ v


class CachedInEvaluation(nn.Module):
    """Keeps what it computed from its parameter in evaluation mode, as attention biases of some vision networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.norm = nn.Parameter(torch.zeros(4)), nn.LayerNorm(8)
        self.cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.cache, bias = None, self.bias[torch.arange(8) % 4]
        else:
            self.cache = bias = self.bias[torch.arange(8) % 4] if self.cache is None else self.cache
        return self.norm(x) + bias


COUPLED = "couples|other samples|depends on how many"
STOPPED: dict[str, tuple[Callable[[], Tiny], str]] = {
    "batch_statistics_in_training": (before(Centred), COUPLED),
    "batch_statistics_always": (between(CentredAlways), COUPLED),
    "standardised_in_the_step": (Standardised, COUPLED),
    "mixup_within_the_batch": (Mixup, COUPLED),
    "contrastive_loss": (Contrastive, COUPLED),
    "mean_over_valid": (ValidTokens, COUPLED),
    "balanced_weighted_mean": (Balanced, COUPLED),
    "balanced_weights": (BalancedSum, COUPLED),
    "log_of_the_mean": (Logarithm, COUPLED),
    "trimmed_loss": (Trimmed, COUPLED),
    "attention_over_the_batch": (between(AttendsOverTheBatch), r"one sample for net\.\d\.norm\.bias changes by"),
    "sum_taken_for_a_mean": (Summed, r"returns the sum.*loss_reduction='sum'"),
    "random_sum_taken_for_a_mean": (DroppedSum, r"returns the sum.*loss_reduction='sum'"),
    "running_buffer": (before(Running), r"private data into net.0.seen"),
    "prototype": (before(Prototype), r"private data into net.0.centre"),
    "assigned_buffer": (before(Assigned), r"private data into net.0.seen"),
    "regulariser": (Regularised, r"net.0.weight.*weight_decay"),
}


@pytest.mark.parametrize("name", STOPPED)
def test_is_stopped_before_the_first_step(name: str) -> None:
    make, message = STOPPED[name]
    module, plugin = make(), strategy()
    start = flat(module)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(PrivacyError, match=f"(?s){message}"):
        fit(module, plugin)
    assert module.calls == plugin.ledger.steps == 0
    assert torch.equal(flat(module), start)
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert hooks(module) == []


def test_a_mean_taken_for_a_sum_is_stopped() -> None:
    for kind in (Tiny, DroppedAlways):
        with pytest.raises(PrivacyError, match=r"returns the mean.*loss_reduction='mean'"):
            fit(kind(), strategy(loss_reduction="sum"))


def test_a_random_sum_passes_as_a_sum() -> None:
    assert fit(DroppedSum(), strategy(loss_reduction="sum")).global_step == 8


def by_class(n: int = 64) -> DataLoader[Any]:
    """A data set sorted by class, as many are on disk."""
    x, y = dataset(n).tensors
    order = y.argsort()
    return DataLoader(TensorDataset(x[order], y[order]), batch_size=16, shuffle=True)


@pytest.mark.parametrize("kind", [Balanced, BalancedSum])
def test_a_coupling_through_the_classes_is_seen_in_sorted_data(kind: type[Tiny]) -> None:
    with pytest.raises(PrivacyError, match=COUPLED):
        fit(kind(), strategy(), by_class())


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_coupling_is_seen_in_a_tiny_data_set(n: int) -> None:
    with pytest.raises(PrivacyError):
        fit(Standardised(), strategy(), loader(n, 1))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_tiny_data_set_passes(n: int) -> None:
    assert fit(Tiny(), strategy(), loader(n, 1), max_epochs=1).global_step == n


def test_a_leak_is_stopped_without_the_self_check_as_well() -> None:
    """The engine itself refuses what came round the taps."""
    for kind in (Regularised, Functional):
        module = kind()
        start = flat(module)
        with pytest.raises(PrivacyError, match="did not pass through the layer"):
            fit(module, strategy(self_check=False))
        assert torch.equal(flat(module), start)
        assert all(p.grad is None for p in module.parameters())


# --- what must pass, untouched ----------------------------------------------------------------------------------------
class Dropped(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.dropout(x, 0.5, training=self.training))


class DroppedAlways(Tiny):
    """Monte-Carlo dropout: random in evaluation mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.dropout(x, 0.5, training=True))


class Augmented(Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return super().training_step((x + 0.3 * torch.randn_like(x), y), batch_idx)


class NumpyAugmented(Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        scale = torch.tensor(np.random.uniform(0.5, 2.0, len(x)), dtype=torch.float32)
        return super().training_step((x * scale[:, None], y), batch_idx)


class WeightedBySample(Tiny):
    """Public class weights in a mean over samples: each term depends on its own sample."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        weight = torch.tensor([1.0, 2.0, 4.0])
        return F.cross_entropy(self(x), y, weight=weight, reduction="none").mean()


class Counting(nn.Module):
    """A buffer that counts calls is no private data."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class ExpandedPositions(Positions):
    def forward(self, x: Tensor) -> Tensor:
        tokens = (x[:, :5].abs() * 4).long().clamp(max=15)
        return self.head((self.tokens(tokens) + self.places(torch.arange(5).expand(len(x), 5))).mean(1))


class FrozenStatistics(Tiny):
    """A frozen part that its owner keeps in evaluation mode."""

    def __init__(self) -> None:
        super().__init__(net=nn.Sequential(Centred(), network()))

    def on_train_start(self) -> None:
        self.net[0].eval()


PASSES: dict[str, Callable[[], Tiny]] = {
    "plain": Tiny,
    "dropout": between(lambda: nn.Dropout(0.5)),
    "functional_dropout": Dropped,
    "dropout_in_evaluation": DroppedAlways,
    "augmentation": Augmented,
    "numpy_augmentation": NumpyAugmented,
    "public_weights": WeightedBySample,
    "layer_norm": between(lambda: nn.LayerNorm(8)),
    "cached_in_evaluation": between(CachedInEvaluation),
    "group_norm": between(lambda: nn.GroupNorm(2, 8)),
    "counting_buffer": before(Counting),
    "functional_use": Functional,
    "shared_positions": lambda: Tiny(net=Positions()),
    "expanded_positions": lambda: Tiny(net=ExpandedPositions()),
    "frozen_statistics": FrozenStatistics,
    "relu_in_place": between(lambda: nn.ReLU(inplace=True)),
    "residual": between(lambda: _Residual()),
}


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("physical", [None, 4])
def test_passes(name: str, physical: int | None) -> None:
    module, plugin = PASSES[name](), strategy(physical_batch_size=physical)
    run = fit(module, plugin, max_epochs=1)
    assert run.global_step == plugin.ledger.steps == 4
    assert torch.isfinite(flat(module)).all()


@pytest.mark.parametrize("kind", [NumpyAugmented, Augmented, Dropped, DroppedAlways])
def test_random_steps_pass_whatever_the_seed(kind: type[Tiny]) -> None:
    """A false alarm would come and go with the seed: twenty of them."""
    for seed in range(20):
        torch.manual_seed(seed)
        np.random.seed(seed)
        assert fit(kind(), strategy(), max_steps=1).global_step == 1


class Shown(Tiny):
    """Everything a training step may do to the world."""

    def __init__(self) -> None:
        super().__init__()
        self.collected: list[Tensor] = []
        self.table: dict[str, float] = {}
        self.accuracy = MulticlassAccuracy(CLASSES)
        self.start: dict[str, Any] = {}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        self.collected.append(x)
        self.table["last"] = float(x.sum())
        self.accuracy(self(x), y)
        self.log("train_acc", self.accuracy, on_step=False, on_epoch=True)
        self.log("raw", x.sum())
        return super().training_step(batch, batch_idx)

    def on_train_epoch_start(self) -> None:
        self.start = {
            "collected": len(self.collected),
            "table": dict(self.table),
            "metric": self.accuracy._update_count,
            "logged": dict(self.trainer.callback_metrics),
            "mode": self.training,
        }


def test_what_the_check_computes_does_not_leave_it() -> None:
    module = Shown()
    fit(module, strategy(), max_epochs=1)
    assert module.start == {"collected": 0, "table": {}, "metric": 0, "logged": {}, "mode": True}
    assert len(module.collected) == 4


class Noisy(Dataset[Any]):
    """Draws from all three of the usual streams when a sample is loaded."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, i: int) -> Any:
        return torch.randn(FEATURES) + random.random() + np.random.rand(), i % CLASSES


class Streams(Augmented):
    def on_train_epoch_start(self) -> None:
        self.drawn = float(torch.rand(())), random.random(), float(np.random.rand())


def test_the_random_streams_go_on_as_if_there_had_been_no_check() -> None:
    drawn = []
    for checked in (True, False):
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        module = Streams()
        fit(module, strategy(self_check=checked), DataLoader(Noisy(), batch_size=8), max_steps=1)
        drawn.append(module.drawn)
    assert drawn[0] == drawn[1]


def test_the_check_changes_nothing_in_the_run() -> None:
    results = []
    for checked in (True, False):
        torch.manual_seed(3)
        module = Dropped()
        fit(module, strategy(seed=7, self_check=checked))
        results.append(flat(module))
    assert torch.equal(*results)


def test_a_module_that_cannot_be_copied_is_told_what_to_do() -> None:
    module = Tiny()
    module.lock = threading.Lock()
    with pytest.raises(PrivacyConfigError, match=r"deep copy.*self_check=False"):
        fit(module, strategy())
    assert fit(module, strategy(self_check=False)).global_step == 8


def test_a_module_may_hold_on_to_its_last_loss() -> None:
    class Holds(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.last = super().training_step(batch, batch_idx)
            return self.last

    module = Holds()
    run = fit(module, strategy())
    run.fit_loop.max_epochs = 3
    run.fit(module, loader())
    assert run.global_step == 12
