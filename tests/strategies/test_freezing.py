"""Frozen at first and unfrozen later, or the other way round: exact, checked before it is trained, and resumable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning, ModelCheckpoint
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_dp import BAMStrategy, LangevinStrategy, NeuralDPStrategy, PrivacyConfigError, PrivacyError
from lightning_dp.errors import PrivacyWarning
from lightning_dp.strategies import checked
from tests.strategies.helpers import CLASSES, FEATURES, Tiny, dataset, fit, loader, strategy

N, LR = 24, 0.2
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist:UserWarning"),
]


class Two(Tiny):
    """A backbone and a head; it notes every gradient that the optimizer sees, and what the parameters were."""

    def __init__(self, width: int = 7, backbone: nn.Module | None = None, **arguments: Any) -> None:
        super().__init__(net=nn.Identity(), lr=LR, **arguments)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.backbone = nn.Sequential(nn.Linear(FEATURES, width), nn.Tanh()) if backbone is None else backbone
            self.head = nn.Linear(width, CLASSES)
        self.seen: list[tuple[int, dict[str, Tensor], dict[str, Tensor | None]]] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        values = {name: p.detach().clone() for name, p in self.named_parameters()}
        gradients = {name: None if p.grad is None else p.grad.clone() for name, p in self.named_parameters()}
        self.seen.append((self.current_epoch, values, gradients))


class Finetuning(BaseFinetuning):
    """Trains the head alone in some epochs: Lightning's callback, as its documentation subclasses it."""

    def __init__(self, unfreeze: int = 1, freeze: int | None = None) -> None:
        super().__init__()
        self.at, self.again = unfreeze, freeze

    def freeze_before_training(self, pl_module: Any) -> None:
        if self.at > 0:
            self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Optimizer) -> None:
        if epoch == self.at > 0:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)
        if epoch == self.again:
            self.freeze(pl_module.backbone)


class Unfreezing(Callback):
    """What a user may write: nothing says beforehand that the backbone will be trained."""

    def __init__(self, at: int = 1, start: str = "on_train_epoch_start") -> None:
        self.at, self.start = at, start

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == self.at:
            pl_module.backbone.requires_grad_(True)
            trainer.optimizers[0].add_param_group({"params": list(pl_module.backbone.parameters()), "lr": LR / 10})


def frozen(**arguments: Any) -> Two:
    module = Two(**arguments)
    module.backbone.requires_grad_(False)
    return module


def everybody(**arguments: Any) -> Any:
    """A loader whose every draw is the whole data set: the batch is known to a plain loop."""
    return loader(N, N, **arguments)


def plain_loop(module: Two, values: dict[str, Tensor], names: list[str], bound: float) -> dict[str, Tensor]:
    """Sum over samples of the gradient of each alone, clipped jointly over ``names``, over N."""
    twin = Two()
    twin.load_state_dict(values)
    named = dict(twin.named_parameters())
    total = {name: torch.zeros_like(named[name]) for name in names}
    x, y = dataset(N).tensors
    for i in range(N):
        loss = F.cross_entropy(twin(x[i : i + 1]), y[i : i + 1])
        gradients = torch.autograd.grad(loss, [named[name] for name in names])
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        for name, gradient in zip(names, gradients, strict=True):
            total[name] += gradient * min(1.0, bound / float(norm)) / N
    return total


def names_of(module: Two, part: str) -> list[str]:
    return [name for name, _ in module.named_parameters() if name.startswith(part)]


# --- exact ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("physical", [None, 5])
@pytest.mark.parametrize("how", ["BackboneFinetuning", "BaseFinetuning", "by hand"])
def test_the_clipped_sum_before_and_after_is_that_of_a_plain_loop(how: str, physical: int | None) -> None:
    callback = {
        "BackboneFinetuning": lambda: BackboneFinetuning(unfreeze_backbone_at_epoch=2, lambda_func=lambda _: 1.0),
        "BaseFinetuning": lambda: Finetuning(unfreeze=2),
        "by hand": lambda: Unfreezing(at=2),
    }[how]()
    module = frozen() if how == "by hand" else Two()
    start = module.backbone[0].weight.detach().clone()
    plugin = strategy(noise_multiplier=0, max_grad_norm=0.3, physical_batch_size=physical)
    run = fit(module, plugin, everybody(), max_epochs=4, callbacks=[callback])
    assert [epoch for epoch, _, _ in module.seen] == [0, 1, 2, 3]
    for epoch, values, gradients in module.seen:
        names = names_of(module, "head") if epoch < 2 else [name for name, _ in module.named_parameters()]
        expected = plain_loop(module, values, names, 0.3)
        for name, _ in module.named_parameters():
            if name in expected:
                torch.testing.assert_close(gradients[name], expected[name], rtol=1e-4, atol=1e-7)
            else:
                assert gradients[name] is None
        if epoch < 3:  # the values before the first step on them
            assert torch.equal(values["backbone.0.weight"], start)
    assert not torch.equal(module.seen[3][1]["backbone.0.weight"], start)
    assert [g["lr"] for g in run.optimizers[0].param_groups] == pytest.approx([LR, LR / 10])


