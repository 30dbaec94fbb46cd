"""Checkpoints: a resumed run is the uninterrupted one, its ledger is whole, and no secret is in the file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_dp import PrivacyError, PrivacyWarning
from lightning_dp.strategies.base import CHECKPOINT_KEY
from tests.strategies.helpers import Tiny, dataset, fit, flat, loader, strategy, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning"),
    # The callback that saved need not be there when the run goes on.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]

ROOT = Path(__file__).resolve().parents[2]


def module() -> Tiny:
    return Tiny(optimizer=lambda p: torch.optim.Adam(p, lr=0.05))


def saved_at(tmp_path: Path, step: int, *, weights_only: bool = False, **arguments: Any) -> tuple[Path, Trainer]:
    """A run over two epochs of four steps, and its checkpoint after `step` steps."""
    saver = ModelCheckpoint(
        dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_weights_only=weights_only
    )
    run = fit(module(), strategy(**arguments), callbacks=[saver], enable_checkpointing=True)
    return tmp_path / f"step={step}.ckpt", run


# --- the same run -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("step", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("physical", [None, 5])
def test_a_resumed_run_without_noise_is_the_uninterrupted_one(step: int, physical: int | None, tmp_path: Path) -> None:
    """k steps, save, fresh objects, load, the rest: equal bits, also within an epoch (noise off, key fixed)."""
    arguments: dict[str, Any] = {"noise_multiplier": 0, "seed": 7, "physical_batch_size": physical}
    path, whole = saved_at(tmp_path, step, **arguments)
    resumed = fit(module(), strategy(**arguments), ckpt_path=path)
    assert resumed.global_step == whole.global_step == 8
    assert torch.equal(flat(resumed.lightning_module), flat(whole.lightning_module))
    assert resumed.strategy.ledger.entries == whole.strategy.ledger.entries
    assert resumed.strategy.state_dict()["position"] == whole.strategy.state_dict()["position"] == 8


@pytest.mark.parametrize("step", [1, 3, 4, 6])
@pytest.mark.parametrize("sampling", ["poisson", "shuffle", "balls_in_bins"])
@pytest.mark.parametrize("budget", [{"eps": 3.0}, {"noise_multiplier": 1.0}], ids=str)
def test_a_resumed_run_has_the_ledger_and_the_noise_of_the_whole(
    step: int, sampling: Any, budget: dict[str, float], tmp_path: Path
) -> None:
    path, whole = saved_at(tmp_path, step, sampling=sampling, **budget)
    plugin = strategy(sampling=sampling, **budget)
    if sampling != "poisson" and step % 4:
        # A new key means a new draw: the pass that was under way costs once more, or does not fit the budget.
        resumed = fit(module(), plugin, ckpt_path=path)
        assert resumed.global_step <= 8
        assert plugin.privacy_spent().eps <= budget.get("eps", 1e9)
        if "eps" not in budget:
            assert plugin.ledger.steps == whole.strategy.ledger.steps + 1
        return
    resumed = fit(module(), plugin, ckpt_path=path)
    assert resumed.global_step == 8
    assert plugin.ledger.entries == whole.strategy.ledger.entries
    assert plugin.noise_multiplier == whole.strategy.noise_multiplier
    assert plugin.privacy_spent().eps == whole.strategy.privacy_spent().eps


def test_a_resumed_run_draws_fresh_noise(tmp_path: Path) -> None:
    path, whole = saved_at(tmp_path, 4)
    results = [flat(fit(module(), strategy(), ckpt_path=path).lightning_module) for _ in range(2)]
    assert not torch.allclose(results[0], results[1])
    assert not torch.allclose(results[0], flat(whole.lightning_module))


def test_more_epochs_than_planned_go_on_with_given_noise(tmp_path: Path) -> None:
    path, _ = saved_at(tmp_path, 8)
    plugin = strategy()
    assert fit(module(), plugin, max_epochs=5, ckpt_path=path).global_step == 20
    assert plugin.ledger.steps == 20


# --- what is in the file ----------------------------------------------------------------------------------------------
def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{at}.{key} (key)", key
            yield from leaves(item, f"{at}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from leaves(item, f"{at}[{i}]")
    else:
        yield at, value


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("budget", [{"eps": 3.0}, {"noise_multiplier": 1.0, "delta": 1e-5}], ids=str)
def test_the_checkpoint_is_plain_python_and_holds_no_secret(
    weights_only: bool, budget: dict[str, Any], tmp_path: Path
) -> None:
    path, run = saved_at(tmp_path, 3, weights_only=weights_only, **budget)
    checkpoint = torch.load(path, weights_only=True)
    ours = checkpoint[CHECKPOINT_KEY]
    for where, value in leaves(ours):
        assert type(value) in (str, int, float, bool, type(None)), where
    assert ours["budget"]["noise_multiplier"] == run.strategy.noise_multiplier
    key = run.strategy._key
    host = run.strategy._sampler
    for where, value in leaves(checkpoint):
        assert not isinstance(value, (bytes, bytearray, torch.Generator, np.random.Generator)), where
        if isinstance(value, torch.Tensor):
            assert value.dtype != torch.uint8, f"{where} looks like a generator's state"
        if isinstance(value, int) and not isinstance(value, bool):
            assert value.bit_length() <= 64, where
        assert value is not host
    content = path.read_bytes()
    for form in (key, key.hex().encode(), key[::-1]):
        assert form not in content


def test_the_strategy_saves_no_number_that_depends_on_who_was_drawn(tmp_path: Path) -> None:
    """Two data sets, two keys, the same plan: what the strategy writes is the same but for the ledger's name."""
    states = []
    for i in range(2):
        path, _ = saved_at(tmp_path / str(i), 3, physical_batch_size=2)
        state = torch.load(path, weights_only=True)[CHECKPOINT_KEY]
        (segment,) = state["budget"]["ledger"].pop("segments").values()
        states.append((state, segment))
    assert states[0] == states[1]


