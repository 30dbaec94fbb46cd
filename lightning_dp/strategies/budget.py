"""The privacy budget of a training run: what was spent, what a step costs, which step is the last."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Protocol

from lightning_dp.accounting import (
    EpsilonMeter,
    EpsilonTarget,
    GaussianEvent,
    LedgerEntry,
    PrivacyLedger,
    PrivacySpent,
    Schedule,
    Target,
    affordable_within,
    calibrate_to,
    get_accountant,
    pieces,
    privacy_spent,
)
from lightning_dp.accounting.accountants import AccountantName
from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.strategies.arguments import check_arguments, check_tail, default_delta

__all__ = ("AccountedSampler", "Budget", "check_arguments", "default_delta", "in_segment")


class AccountedSampler(Protocol):
    """What the budget needs to know of a sampler: how many units there are and what its steps cost."""

    @property
    def dataset_size(self) -> int:
        """Number of units n."""
        ...

    def charges(self, step: int, previous: int | None) -> bool:
        """Whether ``step`` costs one composition, after ``previous``."""
        ...

    def compositions(self, steps: int, start: int = 0) -> int:
        """How many compositions ``steps`` steps from ``start`` on cost."""
        ...

    def event(self, noise_multiplier: float) -> GaussianEvent:
        """What one composition is."""
        ...


class Budget:
    """Keeps the ledger and decides, before any gradient exists, whether a step may be taken.

    **Guarantee**: with ``eps`` or ``risk`` given, the composition of everything in the ledger never exceeds it: a step is
    charged first and taken afterwards, so a crash over-counts and never under-counts, and a step that would exceed the
    budget is not charged and must not be taken.

    Args:
        eps: the budget, or ``None`` for another kind of budget, or to report only.
        delta: the additive slack of (eps, delta); ``None`` becomes 1/(10 n) once n is known.
        noise_multiplier: noise over sensitivity, or ``None`` to calibrate it to ``eps`` or ``risk``.
        accountant: ``"pld"``, ``"rdp"`` or ``"prv"``.
        schedule: factors on the noise multiplier, step by step; each step is charged with its own event.
        risk: a budget in terms of an attack's success in place of ``eps``, which is then reported.
        noise_follows: none of the three is given, and :meth:`set_noise` will be called before
            :meth:`settle`.

    Raises:
        PrivacyConfigError: if not exactly one of ``eps``, ``noise_multiplier`` and ``risk`` is given, or a value is out of
            range.
    """

    def __init__(
        self,
        eps: float | None,
        delta: float | None,
        noise_multiplier: float | None,
        accountant: AccountantName,
        schedule: Schedule | None = None,
        risk: Target | None = None,
        noise_follows: bool = False,
    ) -> None:
        check_arguments(eps, delta, noise_multiplier, risk, noise_follows)
        get_accountant(accountant)
        self.eps, self.risk, self.accountant, self.schedule = eps, risk, accountant, schedule
        self._target = risk if eps is None else EpsilonTarget(eps, delta, accountant)
        self.ledger = PrivacyLedger()
        self.unit = "sample"
        """What the ledger counts: the unit that is added or removed."""
        self._delta, self._noise_multiplier = delta, noise_multiplier
        self._sampler: AccountedSampler | None = None
        self._event: GaussianEvent | None = None
        self._affordable = 0
        self._covered = 0  # with a schedule: steps of lower number fit the budget together
        self.planned: float = math.inf
        """Number of the first step after the planned ones."""
        self.uncovered = 0
        """Planned compositions that the budget does not cover: steps, or passes when shuffling."""
        self._previous: int | None = None
        self._meter: EpsilonMeter | None = None
        self._incomplete = False

    @property
    def target(self) -> Target | None:
        """What must not be exceeded, as far as it is known; ``None`` to report only."""
        return self._target

    @property
    def delta(self) -> float:
        """The delta in force. Raises PrivacyError before the data set's size is known."""
        if self._delta is None:
            raise PrivacyError("delta=None means 1/(10 n), and n is known only once training has begun")
        return self._delta

    @property
    def noise_multiplier(self) -> float:
        """Noise standard deviation over sensitivity, before any schedule's factor.

        Raises PrivacyError before it is calibrated.
        """
        if self._noise_multiplier is None:
            raise PrivacyError("the noise is calibrated to the budget when training begins; it is not known yet")
        return self._noise_multiplier

    @property
    def event(self) -> GaussianEvent:
        """The mechanism event that one composition charges, before any schedule's factor."""
        assert self._event is not None, "Budget.settle has not run"
        return self._event

    def event_of(self, step: int) -> GaussianEvent:
        """The mechanism event of logical step number ``step``; the gradient must get its noise."""
        if self.schedule is None:
            return self.event
        assert self._sampler is not None, "Budget.settle has not run"
        return self._sampler.event(self.noise_multiplier * self.schedule.factor(step, self.planned))

    def plan(self, start: int, steps: int) -> tuple[LedgerEntry, ...]:
        """What ``steps`` steps from number ``start`` on charge, where every step is one composition."""
        if steps < 1:
            return ()
        if self.schedule is None:
            return (LedgerEntry(self.event, steps),)
        assert self._sampler is not None, "Budget.settle has not run"
        return tuple(
            LedgerEntry(self._sampler.event(self.noise_multiplier * factor), length)
            for factor, length in self._factors(start, steps)
        )

    def _factors(self, start: int, steps: int) -> tuple[tuple[float, int], ...]:
        assert self.schedule is not None
        return pieces(self.schedule.factor(step, self.planned) for step in range(start, start + steps))

    def share_segment(self, segment: str) -> None:
        """Gives the ledger of a rank that has charged nothing itself the name that rank 0's has.

        All ranks take part in the same steps. Under names of their own, a checkpoint of rank 0 would count these steps
        again on the others, and ranks that disagree on the budget would not stop together.
        """
        self.ledger = in_segment(self.ledger, segment)

    def set_noise(self, noise_multiplier: float) -> None:
        """Fixes the noise of the steps to come where it follows from something else than eps. Call before ``settle``."""
        assert self._target is None
        check_arguments(None, None, noise_multiplier)
        self._noise_multiplier = noise_multiplier

    def settle(self, sampler: AccountedSampler, steps: float, start: int = 0) -> None:
        """Fixes delta and the noise for ``steps`` planned steps of ``sampler`` from ``start`` on, and what is affordable.

        Noise that was calibrated before (an earlier ``fit``, a checkpoint) stays as it is; the budget then ends the run.

        Raises:
            PrivacyConfigError: if delta >= 1/n, or ``steps`` is unbounded while the noise is to be calibrated.
        """
        self._check_complete()
        n = sampler.dataset_size
        self._delta = default_delta(self._delta, n)
        if self._target is not None:
            self._target = self._resolved(n)
        planned = sampler.compositions(int(steps), start) if math.isfinite(steps) else 0
        self.planned = start + steps
        if self.schedule is not None:
            self._check_schedule(sampler, start)
        spent = self.ledger.entries
        if self._noise_multiplier != 0:  # without noise there is no eps to lose
            check_tail(sampler.event(1.0), planned, self._delta, n)
        calibrating = self._noise_multiplier is None
        if self._noise_multiplier is None:
            assert self._target is not None
            if not math.isfinite(steps):
                raise PrivacyConfigError(
                    f"noise cannot be calibrated to {self._target} for training without an end. Set max_epochs or max_steps on "
                    "the Trainer, or give DPStrategy a noise_multiplier instead of a budget."
                )
            template = sampler.event(1.0)
            self._noise_multiplier = calibrate_to(
                self._target,
                sample_rate=template.sample_rate,
                steps=max(1, planned),
                sampling=template.sampling,
                tail=template.tail,
                bins=template.bins,
                spent=spent,
                factors=None if self.schedule is None else self._factors(start, max(1, planned)),
            )
            self._affordable = max(1, planned)
        if sampler is not self._sampler:
            self.forget_pass()
        self._sampler, self._event = sampler, sampler.event(self._noise_multiplier)
        if self._target is not None and not calibrating:
            self._affordable = self._count_affordable(planned, start)
        self._covered = start + self._affordable
        self.uncovered = 0 if self._target is None else max(0, planned - self._affordable)
        self._meter = EpsilonMeter(self._delta, self.accountant, spent)
        if planned and self._noise_multiplier > 0:
            known = planned if self._target is None else max(1, min(planned, self._affordable))
            if self.schedule is None:
                self._meter.prime(self._event, known)
            else:
                self._meter.prime_with(self.plan(start, known))

    def forget_pass(self) -> None:
        """From here on another sampler draws: what was drawn before says nothing about a pass of its own."""
        self._previous = None

    def may_step(self, step: int) -> bool:
        """Whether logical step number ``step`` fits the budget. Charges nothing."""
        if self._target is None or not self._costs(step):
            return True
        if self.schedule is None:
            return self._remaining() > 0
        # By number and not by count: steps that were skipped do not pay for later ones, which may cost more.
        if step >= self._covered:
            self._covered = step + self._count_affordable(100, step)
        return step < self._covered

    def charge(self, step: int) -> GaussianEvent:
        """Enters logical step number ``step`` in the ledger. Call before its gradient exists.

        Returns:
            The event whose noise multiplier the gradient must get.

        Raises:
            PrivacyError: if the step would exceed the budget.
        """
        if not self.may_step(step):
            raise PrivacyError(f"the privacy budget ({self._target}) is spent; this step must not be taken")
        event = self.event_of(step)
        if self._costs(step):
            self.ledger.charge(event)
            self._affordable -= 1
        self._previous = step
        return event

    def epsilon(self, position: int = 0, ahead: int = 0) -> float:
        """An upper bound on eps after ``ahead`` more steps from number ``position`` on, cheap; exact at the planned end.

        Steps beyond the planned ones, or beyond the budget, are not taken, so they are not counted.
        """
        if self._meter is None:
            return self.spent().eps if self._delta is not None else 0.0
        bound = self._meter.epsilon((*self.ledger.entries, *self._coming(position, ahead)))
        return bound if ahead == 0 or self.eps is None else max(min(bound, self.eps), self.epsilon())

    def _coming(self, position: int, steps: int) -> tuple[LedgerEntry, ...]:
        """What ``steps`` steps from ``position`` on will have charged."""
        assert self._sampler is not None, "Budget.settle has not run"
        steps = int(min(steps, max(0, self.planned - position)))
        if self.schedule is not None:
            return self.plan(position, steps)
        numbers, charges = range(position, position + steps), self._sampler.charges
        count = sum(charges(step, step - 1 if step > position else self._previous) for step in numbers)
        return (LedgerEntry(self.event, count),) if count else ()

    def spent(self) -> PrivacySpent:
        """Everything spent so far, by the chosen accountant. Raises PrivacyError if that is not known."""
        self._check_complete()
        return privacy_spent(self.ledger.entries, self.delta, self.accountant, self.unit)

    def ledger_is_incomplete(self) -> None:
        """Remembers that processes ended without reporting what they had spent: no eps is quoted from here on."""
        self._incomplete = True

    def state_dict(self) -> dict[str, Any]:
        """Plain python values only: checkpoints are loaded by an unpickler that admits nothing else."""
        return {
            "ledger": self.ledger.state_dict(),
            "eps": self.eps,
            "risk": None if self.risk is None else str(self.risk),
            "delta": self._delta,
            "noise_multiplier": self._noise_multiplier,
            "accountant": self.accountant,
            "unit": self.unit,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Adds what a checkpoint has spent; nothing is ever lowered. Calibrated noise is taken over, if still open.

        Raises:
            PrivacyError: if the checkpoint's spending protects another unit: steps that protect samples say nothing about
                all samples of a patient, and steps that protect patients bound a single sample by twice as much.
        """
        unit, theirs = state.get("unit", "sample"), PrivacyLedger()
        theirs.merge(state["ledger"])
        if unit != self.unit and theirs.entries:
            raise PrivacyError(
                f"the checkpoint's privacy was spent on units called {unit!r}, this strategy protects {self.unit!r}: the two "
                "do not add up to one eps. Resume with the same DPStrategy(unit=...), named in the same way, or start "
                "from untrained weights."
            )
        self.ledger.merge(state["ledger"])
        same = state["eps"] == self.eps and state.get("risk") == (None if self.risk is None else str(self.risk))
        if self._noise_multiplier is None and same and self._delta in (None, state["delta"]):
            self._noise_multiplier = state["noise_multiplier"]
        if self._delta is None:
            self._delta = state["delta"]
        self._meter = None

    def _check_complete(self) -> None:
        if self._incomplete:
            raise PrivacyError(
                "worker processes ended without reporting what they had spent, so this process cannot tell eps. Start a new "
                "process and resume from the last checkpoint, which carries its own ledger."
            )

    def _costs(self, step: int) -> bool:
        assert self._sampler is not None, "Budget.settle has not run"
        return self._sampler.charges(step, self._previous)

    def _remaining(self) -> int:
        if self._affordable <= 0:
            self._affordable = self._count_affordable(1000, 0)
        return self._affordable

    def _check_schedule(self, sampler: AccountedSampler, start: int) -> None:
        assert self.schedule is not None
        if sampler.compositions(100, start) != 100:
            raise PrivacyConfigError(
                "a noise schedule charges every step with the noise it has, and this sampling charges several steps as one. "
                "Use sampling='poisson', or constant noise."
            )
        self.schedule.factor(start, self.planned)  # refuses one that stretches over a training without an end

    def _count_affordable(self, limit: int, start: int) -> int:
        assert self._target is not None
        if limit < 1 or self.event.noise_multiplier == 0:
            return 0
        return affordable_within(
            self._target,
            # Without a schedule a step may cost nothing (a shuffled pass), so compositions are counted and not steps.
            plan=lambda k: (LedgerEntry(self.event, k),) if self.schedule is None else self.plan(start, k),
            spent=self.ledger.entries,
            limit=limit,
        )

    def _resolved(self, n: int) -> Target:
        assert self._target is not None
        delta_in_force = (
            replace(self._target, delta=self.delta) if isinstance(self._target, EpsilonTarget) else self._target
        )
        return delta_in_force.resolved(n)


def in_segment(ledger: PrivacyLedger, segment: str) -> PrivacyLedger:
    """The ledger under another name, if it has charged nothing itself; itself otherwise."""
    old = ledger.state_dict()
    if segment == ledger.segment or ledger.segment in old["segments"]:
        return ledger
    renamed = PrivacyLedger(segment)
    renamed.merge(old)
    return renamed
