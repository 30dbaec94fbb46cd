"""DP-SGD as Langevin dynamics: the law, the stationary distributions, the samples, the averages, and the same eps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_dp.cli
from lightning_dp import (
    DPStrategy,
    LangevinStrategy,
    MembershipRisk,
    PrivacyAccountant,
    PrivacyConfigError,
    PrivacyError,
)
from lightning_dp.accounting import LangevinLaw
from lightning_dp.posterior import PolynomialStepSize, PosteriorPredictor
from lightning_dp.strategies.base import CHECKPOINT_KEY
from tests.strategies.helpers import Tiny, dataset, fit, flat, loader, strategy, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]


def langevin(**arguments: Any) -> LangevinStrategy:
    if "eps" not in arguments and "temperature" not in arguments:
        arguments.setdefault("noise_multiplier", 1.0)
    return LangevinStrategy(**arguments)


def held_out() -> DataLoader[Any]:
    return DataLoader(dataset(32, seed=5), batch_size=16)


class Recorder(Callback):
    """The iterates and step sizes, as the Trainer passes them."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.states.append({k: v.clone() for k, v in pl_module.state_dict().items()})


# --- what is sampled --------------------------------------------------------------------------------------------------
class Regression(Tiny):
    """`REPLICAS` independent chains at once: each output has weights, and noise on them, of its own."""

    def __init__(self, inputs: int, replicas: int, lr: float) -> None:
        super().__init__(lr=lr, net=nn.Linear(inputs, replicas, bias=False))
        nn.init.zeros_(self.net.weight)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (self(x) - y[:, None]).square().sum(1).mean()


def test_stationary_variance_of_one_parameter() -> None:
    """U = n w^2 / 2 at temperature Tmp: the variance times n is Tmp 2 / (2 - lr), and nearly Tmp for small steps.

    20,000 chains after 80 steps: relative standard error 1 %, within five of them (one false alarm in 10^6).
    """
    n, lr, replicas = 64, 0.1, 20_000
    module, plugin = Regression(1, replicas, lr), langevin(max_grad_norm=2.0, self_check=False)
    fit(module, plugin, DataLoader(TensorDataset(torch.ones(n, 1), torch.zeros(n)), batch_size=n), max_epochs=80)
    assert plugin.temperature == pytest.approx(lr * 2.0**2 / (2 * n))
    assert plugin.engine is None
    expected = plugin.temperature * 2 / (2 - lr)
    assert float(flat(module).square().mean()) * n == pytest.approx(expected, rel=5 * math.sqrt(2 / replicas))


def test_conjugate_linear_regression() -> None:
    """Gaussian prior and likelihood: mean and covariance of the chain, and the predictive variance, in closed form.

    With A = X'X + I/s^2 the posterior is N(A^-1 X'y, Tmp A^-1), and steps of size lr widen it to
    Tmp A^-1 (I - lr A / (2n))^-1. 20,000 chains; five standard errors. The bound is never reached, so nothing is clipped.
    """
    n, lr, s, replicas, temperature = 40, 0.1, 0.3, 20_000, 0.7
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 3, generator=generator)
    y = x @ torch.tensor([1.0, -0.5, 0.2]) + 0.3 * torch.randn(n, generator=generator)
    module = Regression(3, replicas, lr)
    plugin = langevin(temperature=temperature, prior_scale=s, max_grad_norm=3000.0, self_check=False)
    fit(module, plugin, DataLoader(TensorDataset(x, y), batch_size=n), max_epochs=120)
    assert plugin.temperature == pytest.approx(temperature)
    a = x.T @ x + torch.eye(3) / s**2
    mean = torch.linalg.solve(a, x.T @ y)
    covariance = temperature * torch.linalg.inv(a) @ torch.linalg.inv(torch.eye(3) - lr * a / (2 * n))
    chains = module.net.weight.detach()
    error = covariance.diagonal().div(replicas).sqrt()
    assert bool(((chains.mean(0) - mean).abs() < 5 * error).all())
    found = chains.T.cov()
    scale = (covariance.square() + torch.outer(covariance.diagonal(), covariance.diagonal())).div(replicas).sqrt()
    assert bool(((found - covariance).abs() < 5 * scale).all())
    at = torch.tensor([0.5, -1.0, 2.0])
    assert float((chains @ at).var()) == pytest.approx(float(at @ covariance @ at), rel=5 * math.sqrt(2 / replicas))


