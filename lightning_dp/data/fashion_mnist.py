"""Fashion-MNIST as pixels or as scattering features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from lightning_dp.data.arrays import ArrayDataModule
from lightning_dp.data.card import DataCard
from lightning_dp.data.idx import IMAGES_MAGIC, LABELS_MAGIC, read_idx
from lightning_dp.data.splits import stratified_split
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.optional import require

__all__ = ("FashionMNISTDataModule", "find_fashion_mnist", "read_fashion_mnist")

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_FILES: Mapping[str, tuple[str, str]] = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def _existing(folder: Path, stem: str) -> Path | None:
    return next((path for path in (folder / f"{stem}.gz", folder / stem) if path.is_file()), None)


def find_fashion_mnist(root: str | Path | None = None) -> Path | None:
    """Folder that holds all four IDX files, or ``None``.

    Looks in ``root``, then in the layout a torchvision download leaves under ``root``; without a ``root``, in the
    folder of Debian's package ``dataset-fashion-mnist``.

    Raises:
        PrivacyConfigError: if ``root`` is given and is no folder.
        FileNotFoundError: if some of the files are in ``root`` and others are not. Another copy would then take the place of
            what the user pointed at, without a word.
    """
    if root is not None and not Path(root).is_dir():
        raise PrivacyConfigError(f"root={str(root)!r} is not a folder. Create it, or leave root=None.")
    folders = [DEBIAN_FOLDER] if root is None else [Path(root), Path(root) / "FashionMNIST" / "raw"]
    stems = [stem for pair in _FILES.values() for stem in pair]
    for folder in folders:
        missing = [stem for stem in stems if _existing(folder, stem) is None]
        if not missing:
            return folder
        if root is not None and len(missing) < len(stems):
            raise FileNotFoundError(
                f"{folder} has some of Fashion-MNIST's four files, and no {', '.join(missing)} (plain or .gz). Add what is "
                "missing, or leave root=None to take another copy."
            )
    return None


def _download(root: Path) -> Path:
    datasets = require(
        "torchvision.datasets", "recipes", f"Fashion-MNIST, which is not in {DEBIAN_FOLDER}: its download"
    )
    try:
        datasets.FashionMNIST(str(root), train=True, download=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"Fashion-MNIST is neither in {root} nor in {DEBIAN_FOLDER}, and the download failed ({error}). "
            f"Install Debian's package dataset-fashion-mnist, or pass root= a folder with the four IDX files."
        ) from error
    return root / "FashionMNIST" / "raw"


def read_fashion_mnist(folder: Path, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Images float32 ``(n, 1, 28, 28)`` in [0, 1] and labels int64 ``(n,)`` of one part.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, or images and labels do not belong together.
    """
    paths = []
    for stem in _FILES[part]:
        path = _existing(folder, stem)
        if path is None:
            raise FileNotFoundError(
                f"{folder} has no {stem}.gz (nor {stem}). Pass root= the folder with the IDX files."
            )
        paths.append(path)
    images, labels = read_idx(paths[0], IMAGES_MAGIC), read_idx(paths[1], LABELS_MAGIC)
    if images.shape[1:] != (28, 28) or len(images) != len(labels):
        raise ValueError(
            f"{paths[0].name} has shape {images.shape} and {paths[1].name} {labels.shape}; "
            f"expected (n, 28, 28) and (n,)."
        )
    if labels.size and labels.max() > 9:
        raise ValueError(f"{paths[1]} holds the label {labels.max()}; Fashion-MNIST has the classes 0 to 9.")
    return torch.from_numpy(images).unsqueeze(1).float() / 255, torch.from_numpy(labels).long()


