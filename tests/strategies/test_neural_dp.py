"""NeuralDPStrategy: one release, charged first; training that cannot see anything else; and what is refused."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from lightning_dp import DPStrategy, NeuralDPStrategy, PrivacyAccountant
from lightning_dp.accounting import GaussianEvent, LedgerEntry, PrivacyLedger, RandomizedResponseEvent, release_event
from lightning_dp.callbacks.protocol import PrivateStrategy
from lightning_dp.errors import PrivacyConfigError, PrivacyError, PrivacyWarning
from lightning_dp.strategies.neural.batches import BatchLayout
from lightning_dp.strategies.neural.inference import Inference
from lightning_dp.strategies.neural.privatise import clip_rows
from tests.strategies.helpers import CLASSES, FEATURES, Tiny, dataset, fit, flat, hooks, loader, network, trainer

WIDTH = 5


class Split(Tiny):
    """A frozen extractor and a trainable head with batch normalisation, which is no matter after a release."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.features = nn.Sequential(
                nn.Linear(FEATURES, WIDTH), nn.Dropout(0.5), nn.BatchNorm1d(WIDTH)
            ).requires_grad_(False)
            self.net = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.features(x))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch[0].detach().clone())
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.05)


def neural(**arguments: Any) -> NeuralDPStrategy:
    if "eps" not in arguments:
        arguments.setdefault("noise_multiplier", 1.0)
    return NeuralDPStrategy(**{"labels": "public", "layer": "features", **arguments})


def activations(module: Split, data: TensorDataset) -> Tensor:
    """What is to be released, from outside: evaluation mode, clipped by a plain formula."""
    module.features.eval()
    with torch.no_grad():
        a = module.features(data.tensors[0])
    return a * (1.0 / a.norm(dim=1, keepdim=True)).clamp(max=1.0)


