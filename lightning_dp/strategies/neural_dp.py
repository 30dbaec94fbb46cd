"""NeuralDP as one argument of the Trainer: release each sample's activations once, and train on what was released."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins import Precision

from lightning_dp.accounting import PrivacyLedger, Relation
from lightning_dp.accounting.accountants import AccountantName
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.strategies.argument_names import named_arguments
from lightning_dp.strategies.neural.arguments import answer_of, check_sizes
from lightning_dp.strategies.neural.batches import BatchLayout
from lightning_dp.strategies.neural.budget import ReleaseBudget, upstream_state
from lightning_dp.strategies.neural.release import Mechanism, StoredAs
from lightning_dp.strategies.neural.training import Labels, ReleaseTraining
from lightning_dp.strategies.processes import Processes, StartMethod

__all__ = ("NeuralDPStrategy",)


class NeuralDPStrategy(ReleaseTraining):
    """Trains an unmodified LightningModule on activations that were clipped, noised and released once.

    When ``fit`` starts, each training sample runs once through the part of the network up to ``layer``, in evaluation
    mode; its activation is clipped to ``max_activation_norm``, noised, charged to the ledger before it exists, and cached.
    From then on training reads the cache alone: ``training_step`` gets batches in their usual form in which zeros stand in
    for the inputs, and the named layer returns the releases of the batch's samples. So everything downstream is
    post-processing, for any number of epochs, with any optimizer, schedule, batch normalisation or augmentation of
    features. The raw training set is let go.

    **Guarantee**: the releases, and everything computed from them (weights, losses, metrics, checkpoints), are (eps,
    delta)-differentially private under ``relation``. ``"replace_one"``: one sample's inputs become any others.
    ``"add_or_remove_one"``: against a sample whose activation is zero. No amplification by sampling is taken, so eps has two
    readings that agree: *local*, whoever sees what was released of one sample, which needs no trust in the training; and
    *central*, whoever sees the releases of all samples and the model. It holds for the inputs. Labels are within it if they
    are ``"public"`` (the same in both data sets) or ``"randomized"`` (then they are part of eps); with ``labels=None`` they
    are used as they are and are **outside the guarantee**. Also outside: upstream weights that were trained on these
    samples and not accounted, validation data, and code that reads the data set by itself.

    Source: NeuralDP (Knolle et al. 2021, arXiv 2107.14582) is the idea; this is a reading of its own, in which the guarantee
    does not rest on how training goes on.

    Args:
        eps: the budget for everything: upstream, activations and labels. The noise is calibrated to it. Give this or
            ``noise_multiplier``.
        delta: the additive slack; ``None`` means 1/(10 n).
        noise_multiplier: noise standard deviation over ``max_activation_norm``; eps is then reported. 0 only clips: **not
            private**.
        layer: name of the module whose output is released, as in ``module.named_modules()``; everything before it must be
            frozen. ``None`` releases the inputs themselves.
        max_activation_norm: clipping bound C on the L2 norm of each sample's activation.
        relation: ``"replace_one"`` (sensitivity 2 C) or ``"add_or_remove_one"`` (sensitivity C).
        labels: ``"public"``, ``"randomized"``, or ``None``: in the clear and outside the guarantee, with a warning.
        label_eps: eps of randomised response on each label, part of ``eps``; for ``labels="randomized"``.
        num_classes: K, public; for ``labels="randomized"``.
        releases: noisy copies of each sample; epoch e trains on copy e mod k, of a sample that the data set was asked for
            afresh (augmentation). Each costs a release.
        input_keys: positions or keys of the private inputs in a batch.
        label_keys: positions or keys of the labels; ``[]`` for none.
        upstream_ledger: ledger, or checkpoint, of the private training that the upstream weights come from, if it saw these
            samples. Needs ``relation="add_or_remove_one"``, the one that DP-SGD is accounted for.
        inference_noise: keep the noise in ``test`` and ``predict``, for samples that need protection themselves; counted
            in ``query_ledger``.
        release_batch_size: samples computed together in the one pass; ``None`` takes the loader's. 1 keeps samples apart by
            construction, where the check before the release looks at a few.
        stored_as: ``"float32"`` or ``"float16"``.
        save_releases: whether checkpoints hold the releases (they are private), so that a resumed run needs no second one.
        accountant: ``"pld"``, ``"rdp"`` or ``"prv"``.
        seed: **for tests only**: fixes the noise. Whoever knows it can subtract it.
        accelerator: as in Lightning's strategies; normally set by the Trainer.
        parallel_devices: as in Lightning's strategies; normally set by the Trainer.
        cluster_environment: as in Lightning's strategies; normally set by the Trainer.
        checkpoint_io: as in Lightning's strategies; normally set by the Trainer.
        precision_plugin: as in Lightning's strategies; normally set by the Trainer.
        process_group_backend: ``None`` picks NCCL on CUDA and gloo elsewhere.
        timeout: how long ranks wait for each other.
        start_method: how several processes on one machine start; ``"fork"`` in notebooks.

    Raises:
        PrivacyConfigError: for settings that cannot give the guarantee; the message names the fix.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_dp import NeuralDPStrategy
        >>> strategy = NeuralDPStrategy(eps=8, layer="features", labels="public")
        >>> trainer = Trainer(strategy=strategy, max_epochs=10, logger=False, accelerator="cpu", devices=1)
    """

    @named_arguments
    def __init__(
        self,
        eps: float | None = None,
        delta: float | None = None,
        *,
        noise_multiplier: float | None = None,
        layer: str | None = None,
        max_activation_norm: float = 1.0,
        relation: Relation = "replace_one",
        labels: Labels | None = None,
        label_eps: float | None = None,
        num_classes: int | None = None,
        releases: int = 1,
        input_keys: Sequence[int | str] = (0,),
        label_keys: Sequence[int | str] = (1,),
        upstream_ledger: PrivacyLedger | str | Path | None = None,
        inference_noise: bool = False,
        release_batch_size: int | None = None,
        stored_as: StoredAs = "float32",
        save_releases: bool = True,
        accountant: AccountantName = "pld",
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
        check_sizes(max_activation_norm, releases, release_batch_size, stored_as)
        answer = answer_of(labels, label_eps, num_classes, relation, len(label_keys))
        if not input_keys:
            raise PrivacyConfigError("input_keys is empty: name the parts of a batch that are to be protected.")
        super().__init__(
            Mechanism(layer, float(max_activation_norm), releases, answer, stored_as, release_batch_size),
            ReleaseBudget(
                eps,
                delta,
                noise_multiplier,
                accountant,
                relation=relation,
                releases=releases,
                answer=answer,
                upstream=upstream_state(upstream_ledger),
            ),
            BatchLayout(tuple(input_keys), tuple(label_keys)),
            labels=labels,
            inference_noise=inference_noise,
            save_releases=save_releases,
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
        )
