"""What releases cost: noise for a budget, one ledger, and no release beyond the budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lightning_dp.accounting import (
    RELEASE_SENSITIVITY,
    LedgerEntry,
    PrivacyLedger,
    PrivacySpent,
    RandomizedResponseEvent,
    Relation,
    calibrate_noise_multiplier,
    get_accountant,
    privacy_spent,
    release_event,
)
from lightning_dp.accounting.accountants import AccountantName
from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.strategies.arguments import check_arguments, default_delta
from lightning_dp.strategies.budget import in_segment

__all__ = ("ReleaseBudget", "upstream_state")


class ReleaseBudget:
    """Keeps the ledger of releases, which are charged before they exist.

    **Guarantee**: with ``eps`` given, everything in the ledger together (what the upstream layers had cost, every release,
    every randomised label) is (eps, delta)-private under the one relation; a release that would exceed it is not made.

    Args:
        eps: the budget, or ``None`` to report only.
        delta: ``None`` becomes 1/(10 n).
        noise_multiplier: noise standard deviation over the clipping bound, or ``None`` to calibrate it.
        accountant: ``"pld"``, ``"rdp"`` or ``"prv"``.
        relation: ``"replace_one"`` or ``"add_or_remove_one"``.
        releases: noisy copies of each sample.
        answer: how labels are randomised, or ``None``.
        upstream: ledger of what the upstream layers were trained on.
    """

    def __init__(
        self,
        eps: float | None,
        delta: float | None,
        noise_multiplier: float | None,
        accountant: AccountantName,
        *,
        relation: Relation,
        releases: int,
        answer: RandomizedResponseEvent | None,
        upstream: Mapping[str, Any] | None,
    ) -> None:
        check_arguments(eps, delta, noise_multiplier)
        get_accountant(accountant)
        release_event(1.0, relation)  # refuses an unknown relation
        if eps is not None and answer is not None and answer.eps >= eps:
            raise PrivacyConfigError(
                f"label_eps={answer.eps:g} leaves nothing of eps={eps:g} for the activations. Give a smaller label_eps or a "
                "larger eps, which covers both."
            )
        self.eps, self.accountant, self.relation, self.releases = eps, accountant, relation, releases
        self._delta, self._noise_multiplier, self._answer = delta, noise_multiplier, answer
        self.ledger = PrivacyLedger()
        self._incomplete = False
        if upstream is not None:
            self.ledger.merge(upstream)
            if any(entry.event.relation != relation for entry in self.ledger.entries):
                raise PrivacyConfigError(
                    f"the upstream layers' ledger counts added or removed samples, and relation={relation!r}: the two do not "
                    "add up to one eps. Use NeuralDPStrategy(relation='add_or_remove_one')."
                )

    @property
    def delta(self) -> float:
        """The delta in force. Raises PrivacyError before n is known."""
        if self._delta is None:
            raise PrivacyError("delta=None means 1/(10 n), and n is known only once training has begun")
        return self._delta

    @property
    def noise_multiplier(self) -> float:
        """Noise standard deviation over the clipping bound C. Raises PrivacyError before it is calibrated."""
        if self._noise_multiplier is None:
            raise PrivacyError(
                "the noise is calibrated to eps when training begins, and it is not known yet. Fit first, or give "
                "noise_multiplier."
            )
        return self._noise_multiplier

    def settle(self, n: int) -> None:
        """Fixes delta and the noise. Noise that was calibrated before stays as it is."""
        self._delta = default_delta(self._delta, n)
        if self._noise_multiplier is None:
            assert self.eps is not None
            answers = () if self._answer is None else (LedgerEntry(self._answer, 1),)
            over_sensitivity = calibrate_noise_multiplier(
                eps=self.eps,
                delta=self._delta,
                sample_rate=1.0,
                steps=self.releases,
                accountant=self.accountant,
                sampling="none",
                relation=self.relation,
                spent=(*self.ledger.entries, *answers),
            )
            self._noise_multiplier = over_sensitivity * RELEASE_SENSITIVITY[self.relation]

    def cost(self) -> tuple[LedgerEntry, ...]:
        """What releasing every sample costs each of them."""
        activations = LedgerEntry(release_event(self.noise_multiplier, self.relation), self.releases)
        return (activations,) if self._answer is None else (activations, LedgerEntry(self._answer, 1))

    def charge(self) -> None:
        """Enters one release of every sample. Call before anything of it exists.

        Raises:
            PrivacyError: if it would exceed the budget; nothing is charged then.
        """
        cost = self.cost()
        if self.eps is not None:
            after = get_accountant(self.accountant).epsilon((*self.ledger.entries, *cost), self.delta)
            if after > self.eps * (1.0 + 1e-9):
                raise PrivacyError(
                    f"releasing the activations would bring eps to {after:.4g}, and the budget is eps={self.eps:g}: they were "
                    "released before, and a second release of the same samples adds up. Resume from a checkpoint that holds "
                    "the releases (save_releases=True), fit on the same data set object, or raise eps."
                )
        for entry in cost:
            self.ledger.charge(entry.event, entry.steps)

    def spent(self) -> PrivacySpent:
        """Everything spent so far. Raises PrivacyError if that is not known."""
        if self._incomplete:
            raise PrivacyError(
                "worker processes ended without reporting what they had spent, so this process cannot tell eps. Start a new "
                "process and resume from the last checkpoint, which carries its own ledger."
            )
        return privacy_spent(self.ledger.entries, self.delta, self.accountant)

    def share_segment(self, segment: str) -> None:
        """Ranks release different samples of one data set: one expense, under one name."""
        self.ledger = in_segment(self.ledger, segment)

    def ledger_is_incomplete(self) -> None:
        """Remembers that processes ended without reporting what they had spent."""
        self._incomplete = True

    def state_dict(self) -> dict[str, Any]:
        """Plain python values, of the form that every strategy's budget has."""
        return {
            "ledger": self.ledger.state_dict(),
            "eps": self.eps,
            "delta": self._delta,
            "noise_multiplier": self._noise_multiplier,
            "accountant": self.accountant,
            "unit": "sample",
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Adds what was spent; nothing is ever lowered. Calibrated noise is taken over, if still open."""
        _require_samples(state)
        self.ledger.merge(state["ledger"])
        if self._noise_multiplier is None and state["eps"] == self.eps and self._delta in (None, state["delta"]):
            self._noise_multiplier = state["noise_multiplier"]
        if self._delta is None:
            self._delta = state["delta"]


def upstream_state(upstream: PrivacyLedger | str | Path | None) -> Mapping[str, Any] | None:
    """The saved form of the ledger behind the upstream layers.

    Args:
        upstream: a ledger, or a checkpoint of the private training they come from.

    Raises:
        PrivacyConfigError: if the checkpoint holds no ledger, or protects another unit.
    """
    if upstream is None or isinstance(upstream, PrivacyLedger):
        return None if upstream is None else upstream.state_dict()
    saved = torch.load(upstream, map_location="cpu", weights_only=True).get("lightning_dp")
    if saved is None:
        raise PrivacyConfigError(
            f"{upstream} holds no privacy ledger. Give the checkpoint of a private training, or upstream_ledger=None for "
            "layers that never saw the training data."
        )
    _require_samples(saved["budget"])
    ledger: Mapping[str, Any] = saved["budget"]["ledger"]
    return ledger


def _require_samples(state: Mapping[str, Any]) -> None:
    if state.get("unit", "sample") != "sample":
        raise PrivacyConfigError(
            f"that privacy was spent on units called {state['unit']!r}, and a release protects single samples: the two do not "
            "add up to one eps."
        )
