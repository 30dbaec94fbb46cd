"""`lightning-dp recipes`: the worked examples that come with the package, listed and copied."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

__all__ = ("Recipe", "copy_recipe", "find_recipes", "main")

PACKAGE = Path(__file__).resolve().parent
NOT_COPIED = shutil.ignore_patterns("__pycache__", ".*")
COMMAND = r"^(?:lightning-dp \w+ --config|python) recipes/{name}/\S+"


@dataclass(frozen=True)
class Recipe:
    """One worked example: settings or a script, and a README with what was measured.

    Attributes:
        name: its folder's name.
        folder: where it is installed.
    """

    name: str
    folder: Path

    @property
    def about(self) -> str:
        """The first heading of its README."""
        for line in (self.folder / "README.md").read_text(encoding="utf-8").splitlines():
            if line.startswith("#"):
                return line.lstrip("#").strip()
        return ""

    def command(self, folder: Path) -> str:
        """What to type to run a copy: the first command that its README gives, with the copy's folder in it."""
        text = (self.folder / "README.md").read_text(encoding="utf-8")
        found = re.search(COMMAND.format(name=re.escape(self.name)), text, re.MULTILINE)
        if found is None:
            return f"(see {folder / 'README.md'})"
        return found.group().replace(f"recipes/{self.name}", folder.as_posix())


def find_recipes() -> dict[str, Recipe]:
    """The recipes by name: those inside an installed package, or beside the package in a checkout.

    Raises:
        FileNotFoundError: there are none.
    """
    for place in (PACKAGE / "_recipes", PACKAGE.parent / "recipes"):
        found = {path.parent.name: Recipe(path.parent.name, path.parent) for path in sorted(place.glob("*/README.md"))}
        if found:
            return found
    raise FileNotFoundError(
        "the recipes are not installed beside the package. Install lightning-dp again from its wheel, or work in a checkout."
    )


def copy_recipe(name: str, destination: str | Path | None = None, force: bool = False) -> tuple[Recipe, Path]:
    """Copies a recipe's folder.

    Args:
        name: name of the recipe.
        destination: the folder to make; ``None``: the recipe's name, in the current folder.
        force: write into a folder that exists. Files of the same names are replaced, others stay.

    Returns:
        The recipe and the folder.

    Raises:
        ValueError: there is no such recipe, or the destination lies within the recipes themselves.
        FileExistsError: the destination exists, and ``force`` is not given; or it is no folder.
    """
    recipes = find_recipes()
    if name not in recipes:
        near = get_close_matches(name, recipes, n=3, cutoff=0.5)
        known = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(recipes)}."
        raise ValueError(f"there is no recipe {name!r}: {known}")
    recipe, target = recipes[name], Path(name if destination is None else destination)
    if target.resolve().is_relative_to(recipe.folder.resolve()):
        raise ValueError(f"{target} lies in the recipe's own folder: choose another place.")
    if target.exists() and not (force and target.is_dir()):
        fix = "choose another name, or add --force to write into it" if target.is_dir() else "choose another name"
        raise FileExistsError(f"{target} exists: {fix}.")
    shutil.copytree(recipe.folder, target, ignore=NOT_COPIED, dirs_exist_ok=True)
    return recipe, target


def main(args: list[str]) -> None:
    """Run ``lightning-dp recipes``.

    Args:
        args: the words after it: ``ls``, or ``cp NAME [DEST] [--force]``.

    Raises:
        SystemExit: with a message, for a recipe that does not exist or a place that is taken.
    """
    parser = argparse.ArgumentParser(
        "lightning-dp recipes", description="The worked examples that come with lightning-dp."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ls|cp")
    actions.add_parser("ls", help="list the recipes")
    copy = actions.add_parser("cp", help="copy a recipe, to run and change it")
    copy.add_argument("name", metavar="NAME")
    copy.add_argument("destination", metavar="DEST", nargs="?", help="folder to make (default: NAME)")
    copy.add_argument("--force", action="store_true", help="write into a folder that exists")
    chosen = parser.parse_args(args)
    try:
        if chosen.action == "ls":
            recipes = find_recipes()
            width = max(map(len, recipes))
            sys.stdout.writelines(f"{name:<{width}}  {recipe.about}\n" for name, recipe in recipes.items())
            return
        recipe, target = copy_recipe(chosen.name, chosen.destination, chosen.force)
    except (ValueError, OSError) as error:
        raise SystemExit(f"lightning-dp recipes: {error}") from error
    sys.stdout.write(f"{target}: {recipe.about}\nRun it with: {recipe.command(target)}\n")
