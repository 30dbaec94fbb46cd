"""The script of `recipes/reconstruction_tradeoff`: its attacks, its bounds and its figure, on made-up pictures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_dp.gradients import Clipping, GradientEngine

FOLDER = Path(__file__).parents[2] / "recipes" / "reconstruction_tradeoff"


@pytest.fixture(autouse=True)
def _script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def pictures(n: int, seed: int = 0) -> Tensor:
    """Of differing brightness, so that few share a bin."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 28, 28, generator=generator) * torch.linspace(0.1, 1, n)[:, None, None, None]


@pytest.mark.parametrize("sparse", [False, True])
def test_without_noise_or_clipping_a_bins_gradient_is_the_sum_of_its_pictures(sparse: bool) -> None:
    import tradeoff

    batch = pictures(6)
    levels = batch.flatten(1).mean(1)
    # Two thresholds around each picture, and one bin for the last three.
    thresholds = torch.cat([levels[:3] - 1e-3, levels[3:4] - 1e-3, levels[5:] + 1e-3])
    module = tradeoff.Imprint(thresholds, sparse)
    with GradientEngine(
        module, Clipping(1e6), noise_multiplier=0.0, expected_batch_size=1, loss_reduction="sum"
    ) as engine:
        engine.backward(module(batch).sum(), len(batch))
        engine.write_gradients()
    expected = torch.cat([batch.flatten(1)[:3], batch.flatten(1)[3:].sum(0, keepdim=True)])
    torch.testing.assert_close(module.pictures(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sparse", [False, True])
def test_noise_decides_whether_pictures_are_recognised(sparse: bool) -> None:
    import tradeoff

    batch, public = pictures(30), pictures(400, seed=1)
    assert tradeoff.attack(batch, public, 1e-7, sparse) > 0.5
    assert tradeoff.attack(batch, public, 1.0, sparse) == 0.0


def test_a_sparse_layer_stands_more_noise() -> None:
    """Clipping splits a picture over all active rows of the dense layer, and leaves it to one row of the sparse layer."""
    import tradeoff

    batch, public = pictures(30), pictures(400, seed=1)
    assert tradeoff.attack(batch, public, 2e-3, True) > 0.5 > tradeoff.attack(batch, public, 2e-3, False)


@pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")
def test_all_curves_are_measured_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    import tradeoff

    def few(folder: Path, part: str) -> tuple[Tensor, Tensor]:
        return pictures(300), torch.arange(300) % 10

    monkeypatch.setattr("lightning_dp.data.fashion_mnist.find_fashion_mnist", lambda root=None: tmp_path)
    monkeypatch.setattr("lightning_dp.data.fashion_mnist.read_fashion_mnist", few)
    monkeypatch.setattr(tradeoff, "BATCH", 60)
    figure, table = tmp_path / "tradeoff.svg", tmp_path / "rows.json"
    rows = tradeoff.main((1.0, 1e9, math.inf), (0,), steps=6, figure=figure, table=table)
    strong, weak, none = rows
    assert strong.relaxed <= strong.worst_case < 0.1
    assert strong.sparse == strong.imprint == 0.0
    # The worst case is nearly the chance of taking part in a step at all: nothing else protects at eps = 1e9.
    assert weak.worst_case == pytest.approx(1 - (1 - 60 / 300) ** 6, abs=0.02)
    assert none.worst_case == none.relaxed == 1.0
    assert none.sparse > 0.2
    assert figure.read_text().count("<path") > 5
    assert table.is_file()
    assert "sparse imprint" in capsys.readouterr().out