# --- the law ----------------------------------------------------------------------------------------------------------
LAW = LangevinLaw(1.0, 64, 16)


def test_the_temperature_follows_from_eps_and_learning_rate() -> None:
    plugin = langevin(eps=3.0)
    run = fit(Tiny(lr=0.25), plugin)
    assert plugin.temperature == pytest.approx(LAW.temperature(0.25, plugin.noise_multiplier))
    assert plugin.settings().temperature == plugin.temperature
    assert run.optimizers[0].param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("noise", [{"eps": 3.0}, {"noise_multiplier": 1.5}], ids=str)
def test_the_learning_rate_follows_from_temperature_and_noise(noise: Any, caplog: pytest.LogCaptureFixture) -> None:
    recorder, plugin = Recorder(), langevin(temperature=0.01, **noise)
    with caplog.at_level("INFO"):
        fit(Tiny(lr=0.25), plugin, callbacks=[recorder])
    rate = LAW.learning_rate(0.01, plugin.noise_multiplier)
    assert recorder.rates == pytest.approx([rate] * 8)
    assert f"set from 0.25 to {rate:.6g}" in caplog.text
    assert "temperature 0.01 " in caplog.text


def test_the_noise_follows_from_temperature_and_learning_rate() -> None:
    plugin = langevin(temperature=0.05)
    fit(Tiny(lr=0.25), plugin, callbacks=[PrivacyAccountant()])
    assert plugin.noise_multiplier == pytest.approx(LAW.noise_multiplier(0.05, 0.25))
    assert plugin.privacy_spent().eps == pytest.approx(langevin_eps(plugin.noise_multiplier))
    assert {event.noise_multiplier for event in (e.event for e in plugin.ledger.entries)} == {plugin.noise_multiplier}


def langevin_eps(noise: float) -> float:
    plain = strategy(noise_multiplier=noise)
    fit(Tiny(), plain)
    return plain.privacy_spent().eps


def test_all_three_are_accepted_if_they_agree_and_refused_with_numbers_if_not() -> None:
    rate = LAW.learning_rate(0.01, 1.0)
    plugin = langevin(noise_multiplier=1.0, temperature=0.01, learning_rate=round(rate, 5))
    fit(Tiny(), plugin)
    assert plugin.temperature == pytest.approx(0.01, rel=1e-2)
    module = Tiny()
    with pytest.raises(PrivacyConfigError, match=rf"temperature 0.01 and learning rate 0.3.*{rate:.4g}"):
        fit(module, langevin(noise_multiplier=1.0, temperature=0.01, learning_rate=0.3))
    assert torch.equal(flat(module), flat(Tiny()))


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({}, "neither eps, noise_multiplier nor temperature"),
        ({"learning_rate": 0.1}, "neither eps"),
        ({"eps": 1.0, "noise_multiplier": 1.0}, "eps and noise_multiplier given"),
        ({"eps": 1.0, "temperature": 0.0}, "temperature=0.0 must be a positive"),
        ({"eps": 1.0, "prior_scale": -1.0}, "prior_scale"),
        ({"eps": 1.0, "max_samples": 0}, "max_samples"),
        ({"eps": 1.0, "sample_dtype": "int8"}, "sample_dtype"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(PrivacyConfigError, match=says):
        LangevinStrategy(**arguments)


def test_the_temperature_is_not_known_before_the_data() -> None:
    with pytest.raises(PrivacyError, match="not known yet"):
        langevin().temperature


def test_a_temperature_without_noise_is_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="steps without end"):
        fit(Tiny(), langevin(noise_multiplier=0.0, temperature=1.0))


def test_a_scheduler_moves_the_temperature_of_the_samples() -> None:
    class Falling(Tiny):
        def configure_optimizers(self) -> Any:
            sgd = torch.optim.SGD(self.parameters(), lr=0.5)
            return [sgd], [{"scheduler": PolynomialStepSize(sgd, offset=2, decay=1.0), "interval": "step"}]

    recorder, plugin = Recorder(), langevin(burn_in=2, thinning=1)
    fit(Falling(), plugin, callbacks=[recorder])
    assert recorder.rates == pytest.approx([0.5 / (1 + t / 2) for t in range(8)])
    assert [k.learning_rate for k in plugin.posterior.kept] == recorder.rates[2:]
    assert [k.temperature for k in plugin.posterior.kept] == [LAW.temperature(r, 1.0) for r in recorder.rates[2:]]