def test_the_norm_is_joint() -> None:
    """Clipping the new group by itself would let a unit count by up to sqrt(2) C: the reference would not catch less."""
    module = Two()
    fit(
        module,
        strategy(noise_multiplier=0, max_grad_norm=1e-3),
        everybody(),
        callbacks=[Finetuning()],
    )
    whole = torch.cat([g.flatten() for g in module.seen[1][2].values()])
    assert float(whole.norm()) <= 1e-3 * 1.001


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
def test_the_noise_of_the_new_group_is_sigma_c(clipping: Any) -> None:
    """A wide layer gives enough coordinates: the standard deviation within four standard errors."""
    bound, sigma, width = 0.5, 3.0, 4000
    pairs = []
    for noise in (0.0, sigma):
        module = Two(width)
        plugin = strategy(noise_multiplier=noise, max_grad_norm=bound, clipping=clipping, self_check=False, seed=5)
        fit(module, plugin, everybody(), max_epochs=2, callbacks=[Finetuning(unfreeze=1)])
        pairs.append(module.seen)
    (_, _, quiet_before), (_, _, quiet) = pairs[0]
    (_, _, noisy_before), (_, values, noisy) = pairs[1]
    assert quiet_before["backbone.0.weight"] is None
    assert noisy_before["backbone.0.weight"] is None
    # The heads differ by noise, and with them the clipped sums, by up to 2 N C over all coordinates.
    for name in ("backbone.0.weight", "head.weight"):
        noise = (noisy[name] - quiet[name]) * N
        expected, count = sigma * bound, noise.numel()
        slack = (2 * N * bound) ** 2 / count / (2 * expected)
        assert abs(float(noise.std()) - expected) < 4 * expected / (2 * count) ** 0.5 + slack, name
    assert values["backbone.0.weight"].shape == (width, FEATURES)


def test_the_ledger_does_not_see_what_is_frozen() -> None:
    spent = []
    for callbacks in ([], [Finetuning()], [Finetuning(unfreeze=0, freeze=1)]):
        plugin = strategy(eps=3.0, seed=4)
        fit(Two(), plugin, loader(), callbacks=callbacks)
        spent.append((plugin.ledger.entries, plugin.privacy_spent().eps))
    assert spent[0] == spent[1] == spent[2]


# --- the other direction ----------------------------------------------------------------------------------------------
def test_what_is_frozen_later_gets_neither_gradient_nor_noise() -> None:
    module = Two(momentum=0.9)
    fit(module, strategy(noise_multiplier=2.0), everybody(), max_epochs=4, callbacks=[Finetuning(unfreeze=0, freeze=2)])
    for epoch, _, gradients in module.seen:
        assert (gradients["backbone.0.weight"] is None) == (epoch >= 2)
        assert gradients["head.weight"] is not None
    values = [values["backbone.0.weight"] for _, values, _ in module.seen]
    assert not torch.equal(values[1], values[0])
    assert not torch.equal(values[2], values[1])
    assert torch.equal(values[3], values[2])
    assert torch.equal(module.backbone[0].weight, values[2])


def test_after_freezing_the_norm_is_that_of_the_rest() -> None:
    module = Two()
    plugin = strategy(noise_multiplier=0, max_grad_norm=0.3)
    fit(module, plugin, everybody(), max_epochs=2, callbacks=[Finetuning(unfreeze=0, freeze=1)])
    _, values, gradients = module.seen[1]
    expected = plain_loop(module, values, names_of(module, "head"), 0.3)
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=1e-7)


