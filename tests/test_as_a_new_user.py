"""Four networks as people bring them, each in a LightningModule written without a thought of privacy, trained for a few steps.

Each has what is usual for its kind: dropout, padding, batches as dicts, a scheduler, validation metrics, checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset, TensorDataset

import lightning_dp
from lightning_dp import DPStrategy, PrivacyAccountant, PrivacyConfigError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*shuffling enabled"),  # the training data serve for validation, too
    pytest.mark.filterwarnings("ignore:.*logging interval"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings(
        "ignore:.*find the monitored key"
    ),  # Lightning ends the resumed epoch without validation
]
SAMPLES = 48


class Usual(LightningModule):
    """What the four have in common."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(num_classes=classes)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits, labels = self.outputs(batch)
        self.accuracy(logits, labels)
        self.log("val_accuracy", self.accuracy, batch_size=len(labels))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits, labels = self.outputs(batch)
        loss = F.cross_entropy(logits, labels)
        self.log("loss", loss, batch_size=len(labels))
        return loss

    def outputs(self, batch: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 1e-2, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


# --- a timm network ---------------------------------------------------------------------------------------------------
class Images(Usual):
    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__()
        timm = pytest.importorskip("timm")
        self.model = timm.create_model(name, num_classes=2, **settings)

    def outputs(self, batch: Any) -> tuple[Tensor, Tensor]:
        images, labels = batch
        return self.model(images), labels


def vision_transformer() -> Images:
    return Images("test_vit", img_size=32, drop_rate=0.1, drop_path_rate=0.1)


def normalised_by_batch() -> Images:
    return Images("test_resnet")


def images() -> DataLoader[Any]:
    x = torch.rand(SAMPLES, 3, 32, 32)
    return DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0.5).long()), batch_size=SAMPLES // 2, shuffle=True)


# --- a torch-geometric network ----------------------------------------------------------------------------------------
class Graphs(Usual):
    """Attention with dropout on its weights, as in the paper."""

    def __init__(self) -> None:
        super().__init__()
        gnn = pytest.importorskip("torch_geometric").nn
        self.first = gnn.GATConv(4, 4, heads=2, dropout=0.4)
        self.second = gnn.GATConv(8, 8, dropout=0.4)
        self.pool = gnn.global_mean_pool
        self.head = nn.Linear(8, 2)

    def outputs(self, batch: Any) -> tuple[Tensor, Tensor]:
        h = F.elu(self.first(batch.x, batch.edge_index))
        h = F.elu(self.second(F.dropout(h, 0.4, self.training), batch.edge_index))
        return self.head(self.pool(h, batch.batch)), batch.y


def graphs() -> DataLoader[Any]:
    pytest.importorskip("torch_geometric")
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader as GraphLoader

    def ring(i: int) -> Data:
        nodes = torch.arange(3 + i * 5 % 7)
        return Data(torch.randn(len(nodes), 4), torch.stack([nodes, nodes.roll(1)]), y=torch.tensor([i % 2]))

    return GraphLoader([ring(i) for i in range(SAMPLES)], batch_size=SAMPLES // 2, shuffle=True)  # type: ignore[no-any-return]


# --- a language model with adapters -----------------------------------------------------------------------------------
class Texts(Usual):
    """A decoder with its dropouts on, adapters, a batch of one length after another."""

    def __init__(self, checkpointing: bool = False) -> None:
        super().__init__(classes=64)
        transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
        config = transformers.GPT2Config(
            vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
        lora = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, lora_dropout=0.1)
        self.model = peft.get_peft_model(transformers.GPT2LMHeadModel(config), lora)
        if checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.model.enable_input_require_grads()

    def training_step(self, batch: Any, i: int) -> dict[str, Tensor]:  # the index by another name
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]
        return {"loss": (losses.sum(1) / mask[:, 1:].sum(1)).mean()}

    def outputs(self, batch: Any) -> tuple[Tensor, Tensor]:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logits, valid = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1], mask[:, 1:].bool()
        return logits[valid], ids[:, 1:][valid]


class Rows(Dataset[Any]):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": [1 + (index + 3 * k) % 60 for k in range(4 + 5 * index % 9)]}


