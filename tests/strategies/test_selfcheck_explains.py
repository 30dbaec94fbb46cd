"""Dropout is no coupling: the self-check compares batches of unequal shapes without it, and still sees what couples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_dp import PrivacyError
from lightning_dp.strategies.undropped import without_dropout
from tests.strategies.helpers import Tiny, fit, strategy

CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.Dropout(0.5),
    "channels": nn.Dropout1d(0.5),
    "alpha": nn.AlphaDropout(0.5),
    "function": lambda x: F.dropout(x, 0.5, training=True),
    "by name": lambda x: F.dropout(input=x, p=0.5),
    "torch": lambda x: torch.dropout(x, 0.5, True),
    "in place": lambda x: F.dropout(x.clone(), 0.5, inplace=True),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
    "attention by place": lambda x: F.scaled_dot_product_attention(x, x, x, None, 0.5),
}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_drops(name: str) -> None:
    call, x = CALLS[name], torch.randn(2, 6, 8)
    torch.manual_seed(0)
    dropped = [call(x) for _ in range(2)]
    with without_dropout(nn.Identity()):
        kept = [call(x) for _ in range(2)]
    assert not torch.equal(*dropped)
    assert torch.equal(*kept)
    if "attention" not in name:
        assert torch.equal(kept[0], x)
    torch.manual_seed(0)
    assert torch.equal(call(x), dropped[0])  # afterwards as before


@pytest.mark.parametrize("layer", [nn.LSTM(8, 8, 2, dropout=0.5), nn.MultiheadAttention(8, 2, dropout=0.5)])
def test_fused_layers_get_their_setting_back(layer: nn.Module) -> None:
    x = torch.randn(3, 2, 8)

    def run() -> Tensor:
        return layer(x)[0] if isinstance(layer, nn.LSTM) else layer(x, x, x)[0]

    def fail() -> None:
        with without_dropout(layer):
            assert layer.training
            assert torch.equal(run(), run())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert layer.dropout == 0.5
    assert not torch.equal(run(), run())
    assert not {**layer._forward_hooks, **layer._forward_pre_hooks}


def test_the_repeated_pass_of_checkpointing_drops_nothing_either() -> None:
    """It runs inside the backward pass, which is outside every function mode."""
    block, x = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4)), torch.randn(3, 4)

    def gradient() -> Tensor:
        with without_dropout(block):
            checkpoint(block, x, use_reentrant=False, preserve_rng_state=False).square().sum().backward()
        found = block[0].weight.grad
        block.zero_grad()
        assert found is not None
        return found

    dropping = nn.Sequential(*block)
    dropping.eval()(x).square().sum().backward()
    expected = block[0].weight.grad
    block.zero_grad()
    block.train()
    torch.testing.assert_close(gradient(), expected)


# --- sequences of unequal lengths -------------------------------------------------------------------------------------
def sequences(n: int = 40) -> list[tuple[Tensor, int]]:
    random = torch.Generator().manual_seed(0)
    return [(torch.randn(2 + 5 * i % 11, 3, generator=random), i % 2) for i in range(n)]


def padded(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    x, y = zip(*samples, strict=True)
    return pad_sequence(list(x), batch_first=True), torch.tensor([len(one) for one in x]), torch.tensor(y)


def longest_first(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    return padded(sorted(samples, key=lambda sample: -len(sample[0])))


class Reader(LightningModule):
    """A recurrent classifier of padded sequences, with dropout on the time axis and between layers."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.rnn = nn.LSTM(3, 4, 2, dropout=0.5, bidirectional=True, batch_first=True)
            self.head = nn.Linear(8, 2)

    def features(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        hidden = self.rnn(packed)[1][0]
        return torch.cat([hidden[-2], hidden[-1]], 1)

    def training_step(self, batch: Any, _: int) -> Tensor:
        x, lengths, y = batch
        kept = F.dropout(x.transpose(1, 2), 0.3).transpose(1, 2)  # the time axis is the last: masks shift with padding
        return F.cross_entropy(self.head(self.features(kept, lengths)), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ReadsPadding(Reader):
    def features(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.rnn(x)[0][:, -1]


class Remembers(Reader):
    memory: Tensor | None = None

    def features(self, x: Tensor, lengths: Tensor) -> Tensor:
        new = super().features(x, lengths)
        old, self.memory = self.memory, new.detach().mean(0)
        return new if old is None else new + old


def run(module: LightningModule, collate: Callable[..., Any] = padded) -> None:
    fit(module, strategy(), DataLoader(sequences(), 8, shuffle=True, collate_fn=collate), max_epochs=1)


def test_padded_sequences_with_dropout_train() -> None:
    module = Reader()
    before = [p.detach().clone() for p in module.parameters()]
    run(module)
    assert all((a != b).any() for a, b in zip(module.parameters(), before, strict=True))


def test_what_reads_padding_is_told_so() -> None:
    with pytest.raises(PrivacyError, match=r"other samples.*padded to their longest sample.*pack_padded_sequence"):
        run(ReadsPadding())


def test_a_collate_function_that_sorts_is_told_so() -> None:
    with pytest.raises(PrivacyError, match=r"collate_fn.*order of the samples.*enforce_sorted=False"):
        run(Reader(), longest_first)


def test_what_is_carried_from_step_to_step_is_told_so() -> None:
    with pytest.raises(PrivacyError, match="carried from step to step"):
        run(Remembers())


# --- couplings beside dropout -----------------------------------------------------------------------------------------
class Centres(nn.Module):
    """Normalises by the batch, in training mode only."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if self.training else x


def test_a_coupling_of_training_mode_is_seen_beside_dropout() -> None:
    network = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 8), Centres(), nn.Dropout(0.2), nn.Linear(8, 3))
    with pytest.raises(PrivacyError, match="couples the samples"):
        fit(Tiny(net=network), strategy())


class Recomputed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, self.first(x), use_reentrant=True))


def test_reentrant_checkpointing_is_told_what_to_use() -> None:
    with pytest.raises(
        PrivacyError, match=r"use_reentrant=True.*gradient_checkpointing_kwargs=\{'use_reentrant': False\}"
    ):
        fit(Tiny(net=Recomputed()), strategy())