class FashionMNISTDataModule(ArrayDataModule):
    """60,000 + 10,000 real images of clothing, 28 x 28, ten classes (Xiao, Rasul & Vollgraf 2017, arXiv 1708.07747).

    The files are looked for in ``root``, else in the folder of Debian's package ``dataset-fashion-mnist``; failing
    both, torchvision downloads them into ``root`` (or ``./data``). The train loader is an ordinary shuffling
    DataLoader; a private strategy replaces its sampler by its own.

    With ``features="scattering"`` each image is replaced, once, in ``setup``, by its scattering features
    (:class:`~lightning_dp.models.scattering.ScatteringTransform`, 81 x 7 x 7, normalised within the image). That
    is a fixed function of the one image, so it spends no privacy and the guarantee is for the images.

    Args:
        root: Folder with the four IDX files (plain or ``.gz``), or the root of a torchvision download.
        batch_size: Batch size of the train loader; under a private strategy the expected batch size B.
        features: ``"pixels"``, float32 in [0, 1], or ``"scattering"``, which takes about two minutes and 1.1 GB for all
            70,000 images on two cores.
        val_size: Training images held out for validation, stratified. 0 trains on all of them. Choosing
            hyper-parameters on them is not accounted in any eps, as they are private records too unless declared
            public.
        seed: Seed of the split.
        normalisation_groups: Passed to the scattering transform.
        eval_batch_size: Batch size of the validation and test loaders.
        num_workers: Worker processes of the loaders.

    Shape:
        Batches ``(images, labels)``: float32 ``(N, 1, 28, 28)`` or ``(N, 81, 7, 7)``, int64 ``(N,)``.
    """

    num_classes = 10
    card = DataCard(
        name="Fashion-MNIST",
        licence="MIT",
        n=60_000,
        real=True,
        unit="one image",
        source="H. Xiao, K. Rasul, R. Vollgraf, Zalando Research, 2017, arXiv 1708.07747",
    )

    def __init__(
        self,
        root: str | Path | None = None,
        batch_size: int = 4096,
        features: Literal["pixels", "scattering"] = "pixels",
        val_size: int = 0,
        seed: int = 0,
        normalisation_groups: int | None = 27,
        eval_batch_size: int = 2000,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, has_validation=val_size > 0)
        if features not in ("pixels", "scattering"):
            raise PrivacyConfigError(f"features={features!r} is unknown; choose 'pixels' or 'scattering'.")
        self.root, self.features = root, features
        self.val_size, self.seed, self.normalisation_groups = val_size, seed, normalisation_groups

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one sample."""
        return (1, 28, 28) if self.features == "pixels" else (81, 7, 7)

    @override
    def prepare_data(self) -> None:
        """Download, if the files are on no known path."""
        if find_fashion_mnist(self.root) is None and find_fashion_mnist() is None:
            _download(Path(self.root or "data"))

    def _folder(self) -> Path:
        return (
            find_fashion_mnist(self.root) or find_fashion_mnist() or Path(self.root or "data") / "FashionMNIST" / "raw"
        )

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read what the stage needs, once: train and validation for ``fit``, test for ``test``."""
        if stage != "test" and "train" not in self._sets:
            self._take(self._training())
        if stage in (None, "test") and "test" not in self._sets:
            self._take(self._testing())

    @override
    def arrays(self) -> dict[str, NDArray[Any]]:
        return {**self._training(), **self._testing()}

    def _training(self) -> dict[str, NDArray[Any]]:
        images, labels = (tensor.numpy() for tensor in self._read("train"))
        kept, held_out = stratified_split(labels, self.val_size, self.seed, "val_size=")
        if not len(held_out):  # no copy of the features where nothing is held out
            return {"train/inputs": images, "train/labels": labels}
        parts = {"train": kept, "val": held_out}
        return {
            f"{part}/{name}": column[index]
            for part, index in parts.items()
            for name, column in (("inputs", images), ("labels", labels))
        }

    def _testing(self) -> dict[str, NDArray[Any]]:
        images, labels = self._read("test")
        return {"test/inputs": images.numpy(), "test/labels": labels.numpy()}

    def _read(self, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        images, labels = read_fashion_mnist(self._folder(), part)
        return self._transformed(images), labels

    def _transformed(self, images: Tensor) -> Tensor:
        if self.features == "pixels":
            return images
        from lightning_dp.models.scattering import ScatteringTransform

        transform = ScatteringTransform((28, 28), normalisation_groups=self.normalisation_groups)
        result = torch.empty(len(images), *self.input_shape)
        rank_zero_info(
            f"Scattering features of {len(images)} images (one-off, data-independent, spends no privacy) ..."
        )
        with torch.no_grad():
            for start in range(0, len(images), 1000):
                result[start : start + 1000] = transform(images[start : start + 1000])
        return result