def pad(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    mask = pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
    return {"input_ids": pad_sequence(ids, batch_first=True), "attention_mask": mask}


def texts() -> DataLoader[Any]:
    return DataLoader(Rows(), batch_size=SAMPLES // 2, shuffle=True, collate_fn=pad)


# --- a recurrent network ----------------------------------------------------------------------------------------------
class Sequences(Usual):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 8, num_layers=2, dropout=0.2, bidirectional=True, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 2))

    def outputs(self, batch: Any) -> tuple[Tensor, Tensor]:
        x, lengths, y = batch
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        hidden = self.rnn(packed)[1][0]
        return self.head(torch.cat([hidden[-2], hidden[-1]], 1)), y


def stack(rows: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    x, y = zip(*rows, strict=True)
    return pad_sequence(list(x), batch_first=True), torch.tensor([len(one) for one in x]), torch.tensor(y)


def sequences() -> DataLoader[Any]:
    rows = [(torch.randn(3 + 7 * i % 10, 3), i % 2) for i in range(SAMPLES)]
    return DataLoader(rows, batch_size=SAMPLES // 2, shuffle=True, collate_fn=stack)  # type: ignore[arg-type]


USERS: dict[str, tuple[Callable[[], Usual], Callable[[], DataLoader[Any]]]] = {
    "timm": (vision_transformer, images),
    "torch-geometric": (Graphs, graphs),
    "transformers": (Texts, texts),
    "lstm": (Sequences, sequences),
}


def run(folder: Path, **settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        strategy=DPStrategy(eps=8),
        callbacks=[PrivacyAccountant(), ModelCheckpoint(folder, monitor="val_accuracy", mode="max", save_top_k=-1)],
        **settings,
    )  # fmt: skip


@pytest.mark.parametrize("name", USERS)
def test_trains_as_it_is_and_resumes(name: str, tmp_path: Path) -> None:
    make, data = USERS[name]
    torch.manual_seed(0)
    module, loader = make(), data()
    kind, keys = type(module), set(module.state_dict())
    before = {k: p.detach().clone() for k, p in module.named_parameters() if p.requires_grad}
    first = run(tmp_path, max_steps=4)
    first.fit(module, loader, loader)
    assert first.strategy.ledger.steps == 4  # type: ignore[attr-defined]
    assert {"val_accuracy", "privacy/epsilon"} <= set(first.callback_metrics)
    assert type(module) is kind
    assert all((p != before[k]).any() for k, p in module.named_parameters() if p.requires_grad)

    halfway = tmp_path / "epoch=0-step=2.ckpt"
    assert set(torch.load(halfway, weights_only=True)["state_dict"]) == keys
    again = run(tmp_path, max_steps=4)
    again.fit(make(), loader, loader, ckpt_path=str(halfway), weights_only=True)
    assert again.strategy.ledger.steps == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["timm", "transformers", "lstm"])
def test_trains_in_bfloat16(name: str, tmp_path: Path) -> None:
    make, data = USERS[name]
    torch.manual_seed(0)
    trainer = run(tmp_path, max_steps=2, precision="bf16-mixed")
    trainer.fit(make(), data(), data())
    assert trainer.strategy.ledger.steps == 2  # type: ignore[attr-defined]


def test_trains_with_checkpointed_activations(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer = run(tmp_path, max_steps=2)
    trainer.fit(Texts(checkpointing=True), texts(), texts())
    assert trainer.strategy.ledger.steps == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", USERS)
def test_can_be_inspected_before(name: str) -> None:
    make, data = USERS[name]
    torch.manual_seed(0)
    report = lightning_dp.inspect(make(), next(iter(data())))
    assert report.ok, str(report)
    assert "not reached" not in {row.way for row in report.rows}


def test_batch_normalisation_is_refused_with_the_way_out(tmp_path: Path) -> None:
    module = normalised_by_batch()
    with pytest.raises(PrivacyConfigError, match=r"lightning_dp\.replace_batch_norm\(model\)"):
        run(tmp_path, max_steps=2).fit(module, images(), images())
    trainer = run(tmp_path, max_steps=2)
    trainer.fit(lightning_dp.replace_batch_norm(module), images(), images())  # the whole LightningModule
    assert trainer.strategy.ledger.steps == 2  # type: ignore[attr-defined]
