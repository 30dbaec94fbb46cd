"""Several experiments on the given number of processes; each rank writes what it saw. Arguments: folder, processes."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_dp import BAMStrategy, LangevinStrategy, PosteriorCalibration
from tests.gradients.complex_networks import Bend, Magnitude
from tests.strategies.gan import GAN
from tests.strategies.helpers import Tiny, dataset, flat, loader, strategy, trainer

WIDE = 25_000  # coordinates whose noise is looked at
OWNERS = [i * i % 37 for i in range(64)]  # 19 units with 1 to 4 samples each


class Kept(Tiny):
    """Keeps the gradients that the optimizer used, and logs with a reduction over the ranks."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.gradients: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss_mean", loss, sync_dist=True, on_step=True, on_epoch=True)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters()]
        self.gradients.append(torch.cat([g.flatten().clone() for g in found]))


class Thawing(BaseFinetuning):
    """Trains the last layer in the first epoch and all in the second."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer)


class Turned(nn.Module):
    """Complex features from real ones."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(x, x.flip(-1))


class Silent(Kept):
    """A loss without gradient: what is left is noise."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self(x).sum() * 0.0


def run(module: Kept, data: Any, fit: dict[str, Any], *, rewind: Path | None = None, **plugin: Any) -> dict[str, Any]:
    kind = BAMStrategy if "radius" in plugin else strategy
    private = kind(timeout=timedelta(seconds=60), **plugin)
    trained = trainer(private, **fit)
    trained.fit(module, data)
    if rewind is not None:
        trained.save_checkpoint(rewind)
        trained.fit_loop.max_epochs = 4
        trained.fit(module, data, ckpt_path=rewind)
    return {
        "parameters": flat(module),
        "gradients": torch.stack(module.gradients),
        "sizes": module.sizes,
        "steps": trained.global_step,
        "ledger": private.ledger.steps,
        "eps": private.privacy_spent().eps,
        "noise_multiplier": private.noise_multiplier,
        "sample_rate": private.settings().sample_rate,
        "batches": trained.num_training_batches,
        "rank": private.global_rank,
        "bound": private.clipping.max_grad_norm,
    }


def complex_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        layers = [nn.Linear(6, 7, dtype=torch.complex64), Bend(), nn.Linear(7, 5, dtype=torch.complex64), Magnitude()]
        return nn.Sequential(Turned(), *layers, nn.Linear(5, 3))


def run_gan(fit: dict[str, Any], **plugin: Any) -> dict[str, Any]:
    module, private = GAN(), strategy(timeout=timedelta(seconds=60), post_processing=["generator"], **plugin)
    trainer(private, **fit).fit(module, loader(64, 16))
    return {"parameters": flat(module), "ledger": private.ledger.steps, "discriminator": module.seen["discriminator"]}


def run_langevin(fit: dict[str, Any], **plugin: Any) -> dict[str, Any]:
    module = Probing()
    private = LangevinStrategy(timeout=timedelta(seconds=60), burn_in=2, thinning=2, **plugin)
    trained = trainer(private, callbacks=[PosteriorCalibration()], **fit)
    trained.fit(module, loader(64, 16))
    held_out = DataLoader(dataset(32, seed=5), batch_size=8)
    result = trained.test(module, held_out, verbose=False)[0]
    return {
        "parameters": flat(module),
        "ledger": private.ledger.steps,
        "eps": private.privacy_spent().eps,
        "temperature": private.temperature,
        "steps": private.posterior.steps,
        "samples": [dict(sample) for sample in private.posterior],
        "result": result,
    }


class Probing(Tiny):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)


def main(folder: Path, devices: int) -> None:
    exact: dict[str, Any] = {"noise_multiplier": 0, "seed": 7, "max_grad_norm": 0.3}
    one: dict[str, Any] = {"devices": devices, "max_epochs": 1}
    two: dict[str, Any] = {"devices": devices, "max_epochs": 2}
    usual, wide = loader(64, 16), Silent(net=nn.Linear(6, WIDE, bias=False))
    rewind = folder / f"rewind-{devices}.ckpt"
    found = {
        "whole": run(Kept(momentum=0.9), usual, two, **exact),
        "split": run(Kept(momentum=0.9), usual, two, physical_batch_size=3, **exact),
        "sparse": run(Kept(), loader(30, 1), one, **exact),
        "sparse_split": run(Kept(), loader(30, 2), one, physical_batch_size=1, **exact),
        "gan": run_gan(one, noise_multiplier=1.0),
        "adaptive": run(Kept(), usual, one, clipping="adaptive", physical_batch_size=3, **exact),
        "adaptive_noisy": run(Kept(), usual, one, clipping="adaptive", noise_multiplier=1.0),
        "langevin": run_langevin(two, noise_multiplier=1.0),
        "langevin_on_disk": run_langevin(
            two, samples_dir=folder / f"samples-{devices}", sample_dtype="float16", **exact
        ),
        "units": run(Kept(), loader(64, 8), two, unit=OWNERS, max_rows_per_unit=3, physical_batch_size=4, **exact),
        "cut": run(Kept(), usual, two, sampling="truncated_poisson", max_batch_size=17, **exact),
        "complex": run(Kept(net=complex_net(), momentum=0.9), usual, two, physical_batch_size=3, **exact),
        "complex_noisy": run(Kept(net=complex_net()), usual, one, eps=3),
        "bam": run(Kept(momentum=0.9), usual, two, radius=0.3, physical_batch_size=3, **exact),
        "sat": run(Kept(momentum=0.9), usual, two, radius=0.3, direction="previous", **exact),
        "sat_noisy": run(Kept(), usual, one, radius=0.3, direction="previous", noise_multiplier=1.0),
        "noisy": run(Kept(), usual, two, eps=3),
        "thawed": run(Kept(momentum=0.9), usual, {**two, "callbacks": [Thawing()]}, physical_batch_size=3, **exact),
        "thawed_noisy": run(Kept(), usual, {**two, "callbacks": [Thawing()]}, noise_multiplier=1.0),
        "noise": run(wide, usual, {**one, "max_steps": 1}, noise_multiplier=3.0, max_grad_norm=0.5, self_check=False),
        "rewound": run(Kept(), usual, two, rewind=rewind, noise_multiplier=1.0),
    }
    torch.save(found, folder / f"{devices}-{found['whole']['rank']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    if (
        torch.distributed.is_initialized()
    ):  # left to the interpreter's end, gloo's threads now and then abort the process
        torch.distributed.destroy_process_group()