class Turns(Callback):
    """The backbone and the head by turns, both in the optimizer from the start."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.backbone.requires_grad_(trainer.global_step % 2 == 1)
        pl_module.head.requires_grad_(trainer.global_step % 2 == 0)


def test_layers_may_take_turns_and_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[frozenset[str]] = []
    original = checked.check_module

    def count(module: Any, **arguments: Any) -> None:
        checks.append(frozenset(name for name, p in module.named_parameters() if p.requires_grad))
        original(module, **arguments)

    monkeypatch.setattr(checked, "check_module", count)
    module = Two()
    fit(module, strategy(noise_multiplier=0, max_grad_norm=0.3), everybody(), max_epochs=6, callbacks=[Turns()])
    for step, (_, values, gradients) in enumerate(module.seen):
        expected = plain_loop(module, values, names_of(module, "backbone" if step % 2 else "head"), 0.3)
        for name, gradient in gradients.items():
            if name in expected:
                torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)
            else:
                assert gradient is None
    assert len(checks) == len(set(checks)) == 3  # all, the head, the backbone


# --- resume -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("freeze", [None, 2])
def test_a_resumed_run_is_the_uninterrupted_one(step: int, freeze: int | None, tmp_path: Path) -> None:
    """Two steps an epoch, unfrozen in the second, perhaps frozen in the third; also from within an epoch."""
    often = {"every_n_epochs": 1} if step % 2 == 0 else {"every_n_train_steps": 1}
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_top_k=-1, **often)

    def run(*more: Callback, **arguments: Any) -> Trainer:
        plugin = strategy(noise_multiplier=0, seed=7)
        callbacks = [Finetuning(unfreeze=1, freeze=freeze), *more]
        return fit(Two(momentum=0.5), plugin, loader(N, N // 2), max_epochs=3, callbacks=callbacks, **arguments)

    whole = run(saver, enable_checkpointing=True)
    resumed = run(ckpt_path=tmp_path / f"step={step}.ckpt")
    assert resumed.global_step == whole.global_step == 6
    for one, other in zip(resumed.lightning_module.parameters(), whole.lightning_module.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.requires_grad == other.requires_grad
    assert resumed.strategy.ledger.entries == whole.strategy.ledger.entries


def test_a_checkpoint_after_which_lightning_does_not_ask_the_callback_is_named(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    arguments: dict[str, Any] = {"data": loader(N, N // 2), "max_epochs": 2}
    fit(Two(), strategy(), callbacks=[Finetuning(), saver], enable_checkpointing=True, **arguments)
    with pytest.warns(PrivacyWarning, match=r"on_train_epoch_start: a callback that unfreezes backbone.0.weight"):
        fit(Two(), strategy(), callbacks=[Finetuning()], ckpt_path=tmp_path / "step=2.ckpt", **arguments)


def test_without_such_a_callback_a_checkpoint_says_nothing_about_what_is_trained(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, filename="last", every_n_train_steps=1)
    fit(frozen(), strategy(), everybody(), max_epochs=1, callbacks=[saver], enable_checkpointing=True)
    module = frozen()
    fit(module, strategy(), everybody(), max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert not any(p.requires_grad for p in module.backbone.parameters())


# --- checked before it is trained -------------------------------------------------------------------------------------
class MixedBackward(torch.autograd.Function):
    """The identity, whose gradient is the mean over the batch: nothing of it shows while what lies before is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.mean(0, keepdim=True).expand_as(gradient).contiguous()


class Coupled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 7)

    def forward(self, x: Tensor) -> Tensor:
        return MixedBackward.apply(self.layer(x))


@pytest.mark.parametrize("callback", [Finetuning, BackboneFinetuning])
def test_what_a_callback_will_unfreeze_is_checked_before_anything_is_spent(callback: Callable[[], Callback]) -> None:
    module, plugin = Two(backbone=Coupled()), strategy()
    with pytest.raises(PrivacyError, match=r"backbone.layer.weight, .* once they are unfrozen: .* couples the samples"):
        fit(module, plugin, everybody(), callbacks=[callback()])
    assert plugin.ledger.steps == 0


def test_frozen_for_good_is_no_concern() -> None:
    module = frozen(backbone=Coupled())
    fit(module, strategy(), everybody(), callbacks=[])
    assert len(module.seen) == 2


def test_what_nobody_announced_is_checked_before_its_first_step() -> None:
    module, plugin = frozen(backbone=Coupled()), strategy()
    with pytest.raises(PrivacyError, match="couples the samples"):
        fit(module, plugin, everybody(), callbacks=[Unfreezing(at=1)])
    assert plugin.ledger.steps == 1
    assert len(module.seen) == 1


def test_weights_read_by_the_module_around_them_are_followed_once_unfrozen() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(3)
                self.inner = nn.Linear(FEATURES, 7)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(F.linear(x, self.inner.weight, self.inner.bias))

    module, plain = frozen(backbone=Reader()), Two()
    plain.load_state_dict({k.replace("inner", "0"): v for k, v in module.state_dict().items()})
    plugin = strategy(noise_multiplier=0, max_grad_norm=0.3)
    fit(module, plugin, everybody(), callbacks=[Unfreezing(at=1)])
    _, values, gradients = module.seen[1]
    names = [name for name, _ in plain.named_parameters()]
    expected = plain_loop(plain, {k.replace("inner", "0"): v for k, v in values.items()}, names, 0.3)
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name.replace(".0.", ".inner.")], value, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("named", [True, False])
def test_a_layer_without_a_bound_is_refused_before_anything_is_spent(named: bool) -> None:
    plugin = strategy(max_grad_norm={"head": 1.0, **({"backbone": 0.5} if named else {})}, clipping="per_layer")
    if named:
        fit(Two(), plugin, everybody(), callbacks=[Finetuning()])
        return
    with pytest.raises(PrivacyConfigError, match=r"frozen at the start.*no bound for backbone.0.weight"):
        fit(Two(), plugin, everybody(), callbacks=[Finetuning()])
    assert plugin.ledger.steps == 0


