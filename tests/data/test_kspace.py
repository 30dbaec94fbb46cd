"""k-space by signal equations: the closed forms of the signals, no subject in two parts, and bad input by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lightning_dp.data import KSpaceDataModule
from lightning_dp.data.kspace import make_kspace
from lightning_dp.data.mri import SEQUENCES, TISSUES, acquire, coil_maps, phase_maps, tissue_maps, warps
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models import ContrastHistogram2d


def small_maps() -> NDArray[np.float32]:
    """Three nested balls: fluid inside white matter inside grey matter."""
    z, y, x = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 20), np.linspace(-1, 1, 16), indexing="ij")
    r = np.sqrt(x**2 + y**2 + z**2)
    return np.stack([(r >= 0.7) & (r < 0.9), (r >= 0.3) & (r < 0.7), r < 0.3]).astype(np.float32)


def module(**arguments: Any) -> KSpaceDataModule:
    settings: dict[str, Any] = {
        "batch_size": 8,
        "n_subjects": 6,
        "n_test": 3,
        "n_val": 2,
        "size": 8,
        "maps": small_maps(),
    }
    return KSpaceDataModule(**{**settings, **arguments})


def signal(number: int, tissue: int) -> float:
    t1, t2, density = (torch.tensor(v) for v in (TISSUES[tissue].t1, TISSUES[tissue].t2, TISSUES[tissue].density))
    return float(SEQUENCES[number].signal(t1, t2, density, torch.tensor(1.0), torch.tensor(1.0)))


def test_signals_by_hand_and_the_contrasts_that_radiologists_know() -> None:
    assert signal(0, 1) == pytest.approx(0.7 * (1 - math.exp(-500 / 830)) * math.exp(-10 / 75))
    inverted = 1 - 2 * math.exp(-2500 / 1330) + math.exp(-9000 / 1330)
    assert signal(3, 0) == pytest.approx(0.8 * inverted * math.exp(-1.0), rel=1e-6)
    grey, white, fluid = 0, 1, 2
    assert signal(0, white) > signal(0, grey) > signal(0, fluid)  # T1-weighted: fluid is dark
    assert signal(1, fluid) > signal(1, grey) > signal(1, white)  # T2-weighted: fluid is bright
    assert abs(signal(3, fluid)) < 0.2 * signal(3, white)  # FLAIR: fluid is suppressed
    pd = [signal(2, t) for t in (grey, white, fluid)]
    assert max(pd) / min(pd) < 1.3  # density-weighted: little contrast


def test_acquisition_keeps_the_centre_and_adds_circular_noise_of_the_level_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 2, 16, 16, dtype=torch.complex64, generator=generator) + 3
    clean = acquire(images, 8, torch.zeros(40), generator)
    assert torch.equal(clean[:, :, 4, 4], torch.fft.fft2(images, norm="ortho")[:, :, 0, 0])
    assert acquire(images, 16, torch.zeros(40), generator).abs().square().sum() == pytest.approx(
        float(images.abs().square().sum()), rel=1e-4
    )
    levels = torch.linspace(0.1, 2.0, 40)
    noise = acquire(images, 8, levels, generator) - clean
    power = clean.abs().square().mean((1, 2, 3)) / 2
    unit = noise / (power.sqrt() * levels).view(-1, 1, 1, 1)
    for part in (unit.real, unit.imag):  # 5120 numbers: limits of five standard errors
        assert abs(float(part.std()) - 1) < 5 / (2 * 5120) ** 0.5
    assert abs(complex(unit.square().mean())) < 5 * 2 / 5120**0.5


def test_maps_of_coils_phases_and_warps_are_smooth_and_as_described() -> None:
    generator = torch.Generator().manual_seed(1)
    coils, phases = coil_maps(3, 2, 32, generator), phase_maps(3, 32, generator)
    assert coils.shape == (3, 2, 32, 32)
    torch.testing.assert_close(phases.abs(), torch.ones(3, 32, 32))
    assert float((phases[:, 1:] / phases[:, :-1]).angle().abs().max()) < 0.8
    assert float(coils.abs().max()) <= 1
    field = warps(5, 32, 1.0, generator)
    assert field.shape == (5, 32, 32, 2)
    still = warps(2, 32, 0.0, generator)
    torch.testing.assert_close(still[0], still[1])


def test_the_same_seed_gives_the_same_scans_in_any_process() -> None:
    one, other = module().arrays(), module().arrays()
    assert all(np.array_equal(one[key], other[key]) for key in one)
    assert not np.array_equal(one["train/inputs"], module(seed=1).arrays()["train/inputs"])
    more = module(n_subjects=7).arrays()
    assert np.array_equal(one["test/inputs"], more["test/inputs"])


def test_no_subject_is_in_two_parts_and_each_has_all_sequences() -> None:
    found = module(slices=3).arrays()
    owners = {part: set(found[f"{part}/unit_id"]) for part in ("train", "val", "test")}
    assert [len(owners[part]) for part in ("train", "val", "test")] == [6, 2, 3]
    assert sum(map(len, owners.values())) == len(set.union(*owners.values()))
    assert found["train/inputs"].dtype == np.complex64
    assert found["train/inputs"].shape == (6 * 3 * 4, 2, 8, 8)
    for subject in owners["train"]:
        labels = found["train/labels"][found["train/unit_id"] == subject]
        assert np.array_equal(np.bincount(labels), [3, 3, 3, 3])


def test_the_raw_scale_does_not_give_the_class_away() -> None:
    """Receiver gains differ by up to 16, so that the sequences' mean levels lie well within one another's spread."""
    found = make_kspace(small_maps(), 60, 2, 8, 1, 0.05, 0)
    level = np.log(np.abs(found["inputs"]).reshape(len(found["labels"]), -1).mean(1))
    means = [level[found["labels"] == k].mean() for k in range(4)]
    assert max(means) - min(means) < 2.5 * min(level[found["labels"] == k].std() for k in range(4))


def test_loaders_give_complex_batches_and_units(tmp_path: Path) -> None:
    data = module()
    data.setup()
    inputs, labels = next(iter(data.train_dataloader()))
    assert inputs.dtype == torch.complex64
    assert inputs.shape == (8, 2, 8, 8)
    assert labels.dtype == torch.int64
    assert len(data.train_dataloader().dataset.unit_id) == 6 * 2 * 4  # type: ignore[attr-defined]
    assert "stand-in" in str(data.card)
    assert not data.card.real


def test_template_maps_are_real_anatomy_and_cached(tmp_path: Path) -> None:
    pytest.importorskip("nilearn", reason="the tissue maps come with nilearn")
    pytest.importorskip("nibabel", reason="nibabel reads the tissue maps")
    maps = tissue_maps(6)
    assert maps.shape == (3, 31, 38, 32)
    assert 0 <= maps.min() <= maps.max() <= 1
    assert (maps.sum(0) <= 1 + 1e-5).all()
    grey, white, _ = maps.sum((1, 2, 3)) * 6**3 / 1000  # millilitres
    assert 500 < white < grey < 1200
    data = module(maps=None, cache_dir=str(tmp_path))
    first = data.arrays()
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".npz"
    assert np.array_equal(module(maps=None, cache_dir=str(tmp_path)).arrays()["train/inputs"], first["train/inputs"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: module(size=65).arrays(), "at most 64"),
        (lambda: module(slices=0).arrays(), "positive"),
        (lambda: module(n_subjects=0), "at least one subject"),
        (lambda: module(maps=small_maps()[:2]).arrays(), "one for each tissue"),
        (lambda: module(maps=np.zeros_like(small_maps())).arrays(), "no grey matter"),
    ],
)
def test_bad_input_is_named(make: Any, message: str) -> None:
    with pytest.raises(PrivacyConfigError, match=message):
        make()


def test_missing_packages_are_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_dp.optional.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"nilearn.*lightning-dp\[data\]"):
        tissue_maps()


def test_contrast_features_are_a_fixed_function_of_each_scan() -> None:
    raw, found = (module(features=features, size=16) for features in ("kspace", "contrast"))
    raw.setup()
    found.setup()
    layer = ContrastHistogram2d(2, 16)
    for part in ("train", "val", "test"):
        scans, features = raw.arrays()[f"{part}/inputs"], found.arrays()[f"{part}/inputs"]
        torch.testing.assert_close(torch.from_numpy(features), layer(torch.from_numpy(scans)))
        assert np.array_equal(raw.arrays()[f"{part}/unit_id"], found.arrays()[f"{part}/unit_id"])
    with pytest.raises(PrivacyConfigError, match="choose 'kspace' or 'contrast'"):
        module(features="wavelets")
