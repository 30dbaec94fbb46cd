"""Kept iterates: which, where, and that they are what they were."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.posterior import PosteriorSamples, Thinning


def net() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    module[0].weight.requires_grad_(False)
    module.register_buffer("table", torch.arange(5.0))
    module.register_buffer("count", torch.tensor(7))
    module.register_buffer("scratch", torch.zeros(2), persistent=False)
    return module


def kept(steps: int, **arguments: Any) -> tuple[PosteriorSamples, list[dict[str, torch.Tensor]]]:
    samples, module, states = PosteriorSamples(**arguments), net(), []
    for step in range(1, steps + 1):
        with torch.no_grad():
            for p in module.parameters():
                p.normal_()
        samples.keep(module, step, 0.1, 0.2, run="abc")
        states.append({k: v.detach().clone() for k, v in module.state_dict().items() if k != "0.weight"})
    return samples, states


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_samples_are_the_last_iterates(dtype: Any, on_disk: bool, tmp_path: Path) -> None:
    """Parameters and buffers that the state dict has, without what is frozen; rounded once where asked to."""
    samples, states = kept(7, max_samples=3, dtype=dtype, folder=tmp_path / "here" if on_disk else None)
    assert samples.steps == (5, 6, 7)
    for sample, state in zip(samples, states[-3:], strict=True):
        assert sample.keys() == state.keys()
        for name, value in sample.items():
            expected = state[name].to(getattr(torch, dtype)) if state[name].is_floating_point() else state[name]
            assert value.dtype == expected.dtype
            assert torch.equal(value, expected)
    assert len(list(tmp_path.rglob("*.pt"))) == (3 if on_disk else 0)


def test_samples_do_not_share_memory_with_the_module() -> None:
    module, samples = net(), PosteriorSamples()
    samples.keep(module, 1, 0.1, 0.2, run="abc")
    before = samples[0]["1.weight"].clone()
    with torch.no_grad():
        module[1].weight.add_(1)
    assert torch.equal(samples[0]["1.weight"], before)


def test_a_constant_buffer_is_held_once() -> None:
    samples, _ = kept(3)
    assert samples[0]["table"] is samples[2]["table"]
    assert samples[0]["1.weight"] is not samples[2]["1.weight"]


@pytest.mark.parametrize("on_disk", [False, True])
def test_state_survives_a_file_of_plain_values(on_disk: bool, tmp_path: Path) -> None:
    folder = tmp_path / "samples" if on_disk else None
    samples, states = kept(4, max_samples=2, folder=folder)
    torch.save(samples.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all((one["values"] is None) == on_disk for one in state)
    again = PosteriorSamples(2, folder=folder)
    again.load_state_dict(state)
    assert [(k.step, k.learning_rate, k.temperature) for k in again.kept] == [(3, 0.1, 0.2), (4, 0.1, 0.2)]
    assert torch.equal(again[-1]["1.bias"], states[-1]["1.bias"])


def test_files_that_are_gone_are_named(tmp_path: Path) -> None:
    samples, _ = kept(2, folder=tmp_path / "samples")
    (tmp_path / "samples" / "sample-abc-00000001.pt").unlink()
    assert samples.missing_files() == ["sample-abc-00000001.pt"]
    with pytest.raises(PrivacyError, match=r"step 1 .*samples_dir"):
        samples[0]
    samples.drop(samples.missing_files())
    assert samples.steps == (2,)


def test_a_rank_that_does_not_write_knows_the_files(tmp_path: Path) -> None:
    module, first, second = net(), PosteriorSamples(folder=tmp_path / "s"), PosteriorSamples(folder=tmp_path / "s")
    first.keep(module, 1, 0.1, 0.2, run="abc")
    second.keep(module, 1, 0.1, 0.2, run="abc", write=False)
    assert len(list(tmp_path.rglob("*.pt"))) == 1
    assert torch.equal(second[0]["1.bias"], first[0]["1.bias"])


def test_values_beyond_half_precision_are_refused() -> None:
    module = nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.fill_(1e5)
    with pytest.raises(PrivacyError, match="sample_dtype='float32'"):
        PosteriorSamples(dtype="float16").keep(module, 1, 0.1, 0.2, run="abc")


def test_samples_of_another_run_are_forgotten() -> None:
    samples, _ = kept(5)
    samples.forget_after(3)
    assert samples.steps == (1, 2, 3)


@pytest.mark.parametrize(
    "thinning, planned, expected",
    [
        (Thinning(0.5, None, 20), 200, (100, 5)),
        (Thinning(0.5, None, 20), 10, (5, 1)),
        (Thinning(30, None, 20), 200, (30, 9)),
        (Thinning(0, 7, 20), math.inf, (0, 7)),
        (Thinning(0.0, 3, 2), 3, (0, 3)),
    ],
)
def test_thinning(thinning: Thinning, planned: float, expected: tuple[int, int]) -> None:
    burn_in, every = thinning.settled(planned)
    assert (burn_in, every) == expected
    if thinning.every is None:
        assert (planned - burn_in) // every <= thinning.max_samples


@pytest.mark.parametrize("thinning, planned", [(Thinning(200), 200), (Thinning(0, 11), 10), (Thinning(0.5), math.inf)])
def test_thinning_that_keeps_nothing_is_refused(thinning: Thinning, planned: float) -> None:
    with pytest.raises(PrivacyConfigError, match=r"keep no sample|run with an end"):
        thinning.settled(planned)


@pytest.mark.parametrize("arguments", [(1.0,), (-1,), (True,), (0.5, 0), (0.5, None, 0), ("half",)])
def test_impossible_thinning_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(PrivacyConfigError, match="must be"):
        Thinning(*arguments)


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="float16"):
        PosteriorSamples(dtype="float64")  # type: ignore[arg-type]
