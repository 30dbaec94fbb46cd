"""Data modules that recipes use: real data where it can be had, and a card that says what it is."""

from __future__ import annotations

from lightning_dp.data.abdomen import AbdominalPhantom, PancreasResponse, ResponseModel
from lightning_dp.data.actg175 import ACTG175DataModule
from lightning_dp.data.arrays import ArrayDataModule, ArrayDataset
from lightning_dp.data.bodies import BodyFatDataModule
from lightning_dp.data.card import DataCard
from lightning_dp.data.chest_xray import ChestXRayDataModule, ChestXRayFolderDataModule, FaintFindings
from lightning_dp.data.cifar import CIFARDataModule
from lightning_dp.data.decathlon import DecathlonDataModule
from lightning_dp.data.digits import DigitsDataModule
from lightning_dp.data.emoji import EmojiImages, find_emoji, read_emoji
from lightning_dp.data.emoji_categories import EmojiDataModule
from lightning_dp.data.fashion_mnist import FashionMNISTDataModule
from lightning_dp.data.food import FoodScenesDataModule, OktoberfestFoodDataModule
from lightning_dp.data.kspace import KSpaceDataModule
from lightning_dp.data.medmnist import MedMNISTDataModule
from lightning_dp.data.region_mnist import RegionMNIST3DDataModule
from lightning_dp.data.volumes import fit_volume

__all__ = (
    "ACTG175DataModule",
    "AbdominalPhantom",
    "ArrayDataModule",
    "ArrayDataset",
    "BodyFatDataModule",
    "CIFARDataModule",
    "ChestXRayDataModule",
    "ChestXRayFolderDataModule",
    "DataCard",
    "DecathlonDataModule",
    "DigitsDataModule",
    "EmojiDataModule",
    "EmojiImages",
    "FaintFindings",
    "FashionMNISTDataModule",
    "FoodScenesDataModule",
    "KSpaceDataModule",
    "MedMNISTDataModule",
    "OktoberfestFoodDataModule",
    "PancreasResponse",
    "RegionMNIST3DDataModule",
    "ResponseModel",
    "find_emoji",
    "fit_volume",
    "read_emoji",
)
