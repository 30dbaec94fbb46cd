"""Food at the checkout of a beer tent: the Oktoberfest Food Dataset's format, a reader, and drawn scenes in its place."""

from __future__ import annotations

from lightning_dp.data.food.classes import FOOD_CLASSES, FoodClass
from lightning_dp.data.food.labels import LabelledImage, read_food_labels, write_food_labels
from lightning_dp.data.food.modules import FoodScenesDataModule, OktoberfestFoodDataModule
from lightning_dp.data.food.saturation import normalise_saturation
from lightning_dp.data.food.scenes import Scenes, food_sprites, make_scenes
from lightning_dp.data.food.voc import read_voc

__all__ = (
    "FOOD_CLASSES",
    "FoodClass",
    "FoodScenesDataModule",
    "LabelledImage",
    "OktoberfestFoodDataModule",
    "Scenes",
    "food_sprites",
    "make_scenes",
    "normalise_saturation",
    "read_food_labels",
    "read_voc",
    "write_food_labels",
)
