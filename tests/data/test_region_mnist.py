"""RegionMNIST3D: crops and lesions on made-up brains, and the real files where they are installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_dp.data import RegionMNIST3DDataModule
from lightning_dp.data.brains import (
    ATLAS,
    COLIN,
    MNI,
    Brain,
    Warps,
    find_brains,
    read_brain,
    read_centres,
    warped_crops,
)
from lightning_dp.data.region_mnist import MARGIN, REGIONS, plant_lesions
from lightning_dp.errors import PrivacyConfigError

pytest.importorskip("nibabel")
pytestmark = pytest.mark.usefixtures("_cache")
STILL = Warps(0, 0, 0, 0, 0, 0)


@pytest.fixture
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_DP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    from tests.data.brains import write_brains

    folder = tmp_path / "brains"
    folder.mkdir()
    return write_brains(folder)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def module(root: Path, **arguments: object) -> RegionMNIST3DDataModule:
    options = {"n_train": 22, "n_val": 11, "n_test": 22, "root": root, **arguments}
    data = RegionMNIST3DDataModule(**options)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    return data


def whole(loader: object) -> list[Tensor]:
    return [torch.cat(column) for column in zip(*loader, strict=True)]  # type: ignore[call-overload]


# --- crops -------------------------------------------------------------------------------------------------------


def test_an_unwarped_crop_is_the_image_in_the_order_z_x_y() -> None:
    image = torch.rand(20, 24, 28, generator=generator())
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [-10, -20, -30]
    centre = torch.tensor([[10.5, 11.5, 13.5]]) * 2 + torch.tensor([-10, -20, -30])
    crop = warped_crops(Brain(image, affine), centre, generator(), STILL, size=8, spacing=2.0)
    torch.testing.assert_close(crop[0], image[7:15, 8:16, 10:18].permute(2, 0, 1), atol=1e-5, rtol=0)


def test_warps_have_the_size_that_they_are_said_to_have() -> None:
    """On an image of coordinates the crop's middle is where the centre went: the shift alone, to within its error."""
    x, y, z = torch.meshgrid(*[torch.arange(60.0)] * 3, indexing="ij")
    centres = torch.full((400, 3), 29.5)
    for axis, image in enumerate((x, y, z)):
        crops = warped_crops(Brain(image, np.eye(4)), centres, generator(), Warps(2, 0, 0, 0, 0, 0), 4, 1.0)
        assert float(crops.mean((1, 2, 3)).std()) == pytest.approx(2, rel=0.15)
        turned = warped_crops(Brain(image, np.eye(4)), centres, generator(), Warps(0, 10, 0, 0, 0, 0), 8, 1.0)
        along = turned.permute(0, 2, 3, 1).movedim(axis + 1, 1)  # to x, y, z; then the axis first
        slope = (along[:, -1] - along[:, 0]).mean((1, 2)) / 7
        # The cosine of a rotation about the two other axes.
        assert float(slope.mean()) == pytest.approx(1 - np.radians(10) ** 2, abs=0.01)


def test_no_two_crops_are_alike() -> None:
    image = torch.rand(20, 20, 20, generator=generator())
    crops = warped_crops(Brain(image, np.eye(4)), torch.full((6, 3), 9.5), generator(), Warps(), 8, 1.0)
    assert len(crops.flatten(1).unique(dim=0)) == 6


# --- lesions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planes", [("z",), ("x", "y"), ("z", "x", "y")])
def test_lesions_are_in_the_slice_that_is_named_and_in_no_other(planes: tuple[str, ...]) -> None:
    before = torch.randn(40, 28, 28, 28, generator=generator())
    chosen = torch.arange(40) % 4 != 0
    after = before.clone()
    planted = plant_lesions(after, chosen, planes, 3.0, generator(1))
    changed = (after - before).abs() > 1e-3
    assert torch.equal(planted == -1, ~chosen)
    assert not changed[~chosen].any()
    seen = set()
    for i in torch.nonzero(chosen).flatten():
        axis, index = divmod(int(planted[i]), 28)
        seen.add("zxy"[axis])
        others = [k for k in range(3) if k != axis]
        assert torch.nonzero(changed[i].any(others[1]).any(others[0])).flatten().tolist() == [index]
        assert MARGIN <= index < 28 - MARGIN
        assert 2.8 < float((after - before)[i].max()) <= 3.0
    assert seen == set(planes)