def test_the_ledger_survives_a_checkpoint_of_weights_only(tmp_path: Path) -> None:
    path, _ = saved_at(tmp_path, 5, weights_only=True)
    plugin = strategy()
    plugin.load_state_dict(torch.load(path, weights_only=True)[CHECKPOINT_KEY])
    assert plugin.ledger.steps == 5
    plugin.load_state_dict(torch.load(path, weights_only=True)[CHECKPOINT_KEY])
    assert plugin.ledger.steps == 5
    start = module()
    start.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    fit(start, plugin)
    assert plugin.ledger.steps == 13


def test_lightning_cannot_resume_from_weights_only_but_the_ledger_is_read_first(tmp_path: Path) -> None:
    path, _ = saved_at(tmp_path, 5, weights_only=True)
    plugin, start = strategy(), module()
    with pytest.raises(KeyError, match="save_weights_only"):
        fit(start, plugin, ckpt_path=path)
    assert plugin.ledger.steps == 5
    assert start.calls == 0


# --- nothing is ever taken back ---------------------------------------------------------------------------------------
def test_an_older_checkpoint_never_lowers_the_ledger(tmp_path: Path) -> None:
    path, run = saved_at(tmp_path, 3)
    plugin = run.strategy
    eps = plugin.privacy_spent().eps
    plugin.load_state_dict(torch.load(path, weights_only=True)[CHECKPOINT_KEY])
    assert plugin.ledger.steps == 8
    run.fit(run.lightning_module, loader(), ckpt_path=path)  # five steps again, from step three on
    assert run.global_step == 8
    assert plugin.ledger.steps == 13
    assert plugin.privacy_spent().eps > eps


def test_a_rewound_budget_does_not_come_back(tmp_path: Path) -> None:
    path, run = saved_at(tmp_path, 3, eps=2)
    before = run.lightning_module.calls
    run.fit(run.lightning_module, loader(), ckpt_path=path)
    assert run.lightning_module.calls == before
    assert run.strategy.privacy_spent().eps <= 2
    assert run.strategy.ledger.steps == 8


def test_a_rewound_run_does_not_use_a_draw_twice(tmp_path: Path) -> None:
    path, run = saved_at(tmp_path, 3)
    run.fit(run.lightning_module, loader(), ckpt_path=path)
    assert run.strategy.state_dict()["position"] == 13


