"""DP-SGD read as Langevin dynamics: posterior samples and averaged predictions at the eps of one training."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins import Precision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_dp.accounting import LangevinLaw, PrivacySettings, Target
from lightning_dp.accounting.accountants import AccountantName
from lightning_dp.accounting.events import Sampling
from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.gradients import Clipping, LossReduction, UnitMap
from lightning_dp.posterior import (
    Output,
    PosteriorPredictor,
    PosteriorSamples,
    SampleDtype,
    Thinning,
    posterior_forward,
)
from lightning_dp.sampling import LogicalSampler, PrivacyUnit, UnitIds
from lightning_dp.strategies.argument_names import named_arguments
from lightning_dp.strategies.base import CHECKPOINT_KEY, PrivateTrainingStrategy
from lightning_dp.strategies.budget import Budget
from lightning_dp.strategies.messages import chain, kept_samples
from lightning_dp.strategies.processes import Processes, StartMethod
from lightning_dp.strategies.refusals import Subject
from lightning_dp.strategies.refusals.langevin import ONE_CHAIN
from lightning_dp.strategies.tempering import Tempering, learning_rate_of

__all__ = ("LangevinStrategy",)


class LangevinStrategy(PrivateTrainingStrategy):
    """Trains by DP-SGD, keeps iterates as samples of a posterior, and averages predictions over them.

    The noise that privacy asks for is the noise of stochastic gradient Langevin dynamics (Knolle et al. 2021, arXiv
    2107.04296): noise, learning rate and temperature are tied by ``Tmp = lr sigma^2 C^2 n / (2 B^2)``, see
    :class:`~lightning_dp.accounting.LangevinLaw`. Give two, and the third follows:

    - ``eps`` or ``noise_multiplier``: the learning rate is the optimizer's, and the temperature is reported;
    - ``eps`` or ``noise_multiplier``, and ``temperature``: the optimizer's learning rate is set;
    - ``temperature``: the learning rate is the optimizer's, the noise follows, and eps is reported.

    A temperature below 1 is a cold posterior. Clipping biases the drift, so the chain samples the posterior of a clipped
    loss at best: the samples are **approximate**, whatever their number. The optimizer must be plain SGD.

    **Guarantee**: that of :class:`~lightning_dp.DPStrategy` with the same noise, rate and steps, to the last digit. Every
    step is charged before its gradient exists, and the ledger's eps holds for the whole sequence of iterates together.
    A kept iterate is a copy of one of them, chosen by its step number alone, and a prediction is a function of copies:
    both are post-processing and cost nothing, for any number of samples.

    ``trainer.test``, ``trainer.predict`` and ``trainer.validate`` average over the samples: while such a step runs, calling
    the module (``self(x)``) returns, in place of its own logits, the logarithm of the samples' mean probabilities, so that
    softmax, arg max and cross-entropy give those of the posterior. During ``fit`` nothing is averaged. The weights that
    the module holds, and exports, are those of the last iterate.

    Args:
        eps: the privacy budget, as in :class:`~lightning_dp.DPStrategy`.
        delta: the additive slack of (eps, delta)-differential privacy; ``None`` means 1/(10 n).
        noise_multiplier: noise standard deviation over ``max_grad_norm``; eps is then reported.
        risk: a limit on an attack in place of eps, as in :class:`~lightning_dp.DPStrategy`.
        temperature: of the posterior that is sampled; ``None``: it follows.
        learning_rate: of the optimizer's parameter groups; ``None``: their own, or what follows.
        prior_scale: standard deviation s of a Gaussian prior on every parameter, set as weight decay 1/(n s^2); ``None``
            leaves the optimizer's weight decay, and reports the prior that it stands for.
        max_grad_norm: clipping bound C on each unit's gradient norm.
        burn_in: steps before the first sample, or, below 1 as a float, the part of all steps.
        thinning: every so many steps give a sample; ``None`` spreads ``max_samples`` over the steps after ``burn_in``.
        max_samples: the most samples kept; where there would be more, the last ones.
        sample_dtype: ``"float32"``, or ``"float16"`` for half the space.
        samples_dir: a folder for the samples, beside the checkpoint; ``None`` keeps them in memory and in the checkpoint.
        output: what calling the module returns: ``"softmax"`` logits of classes along dimension 1, ``"sigmoid"`` logits of
            yes or no, or ``"values"`` to be averaged as they are; ``None`` never averages and evaluates the last iterate.
        output_module: name of the part of the module that returns them, where its steps call that part (``"net"`` for
            ``self.net(x)``) and not the module; it must hold everything that is trained.
        accountant: ``"pld"`` (tight), ``"rdp"`` or ``"prv"``.
        sampling: ``"poisson"``, ``"balls_in_bins"``, or ``"shuffle"``, accounted without amplification.
        physical_batch_size: the most samples that a device holds at once.
        unit: whose each sample is, where a person owns several; n, B and the temperature then count units.
        max_rows_per_unit: the most samples of a unit in one step.
        augmentation_multiplicity: K copies of each drawn sample, averaged before clipping.
        loss_reduction: whether ``training_step`` returns the ``"mean"`` or the ``"sum"`` of the samples' losses.
        unit_map: for batches whose layers see something else than one row a sample.
        memory_limit: bytes that the engine may take beyond what it records.
        self_check: compare the engine with plain PyTorch on a few samples before the first step.
        seed: **for tests only**: fixes noise and sampling. Whoever knows it can subtract the noise.
        accelerator: as in Lightning's strategies; normally set by the Trainer.
        parallel_devices: as in Lightning's strategies; normally set by the Trainer.
        cluster_environment: as in Lightning's strategies; normally set by the Trainer.
        checkpoint_io: as in Lightning's strategies; normally set by the Trainer.
        precision_plugin: as in Lightning's strategies; normally set by the Trainer.
        process_group_backend: ``None`` picks NCCL on CUDA and gloo elsewhere.
        timeout: how long ranks wait for each other.
        start_method: how several processes on one machine start; ``"fork"`` in notebooks.

    Raises:
        PrivacyConfigError: for settings that cannot give the guarantee or contradict the law; the message has the numbers.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_dp import LangevinStrategy
        >>> plugin = LangevinStrategy(eps=3, temperature=0.01, max_samples=50)
        >>> trainer = Trainer(strategy=plugin, max_epochs=10, logger=False, accelerator="cpu", devices=1)
    """

    @named_arguments
    def __init__(
        self,
        eps: float | None = None,
        delta: float | None = None,
        *,
        noise_multiplier: float | None = None,
        risk: Target | None = None,
        temperature: float | None = None,
        learning_rate: float | None = None,
        prior_scale: float | None = None,
        max_grad_norm: float = 1.0,
        burn_in: int | float = 0.5,
        thinning: int | None = None,
        max_samples: int = 20,
        sample_dtype: SampleDtype = "float32",
        samples_dir: str | Path | None = None,
        output: Output | None = "softmax",
        output_module: str = "",
        accountant: AccountantName = "pld",
        sampling: Sampling = "poisson",
        physical_batch_size: int | None = None,
        unit: UnitIds | None = None,
        max_rows_per_unit: int | None = None,
        augmentation_multiplicity: int = 1,
        loss_reduction: LossReduction = "mean",
        unit_map: Callable[[Any], UnitMap] | None = None,
        memory_limit: int | None = None,
        self_check: bool = True,
        seed: int | None = None,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = None,
        start_method: StartMethod = "popen",
    ) -> None:
        has_noise = not (eps is None and noise_multiplier is None and risk is None)
        self._tempering = Tempering(temperature, learning_rate, prior_scale, has_noise)
        self._thinning = Thinning(burn_in, thinning, max_samples)
        self._samples = PosteriorSamples(max_samples, sample_dtype, samples_dir)
        self._output, self._output_module = output, output_module
        self._chain: weakref.ref[LightningModule] | None = None  # whose iterates the samples are
        self._keeps = (0, 1)  # burn-in and distance in steps, once the plan is known
        super().__init__(
            "dp_langevin",
            Budget(eps, delta, noise_multiplier, accountant, risk=risk, noise_follows=not has_noise),
            Clipping.of(max_grad_norm, "flat"),
            sampling=sampling,
            physical_batch_size=physical_batch_size,
            loss_reduction=loss_reduction,
            memory_limit=memory_limit,
            self_check=self_check,
            seed=seed,
            processes=Processes(
                accelerator,
                parallel_devices,
                cluster_environment,
                checkpoint_io,
                precision_plugin,
                process_group_backend,
                timeout,
                start_method,
            ),
            unit=PrivacyUnit(unit, max_rows_per_unit, augmentation_multiplicity),
            unit_map=unit_map,
        )

    # --- what a run reports -------------------------------------------------------------------------------------------

    @property
    def posterior(self) -> PosteriorSamples:
        """The samples kept so far, on every rank."""
        return self._samples

    @property
    def temperature(self) -> float:
        """The temperature of the coming step. Raises PrivacyError before the training data are known."""
        self._settle()
        law, noise = self._law, self._budget.noise_multiplier
        rate = self._tempering.rate(law, noise, learning_rate_of(self.optimizers))
        return law.temperature(rate, noise)

    @override
    def settings(self) -> PrivacySettings:
        settings = super().settings()
        return replace(settings, temperature=self.temperature) if self.optimizers else settings

    def predictor(self) -> PosteriorPredictor:
        """Averages the predictions of the fitted module over the samples; refuses before there are any."""
        module, name = self._module, self._output_module
        part = module.get_submodule(name) if name else module
        output: Output = "softmax" if self._output is None else self._output
        return PosteriorPredictor(part, self._samples, output=output, prefix=f"{name}." if name else "")

    # --- hooks, in the order in which Lightning calls them ------------------------------------------------------------

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        self._load_samples(checkpoint.get(CHECKPOINT_KEY, {}))  # those that go with the weights, for any use of them
        return checkpoint

    @override
    def setup(self, trainer: Trainer) -> None:
        super().setup(trainer)
        if trainer.state.fn == TrainerFn.FITTING or self._chain is None:  # None: from a checkpoint, as its weights are
            if not self._averages:
                self._samples.forget_after(0)
            self._chain = weakref.ref(self._module)
        if trainer.state.fn == TrainerFn.FITTING or self._output is None:
            return
        self.barrier()  # another rank may have written the samples
        if self._averages:
            rank_zero_info(f"Predictions are averaged over {len(self._samples)} posterior samples.")
        else:
            rank_zero_warn(
                "There are no posterior samples of this module: predictions are those of its own weights. Test the module "
                "that was trained, or give ckpt_path, which brings the samples that belong to its weights."
            )

    @override
    def on_train_start(self) -> None:
        self._samples.forget_after(self._trainer.global_step)
        self._keeps = self._thinning.settled(self._trainer.estimated_stepping_batches)
        super().on_train_start()
        (optimizer,) = self.optimizers
        noise = self._budget.noise_multiplier
        changes = self._tempering.fit(self._law, noise, optimizer)
        decays = [float(group["weight_decay"]) for group in optimizer.param_groups]
        rank_zero_info(chain(self._law, noise, learning_rate_of(self.optimizers), decays, changes))
        rank_zero_info(kept_samples(*self._keeps, self._samples))

    @override
    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: Any | None = None, **kwargs: Any
    ) -> Any:
        output = super().optimizer_step(optimizer, closure, model, **kwargs)
        step, (burn_in, every) = self._trainer.global_step + 1, self._keeps
        if step > burn_in and (step - burn_in) % every == 0:
            self._keep(step, learning_rate_of([optimizer]))
        return output

    @override
    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        if self._trainer.state.fn == TrainerFn.FITTING:
            return super().validation_step(*args, **kwargs)
        with self._averaging("validation_step"):
            return super().validation_step(*args, **kwargs)

    @override
    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._averaging("test_step"):
            return super().test_step(*args, **kwargs)

    @override
    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._averaging("predict_step"):
            return super().predict_step(*args, **kwargs)

    # --- state --------------------------------------------------------------------------------------------------------

    @override
    def state_dict(self) -> dict[str, Any]:
        """As for every private strategy, with the samples: private already, as the weights beside them are."""
        return {**super().state_dict(), "posterior": self._samples.state_dict()}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._load_samples(state)

    # --- inside -------------------------------------------------------------------------------------------------------

    @property
    def _law(self) -> LangevinLaw:
        if self._sampler is None:
            raise PrivacyError("the training data are not known yet, so neither is the temperature")
        return self._law_of(self._sampler)

    def _law_of(self, sampler: LogicalSampler) -> LangevinLaw:
        return LangevinLaw(self.clipping.sensitivity, sampler.dataset_size, sampler.expected_batch_size)

    @override
    def _subject(self) -> Subject:
        return replace(super()._subject(), langevin=True, fixes_learning_rate=self._tempering.fixes_learning_rate)

    @override
    def _trains_otherwise(self) -> None:
        raise PrivacyConfigError(f"parameters were frozen, unfrozen or added during the run: {ONE_CHAIN}")

    @override
    def _before_settling(self, sampler: LogicalSampler) -> None:
        if not self._tempering.has_noise:
            self._budget.set_noise(self._tempering.noise_multiplier(self._law_of(sampler), self.optimizers))

    def _keep(self, step: int, learning_rate: float) -> None:
        temperature = self._law.temperature(learning_rate, self._running_engine.noise_multiplier)
        self._samples.keep(
            self._module,
            step,
            learning_rate,
            temperature,
            run=self._budget.ledger.segment[:8],
            write=self.is_global_zero,
        )
        if self._samples.folder is not None:
            self.barrier()  # no rank may read a file before it is written

    def _load_samples(self, state: dict[str, Any]) -> None:
        self._samples.load_state_dict(state.get("posterior", []))
        self._chain = None
        gone: Sequence[str] = self._samples.missing_files()
        if gone:
            rank_zero_warn(
                f"{len(gone)} posterior samples of the checkpoint are no longer in samples_dir ({gone[0]}, ...): they are left "
                "out. They were written to another folder, or made room for later samples of the run."
            )
            self._samples.drop(gone)

    @property
    def _averages(self) -> bool:
        """Whether there are samples, and they are iterates of the module at hand."""
        return bool(self._samples) and (self._chain is None or self._chain() is self._module)

    @contextmanager
    def _averaging(self, hook: str) -> Iterator[None]:
        if self._output is None or not self._averages:
            yield
            return
        with posterior_forward(self.predictor()) as calls:
            yield
        if not calls():
            called = f"self.{self._output_module}(x)" if self._output_module else "self(x)"
            raise PrivacyConfigError(
                f"{hook} did not call {called}, so its numbers would be those of the last iterate and not of the posterior. "
                "Call the module there, name the part that returns logits (LangevinStrategy(output_module='net')), or use "
                "output=None to evaluate the last iterate."
            )
