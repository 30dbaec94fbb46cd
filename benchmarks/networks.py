"""The networks that the benchmark steps: one of each kind that people train privately."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ("NETWORKS", "Network", "loss_of")

VOCABULARY, LENGTH = 8192, 128


@dataclass(frozen=True)
class Network:
    """How to build a network, and the shape of its batch.

    Attributes:
        build: makes the module.
        batch_size: samples in the batch.
        image: shape of one input, or ``None`` for a sequence of tokens.
        says: what it is, for the table.
    """

    build: Callable[[], nn.Module]
    batch_size: int
    image: tuple[int, int, int] | None
    says: str

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random inputs and targets."""
        size = self.batch_size
        if self.image is None:
            tokens = torch.randint(0, VOCABULARY, (size, LENGTH + 1), generator=generator)
            return tokens[:, :-1], tokens[:, 1:]
        return torch.randn(size, *self.image, generator=generator), torch.randint(0, 10, (size,), generator=generator)


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over samples, or over samples and positions."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def mlp() -> nn.Module:
    """784-512-512-10."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def cnn() -> nn.Module:
    """The 26k-parameter network of the DP-SGD tutorials (Papernot et al. 2021)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=2), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


class ConvUnit(nn.Module):
    """Convolution, group normalisation, rectifier, perhaps a pool."""

    def __init__(self, inputs: int, outputs: int, pool: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(inputs, outputs, 3, 1, 1), nn.GroupNorm(32, outputs), pool

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return F.max_pool2d(x, 2) if self.pool else x


class Residual(nn.Module):
    """Two units and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = ConvUnit(channels, channels), ConvUnit(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.b(self.a(x))
        return out


def resnet9() -> nn.Module:
    """ResNet-9 with group normalisation."""
    return nn.Sequential(
        ConvUnit(3, 64), ConvUnit(64, 128, True), Residual(128), ConvUnit(128, 256, True), ConvUnit(256, 256, True),
        Residual(256), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def vit() -> nn.Module:
    """timm's ViT-tiny on 64 patches; class token and positions frozen, for which Opacus has no rule."""
    import timm

    model: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=8, num_classes=10)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name not in ("cls_token", "pos_embed")
    return model


class Block(nn.Module):
    """A pre-norm transformer block with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(rows, length, width)
        x = x + self.out(attended)
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class LanguageModel(nn.Module):
    """A GPT-style language model."""

    def __init__(self, width: int = 256, layers: int = 6, heads: int = 4) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x = self.tokens(tokens) + self.positions(positions)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x))
        return out


class LoRA(nn.Module):
    """A frozen linear layer and a trainable product of rank 8."""

    def __init__(self, base: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = (
            nn.Linear(base.in_features, rank, bias=False),
            nn.Linear(rank, base.out_features, bias=False),
        )
        nn.init.normal_(self.up.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + 2 * self.up(self.down(x))
        return out


def gpt_lora() -> nn.Module:
    """The language model, frozen, with adapters on every linear layer of its blocks."""
    model = LanguageModel()
    model.requires_grad_(False)
    for block in model.blocks:
        for name in ("qkv", "out", "up", "down"):
            setattr(block, name, LoRA(getattr(block, name)))
    return model


NETWORKS: dict[str, Network] = {
    "mlp": Network(mlp, 256, (1, 28, 28), "MLP 784-512-512-10, batch 256"),
    "cnn": Network(cnn, 256, (1, 28, 28), "CNN, 26k parameters, batch 256"),
    "resnet9": Network(resnet9, 32, (3, 32, 32), "ResNet-9, GroupNorm, 32x32, batch 32"),
    "vit": Network(vit, 32, (3, 64, 64), "ViT-tiny, 64 tokens, batch 32"),
    "gpt": Network(LanguageModel, 16, None, "GPT-style, 6 layers, d 256, T 128, batch 16"),
    "gpt_lora": Network(gpt_lora, 16, None, "the same with LoRA of rank 8"),
}