def test_the_prior_is_weight_decay() -> None:
    run = fit(Tiny(), langevin(prior_scale=0.5))
    assert run.optimizers[0].param_groups[0]["weight_decay"] == pytest.approx(1 / (64 * 0.25))
    decaying = lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.01)  # noqa: E731
    with pytest.raises(PrivacyConfigError, match=r"weight_decay = 1/\(n s\^2\) = 0.0625.*weight_decay=0.01"):
        fit(Tiny(optimizer=decaying), langevin(prior_scale=0.5))
    fit(Tiny(optimizer=decaying), langevin(prior_scale=1.25))  # 1 / (64 * 1.25^2) = 0.01


# --- the guarantee ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("budget", [{"eps": 3.0}, {"noise_multiplier": 1.0}, {"risk": MembershipRisk(0.2)}], ids=str)
@pytest.mark.parametrize("sampling", ["poisson", "shuffle", "balls_in_bins"])
def test_it_costs_what_dp_sgd_costs(sampling: Any, budget: dict[str, Any]) -> None:
    """Equal noise, rate and steps: equal ledgers and equal eps, however many samples are kept."""
    plain = DPStrategy(sampling=sampling, **budget)
    chain = LangevinStrategy(sampling=sampling, burn_in=0, thinning=1, **budget)
    fit(Tiny(), plain)
    fit(Tiny(), chain)
    assert chain.ledger.entries == plain.ledger.entries
    assert chain.privacy_spent() == plain.privacy_spent()
    assert len(chain.posterior) == 8


def test_its_steps_are_those_of_dp_sgd() -> None:
    modules = Tiny(), Tiny()
    fit(modules[0], strategy(seed=3))
    fit(modules[1], langevin(seed=3))
    assert torch.equal(flat(modules[0]), flat(modules[1]))


def test_the_summary_shows_the_temperature(caplog: pytest.LogCaptureFixture) -> None:
    plugin = langevin()
    with caplog.at_level("INFO"):
        fit(Tiny(), plugin, callbacks=[PrivacyAccountant()])
    assert f"temperature        {plugin.temperature:.4g}" in caplog.text
    assert plugin.settings().mechanism == "dp_langevin"


# --- the samples ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "arguments, steps",
    [
        ({"burn_in": 3, "thinning": 2, "max_samples": 2}, [5, 7]),
        ({"burn_in": 4, "thinning": 2}, [6, 8]),
        ({"burn_in": 0.5, "max_samples": 2}, [6, 8]),
        ({"burn_in": 0, "thinning": 1}, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_samples_are_the_iterates_of_their_steps(arguments: dict[str, Any], steps: list[int]) -> None:
    recorder, plugin = Recorder(), langevin(**arguments)
    fit(Tiny(), plugin, callbacks=[recorder])
    assert list(plugin.posterior.steps) == steps
    for step, sample in zip(steps, plugin.posterior, strict=True):
        assert sample.keys() == recorder.states[step - 1].keys()
        assert all(torch.equal(value, recorder.states[step - 1][name]) for name, value in sample.items())


def test_a_second_run_goes_on_with_the_samples_of_its_module_only() -> None:
    plugin = langevin(burn_in=0, thinning=4)
    run = fit(Tiny(), plugin)
    run.fit_loop.max_epochs = 3
    run.fit(run.lightning_module, loader())
    assert plugin.posterior.steps == (4, 8, 12)  # the same chain, continued
    run.fit_loop.max_epochs = 4
    run.fit(Tiny(), loader())
    assert plugin.posterior.steps == (16,)
    assert plugin.ledger.steps == 16


def test_samples_are_not_another_modules(tmp_path: Path) -> None:
    module, other = Probing(), Probing(net=nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))
    run = fit(module, langevin())
    mine = torch.cat(run.predict(module, held_out()))
    with pytest.warns(UserWarning, match="no posterior samples of this module"):
        theirs = torch.cat(run.predict(other, held_out()))
    torch.testing.assert_close(theirs, other(dataset(32, seed=5)[:][0]).softmax(-1).detach())
    torch.testing.assert_close(torch.cat(run.predict(module, held_out())), mine)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("step", [3, 4, 6])
def test_a_resumed_run_keeps_what_the_whole_run_kept(step: int, on_disk: bool, tmp_path: Path) -> None:
    """Noise off, key fixed: equal bits, samples from before the checkpoint included."""
    arguments: dict[str, Any] = {"noise_multiplier": 0.0, "seed": 7, "burn_in": 1, "thinning": 2}
    if on_disk:
        arguments["samples_dir"] = tmp_path / "samples"
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = langevin(**arguments)
    fit(Tiny(), whole, callbacks=[saver], enable_checkpointing=True)
    resumed = langevin(**arguments)
    fit(Tiny(), resumed, ckpt_path=tmp_path / f"step={step}.ckpt")
    assert resumed.posterior.steps == whole.posterior.steps == (3, 5, 7)
    for a, b in zip(resumed.posterior, whole.posterior, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in b)
    state = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)[CHECKPOINT_KEY]["posterior"]
    assert [one["step"] for one in state] == [s for s in (3, 5, 7) if s <= step]


