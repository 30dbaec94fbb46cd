"""A small GAN with manual optimisation, in the variants that tests ask for."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

LATENT, DRAWN = 3, 5


def mlp(inputs: int, outputs: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


class GAN(LightningModule):
    """Discriminator first, then the generator on a fixed number of latents.

    Args:
        toggle: the optimizers are toggled around their parts.
        private: the generator draws one latent a sample, so that its gradient can be clipped per sample.
    """

    def __init__(self, toggle: bool = False, private: bool = False, lr: float = 0.2) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = mlp(LATENT, 6, 1), mlp(6, 1, 2)
        self.toggle, self.private, self.lr = toggle, private, lr
        self.seen: dict[str, list[Tensor]] = {"generator": [], "discriminator": []}
        self.twins: list[tuple[nn.Module, nn.Module, Tensor, Tensor]] = []
        self.calls = 0

    def configure_optimizers(self) -> Any:
        parts = (self.generator, self.discriminator)
        return [torch.optim.SGD(part.parameters(), lr=self.lr) for part in parts]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.calls += 1
        opt_g, opt_d = self.optimizers()
        self.discriminator_step(opt_d, batch[0])
        self.generator_step(opt_g, batch[0])

    def discriminator_step(self, optimizer: Any, x: Tensor) -> None:
        z = torch.randn(len(x), LATENT)
        self.keep(x, z)
        if self.toggle:
            self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(self.discriminator_loss(x, z))
        optimizer.step()
        if self.toggle:
            self.untoggle_optimizer(optimizer)

    def generator_step(self, optimizer: Any, x: Tensor) -> None:
        z = torch.randn(len(x) if self.private else DRAWN, LATENT)
        self.keep(x, z)
        if self.toggle:
            self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(generator_losses(self.discriminator, self.generator, z).mean())
        optimizer.step()
        if self.toggle:
            self.untoggle_optimizer(optimizer)

    def discriminator_loss(self, x: Tensor, z: Tensor) -> Tensor:
        return discriminator_losses(self.discriminator, self.generator, x, z).mean()

    def keep(self, x: Tensor, z: Tensor) -> None:
        """Copies of both networks as the next gradient finds them."""
        if self.trainer.strategy.engine is not None:  # type: ignore[attr-defined]
            self.twins.append((copy.deepcopy(self.discriminator), copy.deepcopy(self.generator), x, z))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        name = "generator" if optimizer is self.trainer.optimizers[0] else "discriminator"
        self.seen[name].append(torch.cat([p.grad.flatten().clone() for p in getattr(self, name).parameters()]))


def discriminator_losses(discriminator: nn.Module, generator: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    """One loss a sample, each with a fake of its own."""
    fake = generator(z).detach()
    return (F.softplus(-discriminator(x)) + F.softplus(discriminator(fake))).squeeze(1)


def generator_losses(discriminator: nn.Module, generator: nn.Module, z: Tensor) -> Tensor:
    return F.softplus(-discriminator(generator(z))).squeeze(1)


def clipped_mean(module: nn.Module, losses: Tensor, bound: float, denominator: float) -> Tensor:
    """By its definition: one ordinary gradient for each loss, clipped, added, over a fixed number."""
    parameters = list(module.parameters())
    total = torch.zeros(sum(p.numel() for p in parameters))
    for loss in losses:
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
        total += gradient * min(1.0, bound / float(gradient.norm()))
    return total / denominator