def test_two_branches_of_one_checkpoint_add_up(tmp_path: Path) -> None:
    path, _ = saved_at(tmp_path, 3)
    branches = [fit(module(), strategy(), ckpt_path=path).strategy for _ in range(2)]
    assert [b.ledger.steps for b in branches] == [8, 8]
    branches[0].load_state_dict(branches[1].state_dict())
    assert branches[0].ledger.steps == 3 + 5 + 5


@pytest.mark.parametrize("entry", ["validate", "test"])
def test_evaluating_a_checkpoint_leaves_the_live_ledger_alone(entry: str, tmp_path: Path) -> None:
    path, _ = saved_at(tmp_path / "other", 8, noise_multiplier=0.5)
    run = fit(module(), strategy())
    state = run.strategy.state_dict()
    getattr(run, entry)(run.lightning_module, DataLoader(dataset(16), batch_size=16), ckpt_path=path, verbose=False)
    assert run.strategy.state_dict() == state


def test_predicting_from_a_checkpoint_leaves_the_live_ledger_alone(tmp_path: Path) -> None:
    path, run = saved_at(tmp_path, 3)
    state = run.strategy.state_dict()
    run.predict(run.lightning_module, DataLoader(dataset(16), batch_size=16), ckpt_path=path)
    assert run.strategy.state_dict() == state


def test_the_best_checkpoint_can_be_tested_after_fit(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss")
    run = trainer(strategy(), callbacks=[saver], enable_checkpointing=True)
    held_out = DataLoader(dataset(16, seed=5), batch_size=16)
    run.fit(module(), loader(), held_out)
    assert run.test(run.lightning_module, held_out, ckpt_path="best", verbose=False)
    assert run.strategy.ledger.steps == 8


# --- foreign and broken files -----------------------------------------------------------------------------------------
def test_a_checkpoint_without_a_ledger_is_named(tmp_path: Path) -> None:
    plain = trainer("auto", max_epochs=1)
    plain.fit(module(), loader())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    plugin = strategy()
    with pytest.warns(PrivacyWarning, match=r"no privacy ledger"):
        run = fit(module(), plugin, ckpt_path=tmp_path / "plain.ckpt")
    assert run.global_step == 8
    assert plugin.ledger.steps == 4


def test_a_broken_ledger_is_refused(tmp_path: Path) -> None:
    path, _ = saved_at(tmp_path, 3)
    checkpoint = torch.load(path, weights_only=True)
    for name in checkpoint[CHECKPOINT_KEY]["budget"]["ledger"]["segments"]:
        checkpoint[CHECKPOINT_KEY]["budget"]["ledger"]["segments"][name] = [[1.0, 0.25, "poisson", -3]]
    torch.save(checkpoint, path)
    start, plugin = module(), strategy()
    with pytest.raises(PrivacyError, match="cannot be read"):
        fit(start, plugin, ckpt_path=path)
    assert start.calls == 0


def test_the_module_loads_without_the_strategy(tmp_path: Path) -> None:
    """A private checkpoint is an ordinary one, for inference with plain Lightning or plain torch."""
    path, run = saved_at(tmp_path, 8)

    copy = Tiny.load_from_checkpoint(path, weights_only=True)
    assert torch.equal(flat(copy), flat(run.lightning_module))
    plain = trainer("auto")
    assert plain.validate(Tiny(), DataLoader(dataset(16), batch_size=16), ckpt_path=path, verbose=False)


# --- a real crash -----------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.multi_process
def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    """kill -9 within an epoch: a new process goes on, with one ledger, to the planned end and the planned eps."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parent / "scripts" / "killed.py"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path), "3", "7"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 90
        while not (tmp_path / "hanging").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        assert (tmp_path / "hanging").exists()
    finally:
        process.kill()
        process.wait()
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["step=3.ckpt", "step=6.ckpt"]
    plugin = strategy(eps=3)
    resumed: LightningModule = Tiny(momentum=0.9)
    run = fit(resumed, plugin, loader(64, 16), max_epochs=4, ckpt_path=tmp_path / "step=6.ckpt")
    assert run.global_step == plugin.ledger.steps == 16
    assert 0.98 * 3 < plugin.privacy_spent().eps <= 3