def test_half_precision_weights_are_refused_before_anything_is_spent() -> None:
    class Half(nn.Linear):
        def __init__(self) -> None:
            super().__init__(FEATURES, 7, dtype=torch.bfloat16)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.bfloat16()).float()

    plugin = strategy()
    with pytest.raises(PrivacyConfigError, match=r"once they are unfrozen.*bfloat16"):
        fit(Two(backbone=Half()), plugin, everybody(), callbacks=[Finetuning()])
    assert plugin.ledger.steps == 0


class Adding(Callback):
    """Hands the optimizer a parameter that the module does not own."""

    def __init__(self, hook: str) -> None:
        self.stray = nn.Parameter(torch.ones(()))
        setattr(self, hook, self.add)

    def add(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1 and len(trainer.optimizers[0].param_groups) == 1:
            trainer.optimizers[0].add_param_group({"params": [self.stray]})


@pytest.mark.parametrize(
    "hook", ["on_train_epoch_start", "on_train_batch_start", "on_before_backward", "on_after_backward"]
)
def test_a_parameter_from_outside_the_module_is_refused_whenever_it_comes(hook: str) -> None:
    adding = Adding(hook)

    class Using(Two):
        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self(x) * adding.stray, y)

    with pytest.raises(PrivacyConfigError, match="not part of the LightningModule"):
        fit(Using(), strategy(), everybody(), callbacks=[adding])
    assert float(adding.stray.detach()) == 1.0


def test_what_no_optimizer_moves_is_named() -> None:
    class Forgetful(Unfreezing):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            pl_module.backbone.requires_grad_(trainer.current_epoch >= 1)

    with pytest.warns(
        PrivacyWarning, match=r"backbone.0.weight, backbone.0.bias were unfrozen and are in no optimizer"
    ):
        fit(frozen(), strategy(), everybody(), callbacks=[Forgetful()])


# --- the other strategies ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("direction", ["unit", "previous"])
def test_bias_aware_steps_go_on(direction: Any) -> None:
    module = Two()
    plugin = BAMStrategy(noise_multiplier=0.0, direction=direction, max_grad_norm=1e-3)
    fit(module, plugin, everybody(), max_epochs=3, callbacks=[Finetuning(unfreeze=1)])
    assert [gradients["backbone.0.weight"] is None for _, _, gradients in module.seen] == [True, False, False]
    whole = torch.cat([g.flatten() for g in module.seen[2][2].values()])
    assert 0 < float(whole.norm()) <= 1e-3 * 1.001


def test_a_chain_refuses_a_change_under_way() -> None:
    with pytest.raises(PrivacyConfigError, match="samples of a chain"):
        fit(frozen(), LangevinStrategy(noise_multiplier=1.0), everybody(), callbacks=[Unfreezing()])


def test_layers_before_a_release_stay_frozen() -> None:
    plugin = NeuralDPStrategy(noise_multiplier=1.0, layer="backbone", labels="public")
    module = Two()
    with pytest.raises(PrivacyConfigError, match=r"backbone.0.weight.*upstream of the released layer"):
        fit(module, plugin, everybody(), callbacks=[Finetuning()])


class Manual(Two):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(*batch))
        self.on_before_optimizer_step(optimizer)
        optimizer.step()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.seen = self.seen[:1] + [
            (self.current_epoch, {n: p.detach().clone() for n, p in self.named_parameters()}, {})
        ]


def test_manual_optimisation_follows_a_new_group() -> None:
    module = Manual()
    plugin = strategy(noise_multiplier=0, max_grad_norm=0.3)
    fit(module, plugin, everybody(), max_epochs=2, callbacks=[Finetuning()])
    _, values, _ = module.seen[1]
    expected = plain_loop(module, values, [name for name, _ in module.named_parameters()], 0.3)
    for name, parameter in module.named_parameters():
        rate = LR / 10 if name.startswith("backbone") else LR
        torch.testing.assert_close(values[name] - parameter, rate * expected[name], rtol=1e-3, atol=1e-7)


def test_the_module_type_is_untouched() -> None:
    module: LightningModule = Two()
    before = list(module.state_dict())
    fit(module, strategy(), everybody(), callbacks=[Finetuning()])
    assert list(module.state_dict()) == before
    assert all(p.requires_grad for p in module.parameters())
