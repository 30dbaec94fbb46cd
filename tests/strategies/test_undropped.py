"""Dropout and batches of ragged length: masks fall on other elements beside longer samples, and nothing couples them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_dp import PrivacyError
from lightning_dp.strategies.undropped import without_dropout
from tests.strategies.helpers import fit, strategy

pytestmark = pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")

WIDTH = 8


class Texts:
    """48 texts of 2 to 9 tokens, two classes."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(2, 10, (48,), generator=generator).tolist()
        self.rows = [(torch.randint(1, 20, (length,), generator=generator), length % 2) for length in lengths]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.rows[index]


def padded(rows: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    texts = nn.utils.rnn.pad_sequence([text for text, _ in rows], batch_first=True)
    return texts, torch.tensor([label for _, label in rows])


def texts() -> DataLoader[Any]:
    return DataLoader(Texts(), batch_size=12, shuffle=True, collate_fn=padded)  # type: ignore[arg-type]


class Mean(nn.Module):
    """The mean over tokens that are there; centred over the batch in training, if asked to."""

    def __init__(self, drop: Callable[[Tensor], Tensor], centred: bool = False) -> None:
        super().__init__()
        self.drop, self.centred = drop, centred

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        x = self.drop(self.drop(x)) * there.unsqueeze(
            -1
        )  # twice: where the second mask begins depends on the first one's size
        x = x.sum(1) / there.sum(1, keepdim=True)
        return x - x.mean(0) if self.centred and self.training else x


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


class Attention(nn.Module):
    """Dropout inside the fused function."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.3 if self.training else 0.0, is_causal=True)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, 2, batch_first=True, dropout=0.4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lstm(x)[0]
        return out


DROPS: dict[str, Callable[[], nn.Module]] = {
    "module": lambda: nn.Dropout(0.5),
    "function": Functional,
    "attention": Attention,
    "recurrent": Recurrent,
    "encoder_layer": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.3, batch_first=True),
}


class Classifier(LightningModule):
    def __init__(self, drop: nn.Module, centred: bool = False) -> None:
        super().__init__()
        self.embed, self.mean, self.head = nn.Embedding(20, WIDTH, 0), Mean(drop, centred), nn.Linear(WIDTH, 2)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        tokens, labels = batch
        return F.cross_entropy(self.head(self.mean(self.embed(tokens), (tokens > 0).float())), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("name", ["module", "function"])
def test_texts_of_unequal_length_pass_with_dropout(name: str) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        assert fit(Classifier(DROPS[name]()), strategy(), texts(), max_steps=1).global_step == 1


@pytest.mark.parametrize("name", ["module", "function"])
def test_what_couples_samples_in_training_alone_is_still_stopped(name: str) -> None:
    with pytest.raises(PrivacyError, match="couples|other samples|depends on how many"):
        fit(Classifier(DROPS[name](), centred=True), strategy(), texts(), max_steps=1)


@pytest.mark.parametrize("name", sorted(DROPS))
def test_nothing_drops_and_nothing_stays_changed(name: str) -> None:
    torch.manual_seed(0)
    module = DROPS[name]()
    x = torch.randn(3, 5, WIDTH)
    evaluated = module.eval()(x)
    module.train()
    before = {path: getattr(child, "dropout", None) for path, child in module.named_modules()}
    with without_dropout(module):
        assert torch.allclose(module(x), evaluated, atol=1e-6)
        assert module.training
    after = {path: getattr(child, "dropout", None) for path, child in module.named_modules()}
    assert all(before[path] is after[path] or before[path] == after[path] for path in before)
    assert not any(child._forward_pre_hooks or child._forward_hooks for child in module.modules())
    assert not torch.allclose(module(x), evaluated, atol=1e-6)