# --- what is released -------------------------------------------------------------------------------------------------
def test_without_noise_the_release_is_the_clipped_activation() -> None:
    data, module, plugin = dataset(), Split(), neural(noise_multiplier=0.0)
    expected = activations(module, data)
    module.features.train()
    with pytest.warns(PrivacyWarning, match="NOT private"):
        fit(module, plugin, DataLoader(data, 16, shuffle=True))
    assert plugin.releases is not None
    torch.testing.assert_close(plugin.releases.vectors[0], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(plugin.releases.labels[1], data.tensors[1])
    assert math.isinf(plugin.privacy_spent().eps)


def test_the_noise_of_a_run_has_its_variance() -> None:
    """n = 4000 samples of 5 coordinates: mean and standard deviation within 5 standard errors (false alarm below 1e-5)."""
    data, module, plugin = dataset(4000), Split(), neural(noise_multiplier=3.0, max_activation_norm=0.5)
    fit(module, plugin, DataLoader(data, 400), max_epochs=1)
    assert plugin.releases is not None
    with torch.no_grad():
        clipped = clip_rows(module.features.eval()(data.tensors[0]), 0.5)
    noise = (plugin.releases.vectors[0] - clipped).double() / 1.5
    assert abs(float(noise.mean())) < 5 / math.sqrt(noise.numel())
    assert abs(float(noise.std()) - 1) < 5 / math.sqrt(2 * noise.numel())
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-5


def test_the_seed_of_the_process_does_not_reach_the_noise() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        plugin = neural()
        fit(Split(), plugin, max_epochs=1)
        assert plugin.releases is not None
        found.append(plugin.releases.vectors)
    assert not torch.isclose(*found).any()


def test_each_sample_is_released_once_however_long_training_goes_on() -> None:
    class Counts(TensorDataset):
        asked: list[int] = []

        def __getitem__(self, index: int) -> Any:
            self.asked.append(index)
            return super().__getitem__(index)

    data = Counts(*dataset().tensors)
    plugin = neural()
    fit(Split(), plugin, DataLoader(data, 16, shuffle=True), max_epochs=7)
    assert plugin.ledger.entries == (LedgerEntry(release_event(1.0, "replace_one"), 1),)
    # The checks before the release look at a few samples; the release at each; the epochs at none.
    assert len(data.asked) == len(data) + 5


def test_several_releases_take_turns_and_add_up() -> None:
    class Augmented(Dataset[Any]):
        def __getitem__(self, index: int) -> Any:
            x, y = dataset()[index]
            return x + 0.1 * torch.randn(FEATURES), y

        def __len__(self) -> int:
            return 64

    class Shows(Callback):
        def __init__(self) -> None:
            self.first: list[Tensor] = []

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                self.first.append(batch[0])

    shows, plugin = Shows(), neural(layer=None, releases=2, noise_multiplier=4.0)
    fit(Tiny(), plugin, DataLoader(Augmented(), 16), max_epochs=4, callbacks=[shows])
    assert plugin.releases is not None
    assert plugin.releases.vectors.shape == (2, 64, FEATURES)
    assert torch.equal(shows.first[0], shows.first[2])
    assert torch.equal(shows.first[1], shows.first[3])
    assert not torch.isclose(shows.first[0], shows.first[1]).any()
    assert plugin.ledger.entries == (LedgerEntry(release_event(4.0, "replace_one"), 2),)


def test_extreme_samples_are_released_within_the_bound() -> None:
    x, y = dataset().tensors
    x = x.clone()
    x[3], x[20], x[40] = float("nan"), float("inf"), 3e38
    plugin = neural(noise_multiplier=0.0, layer=None)
    with pytest.warns(PrivacyWarning, match="NOT private"):
        fit(Tiny(), plugin, DataLoader(TensorDataset(x, y), 16))
    assert plugin.releases is not None
    norms = plugin.releases.vectors[0].double().norm(dim=1)
    assert bool((norms <= 1.0).all())
    assert norms[3] == norms[20] == 0.0
    assert norms[40] == pytest.approx(1.0, abs=1e-6)


def test_a_half_precision_cache_holds_finite_numbers() -> None:
    plugin = neural(stored_as="float16", max_activation_norm=1e6, layer=None)
    fit(Tiny(), plugin, loader())
    assert plugin.releases is not None
    assert plugin.releases.vectors.dtype == torch.float16
    assert bool(torch.isfinite(plugin.releases.vectors).all())


# --- what training sees -----------------------------------------------------------------------------------------------
def test_training_sees_zeros_where_the_inputs_were() -> None:
    module = Split()
    fit(module, neural())
    assert len(module.seen) == 8
    assert not any(seen.any() for seen in module.seen)


def test_raw_inputs_that_change_after_the_release_change_nothing() -> None:
    """Two runs with one seed for everything; in one of them the data are wiped as soon as training begins."""

    class Wipes(Callback):
        def __init__(self, data: TensorDataset | None) -> None:
            self.data = data

        def on_train_batch_start(self, *_: Any) -> None:
            for tensor in () if self.data is None else self.data.tensors:
                tensor.zero_()

    found = []
    for wiped in (False, True):
        data, module = TensorDataset(*(t.clone() for t in dataset().tensors)), Split()
        torch.manual_seed(5)
        with pytest.warns(PrivacyWarning, match="seed"):
            fit(module, neural(seed=3), DataLoader(data, 16, shuffle=True), callbacks=[Wipes(data if wiped else None)])
        found.append(flat(module))
    assert torch.equal(*found)


def test_the_head_trains_on_its_own_samples_releases() -> None:
    """Against a plain loop over the released vectors and labels, in the order in which they came."""
    module, plain = Split(), Split()
    plugin = neural(seed=1)
    order: list[Tensor] = []

    class Follows(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            order.append(plugin._indices)

    with pytest.warns(PrivacyWarning, match="seed"):
        fit(module, plugin, callbacks=[Follows()])
    assert sorted(torch.cat(order[:4]).tolist()) == list(range(64))
    assert plugin.releases is not None
    (optimizer,) = [plain.configure_optimizers()]
    for indices in order:
        optimizer.zero_grad()
        vectors, labels = plugin.releases.vectors[0][indices], plugin.releases.labels[1][indices]
        F.cross_entropy(plain.net(vectors), labels).backward()
        optimizer.step()
    torch.testing.assert_close(flat(module.net), flat(plain.net), rtol=1e-4, atol=1e-6)


def test_nothing_upstream_moves_or_gets_a_gradient() -> None:
    module = Split()
    before = {name: value.clone() for name, value in module.features.state_dict().items()}

    class Looks(Callback):
        def on_before_optimizer_step(self, *_: Any) -> None:
            assert all(p.grad is None for p in module.features.parameters())

    fit(module, neural(), callbacks=[Looks()])
    for name, value in module.features.state_dict().items():  # running statistics of the extractor among them
        assert torch.equal(value, before[name]), name
    assert not torch.equal(module.net[0].running_mean, torch.zeros(WIDTH))  # those of the head do move
    assert hooks(module) == []
    assert module.features[1].training == module.net.training


def test_the_released_layer_computes_on_one_stand_in() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows: list[int] = []

        def forward(self, x: Tensor, twice: Tensor) -> Tensor:
            self.rows.append(len(x) + len(twice))
            return x[:, :WIDTH] + twice[:, :WIDTH]

    class Model(Split):
        def __init__(self) -> None:
            super().__init__()
            self.features = Counts()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(self.features(x, twice=x))

    module = Model()
    fit(module, neural())
    assert module.features.rows == [2] * 8


def test_code_compiled_before_does_not_run_round_the_release() -> None:
    found = []
    for compiled in (False, True):
        module = Split()
        if compiled:
            module.features.compile(backend="eager")
            module.features.eval()(torch.zeros(16, FEATURES))  # compiled now, without hooks
            module.features.train()
        torch.manual_seed(4)
        with pytest.warns(PrivacyWarning, match="seed"):
            fit(module, neural(seed=3))
        found.append(flat(module))
    torch.testing.assert_close(*found)


def test_the_strategy_lets_go_of_the_data() -> None:
    plugin, data = neural(), dataset()

    class Looks(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            assert plugin._user_loader is None
            assert not any(value is data for value in vars(plugin).values())
            assert trainer.train_dataloader.dataset == range(64)

    fit(Split(), plugin, DataLoader(data, 16), callbacks=[Looks()])


def test_it_learns() -> None:
    """On data that are easy at this noise: far above the 1/3 of chance, every time."""
    module, data = Tiny(optimizer=lambda ps: torch.optim.Adam(ps, lr=0.03)), dataset(4000)
    run = fit(module, neural(layer=None, noise_multiplier=0.7), DataLoader(data, 100, shuffle=True), max_epochs=5)
    (found,) = run.test(module, DataLoader(data, 1000), verbose=False)
    assert found["val_acc"] > 0.7


def test_dictionaries_and_several_labels() -> None:
    class Named(Dataset[Any]):
        def __getitem__(self, index: int) -> Any:
            x, y = dataset()[index]
            return {"image": x, "y": y, "z": y * 2.0}

        def __len__(self) -> int:
            return 64

    class Model(Split):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.seen.append(batch["image"])
            assert torch.equal(batch["z"], batch["y"] * 2.0)
            return self.loss(batch["image"], batch["y"])

    module = Model()
    fit(module, neural(input_keys=["image"], label_keys=["y", "z"]), DataLoader(Named(), 16))
    assert len(module.seen) == 8
    assert not any(seen.any() for seen in module.seen)


def test_without_labels() -> None:
    class Code(Split):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch[0]).square().mean()

    plugin = neural(labels=None, label_keys=[])
    fit(Code(), plugin, DataLoader(TensorDataset(dataset().tensors[0]), 16))
    assert plugin.settings().labels_covered


# --- accounting -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "arguments, eps",
    [
        ({"noise_multiplier": 4.0}, 1.993091),
        ({"noise_multiplier": 4.0, "releases": 4}, 4.377178),
        ({"noise_multiplier": 2.0, "relation": "add_or_remove_one"}, 1.993091),
    ],
)
def test_table_values(arguments: dict[str, Any], eps: float) -> None:
    plugin = neural(delta=1e-5, **arguments)
    fit(Split(), plugin)
    assert plugin.privacy_spent().eps == pytest.approx(eps, abs=2e-6)
    assert plugin.epsilon() == plugin.privacy_spent().eps


@pytest.mark.parametrize("relation, sensitivity", [("replace_one", 2.0), ("add_or_remove_one", 1.0)])
def test_noise_for_a_budget(relation: Any, sensitivity: float) -> None:
    """Table N2: (3, 1e-5) needs noise of 1.390593 sensitivities."""
    plugin = neural(eps=3, delta=1e-5, relation=relation)
    fit(Split(), plugin)
    assert plugin.noise_multiplier == pytest.approx(1.390593 * sensitivity, rel=1e-5)
    assert 2.999 < plugin.privacy_spent().eps <= 3


def test_randomised_labels_are_part_of_the_budget() -> None:
    plugin = neural(eps=3, labels="randomized", label_eps=1.0, num_classes=CLASSES)
    fit(Split(), plugin, loader(2000))
    assert plugin.ledger.entries[1] == LedgerEntry(RandomizedResponseEvent(1.0, CLASSES, "replace_one"), 1)
    assert 2.97 < plugin.privacy_spent().eps <= 3
    assert plugin.releases is not None
    truth = dataset(2000).tensors[1]
    kept, expected = float((plugin.releases.labels[1] == truth).double().mean()), math.e / (math.e + CLASSES - 1)
    assert abs(kept - expected) < 5 * math.sqrt(expected * (1 - expected) / 2000)


def test_the_charge_comes_before_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr("lightning_dp.strategies.neural.release.privatise_rows", crash)
    plugin = neural()
    with pytest.raises(RuntimeError, match="power cut"):
        fit(Split(), plugin)
    assert plugin.ledger.steps == 1


def test_a_second_fit_uses_the_same_releases_and_other_data_cost_another() -> None:
    data, plugin, module = loader(), neural(), Split()
    run = fit(module, plugin, data)
    first = plugin.releases
    run.fit_loop.max_epochs = 4
    run.fit(module, data)
    assert plugin.releases is first
    assert plugin.ledger.steps == 1
    run.fit_loop.max_epochs = 6
    run.fit(module, loader())
    assert plugin.releases is not first
    assert plugin.ledger.steps == 2


def test_another_extractor_needs_a_release_of_its_own() -> None:
    data, plugin, other = loader(), neural(), Split()
    run = fit(Split(), plugin, data)
    with torch.no_grad():
        other.features[0].weight.mul_(2.0)
    run.fit_loop.max_epochs = 4
    run.fit(other, data)
    assert plugin.ledger.steps == 2


def test_a_release_beyond_the_budget_is_not_made() -> None:
    plugin = neural(eps=3)
    run = fit(Split(), plugin)
    run.fit_loop.max_epochs = 4
    with pytest.raises(PrivacyError, match="second release"):
        run.fit(Split(), loader())
    assert plugin.ledger.steps == 1


def test_upstream_trained_with_dp_sgd_adds_its_budget(tmp_path: Path) -> None:
    private = DPStrategy(noise_multiplier=1.0, delta=1e-3)
    run = fit(Tiny(), private)
    run.save_checkpoint(tmp_path / "upstream.ckpt")
    for source in (private.ledger, str(tmp_path / "upstream.ckpt")):
        plugin = neural(eps=20, delta=1e-3, relation="add_or_remove_one", upstream_ledger=source)
        fit(Split(), plugin)
        assert plugin.ledger.steps == 9
        assert private.privacy_spent().eps < 19.8 < plugin.privacy_spent().eps <= 20
        with pytest.raises(PrivacyConfigError, match="add_or_remove_one"):
            neural(eps=20, upstream_ledger=source)
    torch.save({}, tmp_path / "plain.ckpt")
    with pytest.raises(PrivacyConfigError, match="no privacy ledger"):
        neural(upstream_ledger=str(tmp_path / "plain.ckpt"))


def test_the_summary_says_what_eps_means(capsys: pytest.CaptureFixture[str], caplog: Any) -> None:
    accountant, plugin = PrivacyAccountant(), neural(eps=3)

    class Logs(Split):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.log("train_loss", loss)
            return loss

    with caplog.at_level("INFO"):
        fit(Logs(), plugin, callbacks=[accountant])
    assert isinstance(plugin, PrivateStrategy)
    for part in ("replace one", "local", "central", "output of features, once", "public", "no amplification"):
        assert part in caplog.text
    assert accountant.spent is not None
    assert not any("train_loss" in release.what for release in accountant.releases)  # a function of releases


def test_labels_in_the_clear_are_named_aloud() -> None:
    accountant = PrivacyAccountant()
    with pytest.warns(PrivacyWarning, match="OUTSIDE the guarantee"):
        fit(Split(), neural(labels=None), callbacks=[accountant])
    assert "labels" in accountant.releases[0].what


# --- new data ---------------------------------------------------------------------------------------------------------
def test_new_samples_are_clipped_and_not_noised() -> None:
    module, data = Split(), dataset(32, seed=9)
    run = fit(module, neural())
    expected = module.net.eval()(activations(module, data)).argmax(1)
    for _ in range(2):
        found = torch.cat(run.predict(module, DataLoader(data, 8)))  # type: ignore[arg-type]
        assert torch.equal(found, expected)
    alone = torch.cat(run.predict(module, DataLoader(TensorDataset(data.tensors[0]), 8)))  # type: ignore[arg-type]
    assert torch.equal(alone, expected)
    assert hooks(module) == []


def test_released_inputs_are_clipped_for_new_samples() -> None:
    module, x = Tiny(), 100 * dataset(32, seed=9).tensors[0]
    run = fit(module, neural(layer=None))
    expected = module(clip_rows(x, 1.0)).argmax(1)
    assert torch.equal(torch.cat(run.predict(module, DataLoader(TensorDataset(x), 8))), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", [None, "features"])
def test_queries_with_noise_have_a_ledger_of_their_own(layer: str | None) -> None:
    class Tested(Split):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch[0])

    module, plugin = Tested(), neural(layer=layer, noise_multiplier=50.0, inference_noise=True)
    run = fit(module, plugin)
    data = DataLoader(dataset(512, seed=9), 64)
    one, other = (torch.cat(run.predict(module, data)) for _ in range(2))  # type: ignore[arg-type]
    assert not torch.isclose(one, other, rtol=1e-6, atol=0.0).all(1).any()
    run.test(module, data, verbose=False)
    assert plugin.ledger.steps == 1
    assert plugin.query_ledger.entries == (LedgerEntry(release_event(50.0, "replace_one"), 3),)
    assert plugin.query_spent().eps > 0
    run.validate(module, data, verbose=False)
    assert plugin.query_ledger.steps == 3


def test_processes_that_share_a_copy_share_no_query_noise() -> None:
    one = Inference(None, BatchLayout((0,), (1,)), 1.0, "replace_one", noisy=True)
    with pytest.raises(PrivacyError, match="not charged"):
        one.inputs([torch.zeros(2, 3)], 1.0)
    one.charge(1.0)
    other = copy.deepcopy(one)
    for each in (one, other):
        each.charge(1.0)
    found = [each.inputs([torch.zeros(2, 30)], 1.0)[0] for each in (one, other)]
    assert not torch.isclose(*found).any()


def test_a_query_that_passes_the_layer_twice_is_refused() -> None:
    module, plugin = Split(), neural(inference_noise=True)
    run = fit(module, plugin)
    with pytest.raises(PrivacyError, match="two releases"):
        run.test(
            module, DataLoader(dataset(), 16), verbose=False
        )  # its step computes loss and accuracy from a forward pass each


# --- checkpoints ------------------------------------------------------------------------------------------------------
def test_a_resumed_run_needs_no_second_release(tmp_path: Path) -> None:
    plugin = neural(eps=3)
    run = fit(Split(), plugin, loader())
    run.save_checkpoint(tmp_path / "half.ckpt")
    assert plugin.releases is not None
    resumed = neural(eps=3)
    fit(Split(), resumed, loader(), max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.releases is not None
    assert torch.equal(resumed.releases.vectors, plugin.releases.vectors)
    assert torch.equal(resumed.releases.labels[1], plugin.releases.labels[1])
    assert resumed.ledger.entries == plugin.ledger.entries


@pytest.mark.parametrize("arguments", [{"save_releases": False}, {"max_activation_norm": 2.0}])
def test_without_fitting_releases_a_resumed_run_pays_again(tmp_path: Path, arguments: dict[str, Any]) -> None:
    first = neural(save_releases=arguments.get("save_releases", True))
    run = fit(Split(), first)
    run.save_checkpoint(tmp_path / "half.ckpt")
    resumed = neural(**arguments)
    if "max_activation_norm" in arguments:
        with pytest.warns(PrivacyWarning, match="not used"):
            fit(Split(), resumed, max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    else:
        fit(Split(), resumed, max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.ledger.steps == 2


def test_a_resumed_run_without_releases_does_not_exceed_the_budget(tmp_path: Path) -> None:
    run = fit(Split(), neural(eps=3, save_releases=False))
    run.save_checkpoint(tmp_path / "half.ckpt")
    resumed = neural(eps=3)
    with pytest.raises(PrivacyError, match="second release"):
        fit(Split(), resumed, max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.ledger.steps == 1


def test_labels_in_the_clear_stay_out_of_checkpoints(tmp_path: Path) -> None:
    with pytest.warns(PrivacyWarning, match="OUTSIDE"):
        run = fit(Split(), neural(labels=None))
    run.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["lightning_dp"]
    assert saved["releases"]["labels"] == []
    resumed = neural(labels=None)
    with pytest.warns(PrivacyWarning, match="OUTSIDE"):
        fit(Split(), resumed, max_epochs=4, ckpt_path=tmp_path / "a.ckpt")
    assert resumed.ledger.steps == 1
    assert resumed.releases is not None
    assert torch.equal(resumed.releases.labels[1], dataset().tensors[1])


def test_a_checkpoint_callback_saves_and_scheduling_is_ordinary(tmp_path: Path) -> None:
    class Scheduled(Split):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    fit(
        Scheduled(),
        neural(),
        callbacks=[saver],
        enable_checkpointing=True,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
    )
    assert (tmp_path / "last.ckpt").exists()


# --- what is refused --------------------------------------------------------------------------------------------------
class Trainable(Split):
    def __init__(self) -> None:
        super().__init__()
        self.features.requires_grad_(True)


class Functional(Split):
    """A trainable weight upstream that no module's hook shows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.features(x * self.scale))


class Couples(Split):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.features(x - x.mean(0)))


class Skips(Split):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.features(x) + x[:, :WIDTH])


class Reconstructs(Split):
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return (self(x).mean(1) - x.mean(1)).square().mean()


class Twice(Split):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.features(x) + self.features(-x))


class Never(Split):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[:, :WIDTH])


class Ignores(Split):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.features(x).detach() * 0 + torch.ones(len(x), WIDTH)) + 0 * self.features.training


class Flattens(Split):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.fold(self.features(x)).view(-1, WIDTH))

    def __init__(self) -> None:
        super().__init__()
        self.fold = nn.Flatten(0)


class Random(Split):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.features(x + torch.randn_like(x)))


class MovesLabels(Split):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return (batch[0], batch[1].flip(0)) if self.trainer.training else batch


class Manual(Split):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.parametrize(
    "module, arguments, match",
    [
        (Trainable, {}, r"features\.0\.bias.*trainable.*requires_grad_\(False\)"),
        (Functional, {}, "scale.*trainable"),
        (Couples, {}, "lets samples meet"),
        (Random, {}, "random numbers"),
        (Skips, {}, "round the released layer"),
        (Reconstructs, {}, "round the released layer"),
        (Twice, {}, "called twice"),
        (Never, {}, "without calling the layer"),
        (Ignores, {}, "does not depend on the output"),
        (Flattens, {"layer": "fold"}, "one row for each sample"),
        (MovesLabels, {}, "changes the labels"),
        (Manual, {}, "automatic_optimization"),
        (Split, {"layer": "feature"}, "is no module.*features"),
        (Split, {"label_keys": ["target"]}, "input_keys"),
        (Split, {"label_keys": []}, "neither a protected input nor a label"),
    ],
)
def test_networks_that_do_not_fit_are_refused_before_anything_is_charged(
    module: Any, arguments: Any, match: str
) -> None:
    plugin = neural(**arguments)
    with pytest.raises((PrivacyConfigError, PrivacyError), match=match):
        fit(module(), plugin)
    assert plugin.ledger.steps == 0


def ragged(samples: list[Any]) -> Any:
    longest = int(max(y for _, y in samples)) + FEATURES
    return torch.stack([F.pad(x, (0, longest - FEATURES)) for x, _ in samples]), torch.stack([y for _, y in samples])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(dataset())


class Whole(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return torch.arange(FEATURES), 0

    def __len__(self) -> int:
        return 8


@pytest.mark.parametrize(
    "data, match",
    [
        (lambda: DataLoader(Stream(), 16), "IterableDataset"),
        (lambda: DataLoader(dataset(), 16, sampler=WeightedRandomSampler([1.0] * 64, 64)), "WeightedRandomSampler"),
        (lambda: [loader(), loader()], "several training loaders"),
        (lambda: DataLoader(dataset(), 16, collate_fn=ragged), "differ in shape"),
        (lambda: DataLoader(Whole(), 4), "floating-point"),
    ],
)
def test_data_that_do_not_fit_are_refused(data: Any, match: str) -> None:
    plugin = neural(layer=None)
    with pytest.raises((PrivacyConfigError, PrivacyError), match=match):
        fit(Tiny(), plugin, data())
    assert plugin.ledger.steps == 0


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"eps": None, "noise_multiplier": None}, "neither"),
        ({"eps": 1, "noise_multiplier": 1}, "exactly one"),
        ({"max_activation_norm": 0}, "max_activation_norm"),
        ({"max_activation_norm": float("inf")}, "max_activation_norm"),
        ({"relation": "swap"}, "relation"),
        ({"labels": "hidden"}, "labels"),
        ({"labels": "randomized"}, "label_eps"),
        ({"labels": "randomized", "label_eps": 1.0}, "num_classes"),
        ({"labels": "public", "label_eps": 1.0}, "label_eps"),
        ({"labels": "randomized", "label_eps": 1.0, "num_classes": 3, "label_keys": [1, 2]}, "one answer"),
        ({"labels": "randomized", "label_eps": 1.0, "num_classes": 3, "label_keys": []}, "one answer"),
        ({"labels": "randomized", "label_eps": 3.0, "num_classes": 3, "eps": 3}, "leaves nothing"),
        ({"releases": 0}, "releases"),
        ({"release_batch_size": 0}, "release_batch_size"),
        ({"input_keys": []}, "input_keys"),
        ({"stored_as": "int8"}, "stored_as"),
        ({"accountant": "moments"}, "accountant"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], match: str) -> None:
    if "eps" in arguments:
        arguments = {"noise_multiplier": None, **arguments}
    with pytest.raises(PrivacyConfigError, match=match):
        NeuralDPStrategy(**{"noise_multiplier": 1.0, **arguments})


def test_a_delta_of_one_in_n_is_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="1/n"):
        fit(Split(), neural(delta=0.5))


def test_reloading_the_data_is_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="reload_dataloaders"):
        fit(Split(), neural(), reload_dataloaders_every_n_epochs=1)


def test_a_step_that_leaves_the_layer_out_later_is_stopped() -> None:
    class Changes(Split):
        def forward(self, x: Tensor) -> Tensor:
            late = self.trainer.global_step > 0
            return self.net(x[:, :WIDTH]) if late else super().forward(x)

    with pytest.raises(PrivacyError, match="did not call"):
        fit(Changes(), neural())


def test_a_ledger_of_another_relation_cannot_be_resumed() -> None:
    plugin, other = neural(), PrivacyLedger()
    other.charge(GaussianEvent(1.0, 0.1))
    plugin.ledger.charge(release_event(1.0, "replace_one"))
    with pytest.raises(PrivacyError, match="relation"):
        plugin.load_state_dict({"budget": {**plugin.state_dict()["budget"], "ledger": other.state_dict()}})


# --- the string -------------------------------------------------------------------------------------------------------
def test_the_strategy_string_releases_the_inputs_of_any_module() -> None:
    with pytest.warns(PrivacyWarning, match="OUTSIDE"):
        run = fit(Tiny(net=network()), "neural_dp")
    assert isinstance(run.strategy, NeuralDPStrategy)
    assert run.strategy.privacy_spent().eps == pytest.approx(8.0, rel=1e-6)
    assert run.strategy.settings().released == "the inputs"


def test_a_module_stays_what_it_is() -> None:
    module = Split()
    keys, kind = list(module.state_dict()), type(module)
    fit(module, neural())
    assert list(module.state_dict()) == keys
    assert type(module) is kind
    assert isinstance(module, LightningModule)
    assert trainer(neural()).strategy.privacy_spent  # and another Trainer can be made