def test_a_demanded_temperature_survives_a_resume(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    for arguments in ({"eps": 3.0, "temperature": 0.02}, {"temperature": 0.05}):
        whole, resumed, recorder = langevin(**arguments), langevin(**arguments), Recorder()
        fit(Tiny(), whole, callbacks=[saver], enable_checkpointing=True)
        fit(Tiny(), resumed, ckpt_path=tmp_path / "step=4.ckpt", callbacks=[recorder])
        assert resumed.ledger.entries == whole.ledger.entries
        assert resumed.temperature == pytest.approx(arguments["temperature"])
        assert recorder.rates == pytest.approx([whole.optimizers[0].param_groups[0]["lr"]] * 4)
        for file in tmp_path.glob("*.ckpt"):
            file.unlink()


def test_files_that_made_room_are_left_out_with_a_warning(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    arguments: dict[str, Any] = {"burn_in": 0, "thinning": 1, "max_samples": 2, "samples_dir": tmp_path / "s"}
    fit(Tiny(), langevin(**arguments), callbacks=[saver], enable_checkpointing=True)
    again = langevin(**arguments)
    with pytest.warns(UserWarning, match="2 posterior samples of the checkpoint are no longer"):
        fit(Tiny(), again, ckpt_path=tmp_path / "step=4.ckpt")
    assert again.posterior.steps == (7, 8)


# --- averaged predictions ---------------------------------------------------------------------------------------------
class Probing(Tiny):
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).softmax(-1)


def probabilities(module: Tiny, plugin: LangevinStrategy) -> tuple[Tensor, Tensor]:
    """Mean over the samples by a plain loop over networks with their weights, and the labels."""
    x, y = dataset(32, seed=5).tensors
    means = []
    for sample in plugin.posterior:
        twin = Tiny()
        twin.load_state_dict(sample)
        means.append(twin(x).detach().softmax(-1))
    return torch.stack(means).mean(0), y


def test_test_and_predict_average_over_the_samples() -> None:
    """The module's own loss and accuracy become those of the mean probabilities; its weights stay."""
    module, plugin = Probing(), langevin(burn_in=0, thinning=2)
    run = fit(module, plugin)
    last = flat(module)
    mean, y = probabilities(module, plugin)
    for results in (run.test(module, held_out(), verbose=False), run.validate(module, held_out(), verbose=False)):
        assert results[0]["val_loss"] == pytest.approx(float(F.nll_loss(mean.log(), y)), rel=1e-5)
        assert results[0]["val_acc"] == pytest.approx(float((mean.argmax(1) == y).float().mean()))
    predicted = torch.cat(run.predict(module, held_out()))
    torch.testing.assert_close(predicted, mean)
    assert torch.equal(flat(module), last)
    torch.testing.assert_close(
        PosteriorPredictor(module.eval(), plugin.posterior)(dataset(32, seed=5)[:][0]).probabilities, mean
    )


def test_a_checkpoint_brings_its_own_samples(tmp_path: Path) -> None:
    module, plugin = Probing(), langevin(sample_dtype="float16")
    run = fit(module, plugin)
    run.save_checkpoint(tmp_path / "done.ckpt")
    expected = torch.cat(run.predict(module, held_out()))
    fresh = trainer(langevin())
    found = torch.cat(fresh.predict(Probing(), held_out(), ckpt_path=tmp_path / "done.ckpt"))
    torch.testing.assert_close(found, expected)
    assert fresh.strategy.ledger.steps == 0  # evaluating spends nothing


def test_validation_during_fit_is_that_of_the_iterate() -> None:
    module, plugin = Tiny(), langevin(burn_in=0, thinning=1)
    run = trainer(plugin, max_epochs=1)
    run.fit(module, loader(), held_out())
    x, y = dataset(32, seed=5).tensors
    assert float(run.callback_metrics["val_loss"]) == pytest.approx(
        float(F.cross_entropy(module(x), y).detach()), rel=1e-5
    )


class PastForward(Probing):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", F.cross_entropy(self.net(batch[0]), batch[1]))


def test_a_step_that_goes_past_the_average_is_refused_or_named() -> None:
    module, plugin = PastForward(), langevin()
    run = fit(module, plugin)
    with pytest.raises(PrivacyConfigError, match=r"test_step did not call self\(x\).*output_module='net'"):
        run.test(module, held_out(), verbose=False)
    module, plugin = PastForward(), langevin(output_module="net")
    run = fit(module, plugin)
    mean, y = probabilities(module, plugin)
    (result,) = run.test(module, held_out(), verbose=False)
    assert result["test_loss"] == pytest.approx(float(F.nll_loss(mean.log(), y)), rel=1e-5)
    module, plugin = PastForward(), langevin(output=None)
    run = fit(module, plugin)
    x, y = dataset(32, seed=5).tensors
    (result,) = run.test(module, held_out(), verbose=False)
    assert result["test_loss"] == pytest.approx(float(F.cross_entropy(module.net(x), y).detach()), rel=1e-5)


def test_without_samples_the_last_iterate_is_evaluated_and_said() -> None:
    run = trainer(langevin())
    with pytest.warns(UserWarning, match="no posterior samples"):
        assert run.test(Tiny(), held_out(), verbose=False)


# --- as a user meets it -----------------------------------------------------------------------------------------------
def test_the_strategy_string() -> None:
    run = trainer("dp_langevin")
    run.fit(Tiny(), loader())
    assert isinstance(run.strategy, LangevinStrategy)
    assert 7.5 < run.strategy.privacy_spent().eps <= 8


def test_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["lightning-dp"])
    path = tmp_path / "config.yaml"
    path.write_text(
        "trainer:\n  max_steps: 4\n  limit_val_batches: 0\n  accelerator: cpu\n  logger: false\n"
        "  enable_checkpointing: false\n  enable_progress_bar: false\n  enable_model_summary: false\n"
        "  strategy:\n    class_path: LangevinStrategy\n"
        "    init_args: {temperature: 0.5, burn_in: 2, thinning: 1, max_grad_norm: 0.5, sample_dtype: float16}\n"
        "  callbacks:\n    - class_path: PrivacyAccountant\n    - class_path: PosteriorCalibration\n"
        "data:\n  class_path: DigitsDataModule\n"
        "model:\n  class_path: ClassificationTask\n"
        "  init_args:\n    momentum: 0.0\n    lr: 0.3\n"
        "    network: {class_path: FlatLinear, init_args: {in_features: 64}}\n"
    )
    run = lightning_dp.cli.command_line([f"--config={path}"], run=False)
    run.trainer.fit(run.model, run.datamodule)
    (result,) = run.trainer.test(run.model, run.datamodule, verbose=False)
    assert run.trainer.strategy.posterior.steps == (3, 4)
    assert run.trainer.strategy.temperature == pytest.approx(0.5)
    assert result["test/accuracy"] == pytest.approx(result["test/posterior_accuracy"])
    assert {"test/last_ece", "test/posterior_ece", "test/last_nll", "test/posterior_nll"} <= result.keys()
