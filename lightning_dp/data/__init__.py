"""Data modules that recipes use: real data where it can be had, and a card that says what it is."""

from __future__ import annotations

from lightning_dp.data.abdomen import AbdominalPhantom, PancreasResponse, ResponseModel
from lightning_dp.data.actg175 import ACTG175DataModule
from lightning_dp.data.arrays import ArrayDataModule, ArrayDataset
from lightning_dp.data.bodies import BodyFatDataModule
from lightning_dp.data.card import DataCard
from lightning_dp.data.cifar import CIFARDataModule
from lightning_dp.data.digits import DigitsDataModule
from lightning_dp.data.emoji import EmojiImages, find_emoji, read_emoji
from lightning_dp.data.emoji_categories import EmojiDataModule
from lightning_dp.data.fashion_mnist import FashionMNISTDataModule
from lightning_dp.data.kspace import KSpaceDataModule

__all__ = (
    "ACTG175DataModule",
    "AbdominalPhantom",
    "ArrayDataModule",
    "ArrayDataset",
    "BodyFatDataModule",
    "CIFARDataModule",
    "DataCard",
    "DigitsDataModule",
    "EmojiDataModule",
    "EmojiImages",
    "FashionMNISTDataModule",
    "KSpaceDataModule",
    "PancreasResponse",
    "ResponseModel",
    "find_emoji",
    "read_emoji",
)
