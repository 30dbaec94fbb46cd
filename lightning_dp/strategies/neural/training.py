"""Release once, then train on the cache: the plumbing of NeuralDPStrategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_dp import _compat
from lightning_dp.accounting import PrivacyLedger, PrivacySettings, PrivacySpent
from lightning_dp.errors import PrivacyConfigError, PrivacyError, PrivacyWarning
from lightning_dp.gradients import NoiseSource
from lightning_dp.sampling import why_not_private
from lightning_dp.strategies.neural.arguments import labels_in_words
from lightning_dp.strategies.neural.batches import BatchLayout, Template
from lightning_dp.strategies.neural.budget import ReleaseBudget
from lightning_dp.strategies.neural.cache import ReleasedLoader, Releases
from lightning_dp.strategies.neural.inference import Inference
from lightning_dp.strategies.neural.layer import evaluating, layer_of, own_parameters, replaced
from lightning_dp.strategies.neural.messages import announcement, cautions, refusals, unfrozen_upstream
from lightning_dp.strategies.neural.ranks import average_over_ranks
from lightning_dp.strategies.neural.release import DTYPES, Mechanism, Releaser, announce_size
from lightning_dp.strategies.neural.saved import Kept, save_releases
from lightning_dp.strategies.processes import Processes, ProcessStrategy
from lightning_dp.strategies.step import step_arguments

__all__ = ("Labels", "ReleaseTraining")

CHECKPOINT_KEY = "lightning_dp"
Labels = Literal["public", "randomized"]


class ReleaseTraining(ProcessStrategy):
    """Releases what ``mechanism`` says of each training sample, and trains on that.

    **Guarantee**: a release is charged to the append-only ledger before anything of it exists; after it, no raw sample is in
    what ``training_step`` gets, nor in what its named layer returns.

    Args:
        mechanism: what is released of each sample.
        budget: eps or noise, and the ledger.
        layout: which parts of a batch are inputs and which labels.
        labels: what protects the labels.
        inference_noise: whether ``test`` and ``predict`` keep the noise.
        save_releases: whether checkpoints hold the releases.
        seed: for tests only.
        processes: Lightning's own arguments.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        budget: ReleaseBudget,
        layout: BatchLayout,
        *,
        labels: Labels | None,
        inference_noise: bool,
        save_releases: bool,
        seed: int | None,
        processes: Processes,
    ) -> None:
        super().__init__(processes)
        self._mechanism, self._budget, self._layout = mechanism, budget, layout
        self._labels: Labels | None = labels
        self._inference = Inference(mechanism.layer, layout, mechanism.bound, budget.relation, inference_noise)
        self._save_releases, self._seed = save_releases, seed
        self._user_loader: DataLoader[Any] | None = None  # the raw data: let go once they are released
        self._loader: ReleasedLoader | None = None
        self._kept = Kept()
        self._upstream: tuple[str, ...] = ()
        self._fixed: list[tuple[str, nn.Parameter]] = []
        self._indices = torch.empty(0, dtype=torch.int64)
        self._eps_so_far: tuple[int, float] | None = None

    # --- what a run reports -------------------------------------------------------------------------------------------

    @property
    def ledger(self) -> PrivacyLedger:
        """Everything that was spent on the training samples, append-only."""
        return self._budget.ledger

    @property
    def query_ledger(self) -> PrivacyLedger:
        """What ``test`` and ``predict`` spent on each sample they saw, with ``inference_noise``."""
        return self._inference.ledger

    @property
    def noise_multiplier(self) -> float:
        """Noise standard deviation over ``max_activation_norm``, calibrated if need be once n is known."""
        self._settle()
        return self._budget.noise_multiplier

    @property
    def releases(self) -> Releases | None:
        """What was released: private, and free to be used for anything (with labels in the clear if ``labels=None``)."""
        return self._kept.releases

    def privacy_spent(self) -> PrivacySpent:
        """What was spent so far, an upper bound; by the chosen accountant."""
        return self._budget.spent()

    def query_spent(self) -> PrivacySpent:
        """What a sample that ``test`` or ``predict`` saw in every pass has spent."""
        return self._inference.spent(self._budget.delta, self._budget.accountant)

    def epsilon(self, ahead: int = 0) -> float:
        """An upper bound on eps so far, and after any number of steps ahead: it moves only when something is released."""
        steps = self.ledger.steps
        if self._eps_so_far is None or self._eps_so_far[0] != steps:
            self._eps_so_far = (steps, self._budget.spent().eps if steps else 0.0)
        return self._eps_so_far[1]

    def settings(self) -> PrivacySettings:
        """The public facts of the run. Raises PrivacyError before the training data are known."""
        self._settle()
        if self._loader is None:
            raise PrivacyError("the training data are not known yet, so neither are delta and the noise")
        mechanism = self._mechanism
        return PrivacySettings(
            mechanism="neural_dp",
            delta=self._budget.delta,
            noise_multiplier=self._budget.noise_multiplier,
            max_grad_norm=None,
            clipping="activation",
            sampling="none",
            sample_rate=1.0,
            expected_batch_size=self._loader.batch_size,
            dataset_size=len(self._loader.dataset),
            accountant=self._budget.accountant,
            eps=self._budget.eps,
            relation=self._budget.relation,
            max_activation_norm=mechanism.bound,
            released="the inputs" if mechanism.layer is None else f"output of {mechanism.layer}",
            releases=mechanism.releases,
            labels=labels_in_words(self._labels, mechanism.answer) if self._layout.labels else None,
            labels_covered=self._labels is not None or not self._layout.labels,
        )

    # --- hooks, in the order in which Lightning calls them ------------------------------------------------------------

    @override
    def setup_environment(self) -> None:
        super().setup_environment()
        self._budget.share_segment(self.broadcast(self._budget.ledger.segment))

    @override
    def setup(self, trainer: Trainer) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING
        assert self.accelerator is not None
        assert self.model is not None
        if self._mechanism.layer is not None:
            layer_of(self._module, self._mechanism.layer)
        if fitting:
            self._loader, self._user_loader = None, None
            if messages := refusals(trainer, self._module):
                raise PrivacyConfigError("\n".join(messages))
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        self.synchronise_model()
        if fitting:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        if fitting:
            _compat.move_optimizers(self.optimizers, self.root_device)

    @override
    def process_dataloader(self, dataloader: object) -> object:
        if not self._trainer.training:
            return dataloader
        if self._loader is not None:
            raise PrivacyConfigError(
                "several training loaders: what was released of which sample must be one fact. Join the data sets with "
                "torch.utils.data.ConcatDataset and return one DataLoader."
            )
        if (reason := why_not_private(dataloader)) is not None:
            raise PrivacyConfigError(reason)
        assert isinstance(dataloader, DataLoader)
        self._user_loader = dataloader
        self._loader = ReleasedLoader(
            dataloader,
            self._kept.get,
            lambda: self._trainer.current_epoch,
            inputs=self._mechanism.layer is None,
            rank=self.global_rank,
            world_size=self.world_size,
        )
        return self._loader

    @override
    def on_train_start(self) -> None:
        self._settle()
        assert self._user_loader is not None
        releaser = Releaser(
            self._module, self._mechanism, self._layout, self._user_loader, self._run_user_step, self._transfer
        )
        template = releaser.check()
        self._upstream = releaser.upstream
        self._fixed = own_parameters(self._module, self._upstream)
        self._announce()
        dataset = self._user_loader.dataset
        terms = {**self._terms(), "upstream": releaser.fingerprint()}
        if not self._kept.are_of(dataset, terms):
            found = self._restored(releaser, template, terms) or self._release(releaser, template, terms)
            self._kept.keep(found, dataset)
        # Whatever training code asks for from here on, the raw samples are not to be had from this strategy.
        self._user_loader = None

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        assert self._loader is not None
        self._indices = self._loader.take()
        if thawed := [name for name, p in self._fixed if p.requires_grad]:
            raise PrivacyConfigError(unfrozen_upstream(thawed))

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._on_releases():
            return super().training_step(*args, **kwargs)

    @override
    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: Any | None = None, **kwargs: Any
    ) -> Any:
        def averaged() -> Any:
            loss = closure()
            if self.is_distributed:
                average_over_ranks(self._module, self.sum_over_ranks, self.world_size)
            return loss

        return super().optimizer_step(optimizer, averaged, model, **kwargs)

    @override
    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        if self._mechanism.layer is None and not self._trainer.training:
            batch = self._inference.inputs(batch, self._query_noise())
        return super().batch_to_device(batch, device, dataloader_idx)

    @override
    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._inference.at_layer(self._module, None):
            return super().validation_step(*args, **kwargs)

    @override
    def on_test_start(self) -> None:
        self._charge_queries()

    @override
    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._inference.at_layer(self._module, self._query_noise()):
            return super().test_step(*args, **kwargs)

    @override
    def on_predict_start(self) -> None:
        self._charge_queries()

    @override
    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._inference.at_layer(self._module, self._query_noise()):
            return super().predict_step(*args, **kwargs)

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        checkpoint[CHECKPOINT_KEY] = self.state_dict()
        if self._save_releases and self._kept.releases is not None:
            saved = save_releases(self._kept.releases, with_labels=self._labels is not None)
            checkpoint[CHECKPOINT_KEY]["releases"] = saved
        super().save_checkpoint(checkpoint, filepath, storage_options)

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        fitting = self._trainer.state.fn == TrainerFn.FITTING
        if CHECKPOINT_KEY in checkpoint and (fitting or self._inference.noisy):
            self.load_state_dict(checkpoint[CHECKPOINT_KEY])
        elif fitting:
            rank_zero_warn(
                f"{checkpoint_path} holds no privacy ledger: what its weights were trained on before is not part of "
                "the eps reported here.",
                category=PrivacyWarning,
            )
        return checkpoint

    @override
    def on_exception(self, exception: BaseException) -> None:
        self._user_loader = None
        super().on_exception(exception)

    @override
    def teardown(self) -> None:
        self._user_loader = None
        super().teardown()

    # --- state --------------------------------------------------------------------------------------------------------

    @override
    def state_dict(self) -> dict[str, Any]:
        """Ledger and settings, as plain python values; a checkpoint holds the releases beside them."""
        return {"version": 1, "position": 0, "budget": self._budget.state_dict()}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Adds the checkpoint's spending to the ledger; nothing that was spent is ever taken back."""
        self._budget.load_state_dict(state["budget"])
        self._kept.restore(state.get("releases"))

    @override
    def workers_failed(self) -> None:
        """Closes the ledger: processes that died may have released what this one cannot know."""
        self._budget.ledger_is_incomplete()

    # --- inside -------------------------------------------------------------------------------------------------------

    @property
    def _trainer(self) -> Trainer:
        return self._module.trainer

    @property
    def _module(self) -> LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module

    def _settle(self) -> None:
        if self._lightning_module is None or not self._trainer.training:
            return
        if self._loader is None:
            self._trainer.fit_loop.setup_data()
        if self._loader is not None:
            self._budget.settle(len(self._loader.dataset))

    def _terms(self) -> dict[str, Any]:
        return self._mechanism.terms(self._budget.noise_multiplier, self._budget.relation, self._labels)

    def _release(self, releaser: Releaser, template: Template, terms: dict[str, Any]) -> Releases:
        assert self._loader is not None
        n = len(self._loader.dataset)
        announce_size(releaser.shape, n, self._mechanism)
        self._budget.charge()  # before anything of it exists: a crash can only over-count
        noise = NoiseSource(self._seed, self.global_rank)
        return releaser.release(
            template,
            self._budget.noise_multiplier,
            noise,
            self.sum_over_ranks,
            self.global_rank,
            self.world_size,
            terms,
        )

    def _restored(self, releaser: Releaser, template: Template, terms: dict[str, Any]) -> Releases | None:
        """The releases that a checkpoint brought, if they are the ones that this run would make."""
        assert self._loader is not None
        n = len(self._loader.dataset)
        found = self._kept.restored(template, terms, n, DTYPES[self._mechanism.stored_as])
        if found is None or self._labels is not None or not self._layout.labels:
            return found
        return Releases(found.vectors, releaser.labels_only(template), template, found.terms)

    @contextmanager
    def _on_releases(self) -> Iterator[None]:
        """Within, the named layer returns the releases of the batch, and what runs before it keeps no statistics."""
        if self._mechanism.layer is None:
            yield
            return
        release = self._kept.get().of(self._indices, self._trainer.current_epoch).float()
        upstream = [self._module.get_submodule(name) for name in self._upstream]
        with evaluating(upstream), replaced(self._module.get_submodule(self._mechanism.layer), release):
            yield

    def _run_user_step(self, module: LightningModule, batch: Any) -> Any:
        with self.precision_plugin.train_step_context():
            return module.training_step(*step_arguments(module, batch, 0))

    def _transfer(self, module: LightningModule, batch: Any) -> Any:
        batch = self.precision_plugin.convert_input(batch)
        return _compat.transfer_batch(module, batch, self.root_device)

    def _query_noise(self) -> float | None:
        """The noise that queries get: those of ``test`` and ``predict``, if asked for."""
        queried = self._inference.noisy and (self._trainer.testing or self._trainer.predicting)
        return self._budget.noise_multiplier if queried else None

    def _charge_queries(self) -> None:
        if self._inference.noisy:
            self._inference.charge(self._budget.noise_multiplier)

    def _announce(self) -> None:
        settings = self.settings()
        for warning in cautions(settings, self._seed):
            rank_zero_warn(warning, category=PrivacyWarning)
        rank_zero_info(announcement(settings, self.world_size))
