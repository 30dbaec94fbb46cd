"""The `lightning-dp` command: Lightning's command line, with this package's classes known by short names.

```console
lightning-dp fit --config recipes/<name>/config.yaml
lightning-dp fit --config recipes/<name>/config.yaml --trainer.strategy.eps 4
lightning-dp inspect --config recipes/<name>/config.yaml
lightning-dp recipes ls
```

In YAML, `class_path: DPStrategy` is enough; a class outside this package is named by its full path, as usual.
Importing this module needs the core install only; running the command needs the extra `lightning-dp[cli]`.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from typing_extensions import override

# The argument parser resolves a short class name among the classes that have been imported.
import lightning_dp.callbacks
import lightning_dp.data
import lightning_dp.models
import lightning_dp.strategies
import lightning_dp.tasks
from lightning_dp import recipes
from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.inspection import inspect

__all__ = ("InspectingTrainer", "PrivateCLI", "command_line", "main")


class SaveConfigBesideLogs(SaveConfigCallback):
    """Saves the run's configuration in the logger's folder, or in ``default_root_dir`` if that was set.

    With neither, Lightning would write ``config.yaml`` into the current folder, perhaps over the very file that the run was
    given; here nothing is written.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save, if there is a place of its own to save to."""
        if trainer.logger is not None or Path(trainer.default_root_dir).resolve() != Path.cwd():
            super().setup(trainer, pl_module, stage)


class InspectingTrainer(Trainer):
    """A Trainer with one thing more that it can be told to do with a module and its data."""

    def inspect(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Shows how the module would be trained privately, layer by layer, without training it.

        Args:
            model: what ``fit`` would train.
            datamodule: what it would be trained on; one batch is read.
            ckpt_path: accepted, so that a saved configuration of ``fit`` can be used; not read.
            weights_only: accepted likewise.

        Raises:
            SystemExit: with code 1 if something keeps the module from being trained privately.
        """
        if datamodule is not None:
            datamodule.trainer = self
            datamodule.prepare_data()
            datamodule.setup("fit")
        else:
            model.prepare_data()
            model.setup("fit")
        model.trainer = self
        model.configure_model()
        loader = (model if datamodule is None else datamodule).train_dataloader()
        report = inspect(model, next(chain(loader)), loss_reduction=getattr(self.strategy, "loss_reduction", "mean"))
        sys.stdout.write(f"{report}\n")
        if not report.ok:
            raise SystemExit(1)


class PrivateCLI(LightningCLI):
    """`LightningCLI` that explains the one mistake everybody makes with `--trainer.strategy`.

    It repeats nothing of its parent's signature, so a patch release of Lightning cannot break it.
    """

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, and `inspect`, which takes the same configuration as `fit`."""
        return {**LightningCLI.subcommands(), "inspect": {"model", "datamodule"}}

    @override
    def before_instantiate_classes(self) -> None:
        """Refuse a strategy *class* that arrived as a plain string; Lightning would call it invalid."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        strategy = config["trainer"]["strategy"]
        if not isinstance(strategy, str):
            return
        name = strategy.rsplit(".", 1)[-1]
        if name in lightning_dp.strategies.__all__:
            self.parser.error(
                f"{strategy!r} was read as a strategy string, because a class name without settings cannot "
                f"be told from one (Lightning issue 19682). Give it a setting on the command line "
                f"(--trainer.strategy {name} --trainer.strategy.eps 8), or write it in YAML as "
                f"'strategy: {{class_path: {name}, init_args: {{eps: 8}}}}'."
            )


def main(args: list[str] | None = None) -> None:
    """Run `lightning-dp fit|validate|test|predict|inspect`, or `lightning-dp recipes`, which needs no extra.

    Args:
        args: The words after `lightning-dp`. None reads them from the command line.

    Raises:
        SystemExit: With a message, when the parser is not installed or does not accept the arguments, or when a refusal of
            this package ended the run: the message is what there is to know. With ``LIGHTNING_DP_DEBUG=1`` in the environment
            the refusal is raised as it is, with its traceback.
    """
    words = sys.argv[1:] if args is None else args
    if words[:1] == ["recipes"]:
        recipes.main(words[1:])
        return
    if any(find_spec(module) is None for module in ("jsonargparse", "docstring_parser")):
        raise SystemExit(
            "lightning-dp: the command line needs a parser that the core install leaves out. "
            "Install it with: pip install 'lightning-dp[cli]'"
        )
    try:
        command_line(args)
    except (PrivacyConfigError, PrivacyError) as refusal:
        if os.environ.get("LIGHTNING_DP_DEBUG", "0") not in ("", "0"):
            raise
        raise SystemExit(f"lightning-dp: {refusal}") from refusal


def command_line(args: list[str] | None = None, run: bool = True) -> PrivateCLI:
    """Parse the arguments and build trainer, model and data; with ``run``, execute the subcommand too.

    Args:
        args: The words after `lightning-dp`. None reads them from the command line.
        run: Whether a subcommand is expected and executed. If not, the objects wait in the returned `PrivateCLI`.
    """
    return PrivateCLI(
        trainer_class=InspectingTrainer,
        subclass_mode_model=True,
        subclass_mode_data=True,
        # Initial weights and data splits repeat from run to run; privacy noise has no seed to reach.
        seed_everything_default=0,
        # A second run into the same folder replaces its copy of the configuration instead of failing.
        save_config_callback=SaveConfigBesideLogs,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={
            "version": version("lightning-dp"),
            "description": "Private training from the command line. `lightning-dp recipes ls` lists worked examples.",
        },
        args=args,
        run=run,
    )


if __name__ == "__main__":
    main()
