"""The fifteen classes of the Oktoberfest Food Dataset, how often each is seen, and the emoji that stands for it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ("FOOD_CLASSES", "NUM_BOXES", "NUM_IMAGES", "NUM_TEST", "FoodClass")

#: Images and boxes of the data set, and its test images (Ziller et al. 2019, arXiv 1912.05007, and its repository).
NUM_IMAGES, NUM_BOXES, NUM_TEST = 1110, 2696, 86


class FoodClass(NamedTuple):
    """One class; its number is its place in `FOOD_CLASSES`.

    Attributes:
        name: As in the data set, without umlauts.
        images: Images that show it.
        boxes: Boxes of it in all images.
        emoji: Short name of the picture that the drawn scenes use for it. The likeness is loose.
    """

    name: str
    images: int
    boxes: int
    emoji: str


FOOD_CLASSES = (
    FoodClass("Bier", 300, 436, "beer"),
    FoodClass("Bier Mass", 200, 299, "beers"),
    FoodClass("Weissbier", 229, 298, "champagne"),
    FoodClass("Cola", 165, 210, "cup_with_straw"),
    FoodClass("Wasser", 198, 284, "glass_of_milk"),
    FoodClass("Curry-Wurst", 120, 159, "hotdog"),
    FoodClass("Weisswein", 81, 105, "wine_glass"),
    FoodClass("A-Schorle", 90, 98, "beverage_box"),
    FoodClass("Jaegermeister", 43, 152, "tumbler_glass"),
    FoodClass("Pommes", 110, 126, "fries"),
    FoodClass("Burger", 105, 122, "hamburger"),
    FoodClass("Williamsbirne", 50, 121, "pear"),
    FoodClass("Alm-Breze", 100, 114, "pretzel"),
    FoodClass("Brotzeitkorb", 65, 72, "takeout_box"),
    FoodClass("Kaesespaetzle", 92, 100, "spaghetti"),
)