def test_lesions_sit_on_tissue() -> None:
    volumes = torch.full((50, 28, 28, 28), -1.0)
    volumes[:, :, 14:] = 1.0
    before = volumes.clone()
    plant_lesions(volumes, torch.ones(50, dtype=torch.bool), ("z",), 3.0, generator())
    centre = (volumes - before).flatten(1).argmax(1)
    assert float((before.flatten(1).gather(1, centre[:, None]) > 0).float().mean()) > 0.95


# --- the data module ---------------------------------------------------------------------------------------------


def test_regions_are_balanced_and_volumes_standardised(root: Path) -> None:
    data = module(root)
    inputs, labels = whole(data.train_dataloader())
    assert (inputs.shape, inputs.dtype) == ((22, 1, 28, 28, 28), torch.float32)
    assert torch.bincount(labels).tolist() == [2] * 11
    torch.testing.assert_close(inputs.mean((1, 2, 3, 4)), torch.zeros(22), atol=1e-2, rtol=0)
    torch.testing.assert_close(inputs.std((1, 2, 3, 4)), torch.ones(22), atol=1e-2, rtol=0)
    assert data.num_classes == 11


def test_the_lesions_slice_comes_with_every_part(root: Path) -> None:
    data = module(root, task="lesion", planes=["x"])
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        _, labels, planted = whole(loader)
        assert torch.equal(labels == 1, planted >= 0)
        assert abs(int(labels.sum()) - len(labels) // 2) <= 1
        assert set((planted[planted >= 0] // 28).tolist()) == {1}


def test_the_test_part_is_of_the_other_brain(root: Path) -> None:
    """The made-up brains have stripes across x and across z."""
    data = module(root)

    def sharpest(x: Tensor) -> int:
        return int(torch.stack([(x.diff(dim=d) ** 2).mean() for d in (2, 3, 4)]).argmax())

    assert [sharpest(whole(loader)[0]) for loader in (data.train_dataloader(), data.val_dataloader())] == [1, 1]
    assert sharpest(whole(data.test_dataloader())[0]) == 0


def test_parts_share_no_warp_and_a_seed_is_a_data_set(root: Path) -> None:
    data = module(root)
    parts = [whole(loader)[0] for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]
    together = torch.cat(parts).flatten(1)
    assert len(together.unique(dim=0)) == len(together)
    # Not even the same place twice: the nearest volume of another part is far away.
    distance = torch.cdist(parts[0].flatten(1), parts[1].flatten(1)) / 28**1.5
    assert float(distance.min()) > 0.1
    assert torch.equal(whole(module(root).test_dataloader())[0], parts[2])
    assert not torch.equal(whole(module(root, seed=1).test_dataloader())[0], parts[2])


def test_without_validation_there_is_none(root: Path) -> None:
    data = module(root, n_val=0)
    assert "val" not in data._sets


def test_what_cannot_be_is_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PrivacyConfigError, match="choose 'region' or 'lesion'"):
        RegionMNIST3DDataModule(task="organ")  # type: ignore[arg-type]
    with pytest.raises(PrivacyConfigError, match="choose some of 'z', 'x', 'y'"):
        RegionMNIST3DDataModule(planes=[])
    with pytest.raises(FileNotFoundError, match="apt-get install mricron-data"):
        RegionMNIST3DDataModule(root=tmp_path).prepare_data()
    (root / MNI).unlink()
    monkeypatch.setattr("lightning_dp.optional.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"MNI152 brain needs nilearn.*lightning-dp\[data\]"):
        find_brains(root)
    with pytest.raises(ValueError, match="names no region Nowhere_L, Nowhere_R"):
        read_centres({ATLAS: root / ATLAS, "aal.nii.txt": root / "aal.nii.txt"}, ["Nowhere"])


def test_real_brains_lie_in_one_space() -> None:
    try:
        files = find_brains()
    except (FileNotFoundError, ModuleNotFoundError) as error:
        pytest.skip(str(error))
    centres = read_centres(files, REGIONS)
    assert centres.shape == (11, 2, 3)
    assert bool((centres[:, 0, 0] < 0).all())  # left is the negative side
    assert bool((centres[:, 1, 0] > 0).all())
    # The left hippocampus in the coordinates of the atlas.
    np.testing.assert_allclose(centres[REGIONS.index("Hippocampus"), 0], [-25, -21, -10], atol=2)
    points = torch.from_numpy(centres.reshape(-1, 3))
    one, other = (warped_crops(read_brain(files[name]), points, generator(), STILL) for name in (COLIN, MNI))
    assert float(one.mean()) > 0.3
    # The same places look alike in the two brains, and not the same.
    alike = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
    assert 0.6 < float(alike) < 0.95
