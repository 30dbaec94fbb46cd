"""Samples kept in a small type, and volumes brought to one size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_dp.data import fit_volume
from lightning_dp.data.volumes import CompactDataset
from lightning_dp.errors import PrivacyConfigError


def test_the_first_column_is_scaled_and_the_others_are_left() -> None:
    image, label = CompactDataset([np.full((2, 1, 2), 51, np.uint8), np.array([3, 4])], 1 / 255)[1]
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, torch.full((1, 2), 0.2))
    assert label == 4


def test_volumes_are_cropped_and_filled_up_around_the_centre() -> None:
    volume = torch.arange(1.0, 6.0).reshape(1, 5, 1, 1).expand(1, 5, 2, 3)
    found = fit_volume(volume, (3, 4, 3), value=-1)
    assert found.shape == (1, 3, 4, 3)
    assert found[0, :, 1, 1].tolist() == [2, 3, 4]
    assert found[0, 0, :, 0].tolist() == [-1, 2, 2, -1]
    assert torch.equal(fit_volume(volume, (5, 2, 3)), volume)
    assert fit_volume(volume[0], (8, 8, 8)).shape == (8, 8, 8)


def test_every_volume_fits_one_size_afterwards() -> None:
    sizes = [(3, 9, 4), (8, 2, 5), (6, 6, 6)]
    assert torch.stack([fit_volume(torch.ones(1, *size), (6, 5, 4)) for size in sizes]).shape == (3, 1, 6, 5, 4)


@pytest.mark.parametrize("size", [(2, 2, 2, 2), (0, 2, 2)])
def test_sizes_that_cannot_be_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(PrivacyConfigError, match="cannot be brought to the size"):
        fit_volume(torch.ones(2, 2, 2), size)
