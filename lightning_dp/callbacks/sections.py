"""What monitors put into a report: their results as sentences, tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from lightning_dp.callbacks.ensemble_budget import EnsembleBudget
from lightning_dp.callbacks.monitor import absent_values
from lightning_dp.metrics import CalibrationResult, Estimate, FairnessResult, MultiplicityResult
from lightning_dp.report import Figure, Section, Table, figure_of
from lightning_dp.report.figures import INK, new_figure

__all__ = ("calibration_section", "fairness_section", "multiplicity_section")

_UNPROTECTED = (
    "These numbers are exact and computed from the evaluation data. Eps protects the training data alone: before they are "
    "published, the people of the evaluation data must not need protection, and small groups deserve a second look."
)


def calibration_section(result: CalibrationResult, where: str, prefix: str = "") -> Section:
    """Calibration of all samples and of each group."""
    measures = ("accuracy", "ece", "adaptive_ece", "brier", "nll")
    shown = _shown(result)
    return Section(
        _key("calibration", prefix),
        _title("Calibration", prefix),
        paragraphs=[
            f"On the {where} data ({result.overall.n} samples) a predicted probability is off from the share that came true by "
            f"{_said(result.overall.ece)} on average (ECE; 0 is perfect).",
            *_worst("ECE", [(row.group, row.ece) for row in result.rows], result.attributes, highest=True),
        ],
        tables=[
            Table(
                f"Calibration on the {where} data, with {result.confidence:.0%} intervals where there are any",
                ("group", "n", *measures),
                tuple(
                    (row.group, row.n, *(str(getattr(row, m)) for m in measures)) for row in (*shown, result.overall)
                ),
            )
        ],
        figures=[
            _figure(
                lambda ax: result.plot(ax=ax),
                _title(f"Reliability on the {where} data", prefix),
                "Share that came true over predicted probability, by group; the dashed diagonal is perfect calibration.",
            )
        ],
        notes=[_UNPROTECTED, *_reasons(result.to_dict())],
        data={"stage": where, **result.to_dict()},
    )


def fairness_section(result: FairnessResult, where: str, prefix: str = "") -> Section:
    """Rates of each group and the gaps between them."""
    rates = ("base_rate", "selection_rate", "tpr", "fpr", "auroc")
    tables = [
        Table(
            f"Accuracy by group on the {where} data, with {result.confidence:.0%} intervals",
            ("group", "n", "accuracy", "accuracy minus that of the others"),
            tuple(
                (row.group, row.n, str(row.accuracy), str(row.accuracy_parity_difference))
                for row in (*result.rows, result.overall)
            ),
        ),
        Table(
            f"Gaps between groups on the {where} data",
            ("gap", "outcome", "value", "interval", "lowest", "highest", "left out or absent because"),
            tuple(
                (
                    gap.name.replace("_", " "),
                    gap.outcome,
                    gap.value,
                    "" if math.isnan(gap.low) else f"{gap.low:.3f} to {gap.high:.3f}",
                    gap.lowest,
                    gap.highest,
                    "; ".join([*gap.left_out, *([gap.reason] if gap.reason else [])]),
                )
                for gap in result.gaps
            ),
        ),
        *(
            Table(
                f"Rates of the outcome {outcome!r} by group on the {where} data",
                ("group", "n", *rates),
                tuple(
                    (row.group, row.n, *(str(getattr(row.outcomes[k], rate)) for rate in rates))
                    for row in (*result.rows, result.overall)
                ),
            )
            for k, outcome in enumerate(result.outcomes)
        ),
    ]
    return Section(
        _key("fairness", prefix),
        _title("Fairness between groups", prefix),
        paragraphs=[
            f"Of {result.overall.n} samples of the {where} data, {_said(result.overall.accuracy)} are predicted right.",
            *_worst("accuracy", [(row.group, row.accuracy) for row in result.rows], result.attributes, highest=False),
        ],
        tables=tables,
        figures=[
            _figure(
                lambda ax: result.plot("accuracy", ax=ax),
                _title(f"Accuracy by group on the {where} data", prefix),
                "Accuracy of each group with its interval; the dashed line is that of all samples.",
            )
        ],
        notes=[
            _UNPROTECTED,
            "A gap whose interval holds 0 may be chance. Which gap matters is a decision about people, not about numbers.",
            *_reasons(result.to_dict()),
        ],
        data={"stage": where, **result.to_dict()},
    )


def multiplicity_section(
    result: MultiplicityResult, budget: EnsembleBudget | None, where: str, prefix: str = ""
) -> Section:
    """How much the members differ, what the ensemble does, and what all members have spent together."""
    measures = ("ambiguity", "discrepancy", "obscurity", "pairwise_disagreement", "viable_range")
    shown, row = _shown(result), result.overall
    tables = [
        Table(
            f"Disagreement of {result.num_members} members on the {where} data",
            ("group", "n", *measures),
            tuple((r.group, r.n, *(str(getattr(r, m)) for m in measures)) for r in (*shown, row)),
        ),
        Table(
            f"The ensemble that answers or leaves a sample to an expert, on the {where} data",
            ("rule", "group", "n", "coverage", "abstention", "accuracy of its answers"),
            tuple(
                (e.rule, r.group, r.n, str(e.coverage), str(e.abstention), str(e.selective_accuracy))
                for r in (*shown, row)
                for e in r.ensembles
            ),
        ),
    ]
    said = [f"Together these are {budget}."] if budget is not None else []
    if budget is not None:
        alone = tuple((str(k), eps) for k, eps in enumerate(budget.alone))
        together = (("all together", budget.eps),)
        tables.append(Table("Eps of each member by itself, and of all together", ("member", "eps"), alone + together))
    return Section(
        _key("multiplicity", prefix),
        _title("Arbitrary predictions", prefix),
        paragraphs=[
            f"{result.num_members} models that differ in arbitrary choices (seed, order, noise) were compared on {row.n} "
            f"samples of the {where} data. For {_said(row.ambiguity)} of them at least one model contradicts the first one.",
            *(
                f"An ensemble of them under the rule {e.rule} answers {_said(e.coverage)} of the samples; of its answers "
                f"{_said(e.selective_accuracy)} are right. The others it leaves to an expert."
                for e in row.ensembles
            ),
            *said,
        ],
        tables=tables,
        figures=[
            _figure(
                lambda ax: result.plot(ax=ax),
                _title(f"Coverage and accuracy of the ensemble on the {where} data", prefix),
                "Accuracy of the answers over the share of samples answered, by group and rule, with intervals.",
            )
        ],
        notes=[
            "More members can only raise ambiguity and discrepancy: quote them with the number of members.",
            _UNPROTECTED,
            *_reasons(result.to_dict()),
        ],
        data={"stage": where, "budget": None if budget is None else budget.to_dict(), **result.to_dict()},
    )


def _key(name: str, prefix: str) -> str:
    return f"{name}-{prefix}" if prefix else name


def _title(name: str, prefix: str) -> str:
    return f"{name} ({prefix})" if prefix else name


def _shown(result: Any) -> Sequence[Any]:
    return () if result.attributes == ("",) else result.rows


def _said(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return f"an unknown share ({estimate.reason})"
    text = f"{estimate.value:.1%}"
    return text if math.isnan(estimate.low) else f"{text} ({estimate.low:.1%} to {estimate.high:.1%})"


def _worst(
    name: str, found: Sequence[tuple[str, Estimate]], attributes: tuple[str, ...], *, highest: bool
) -> list[str]:
    """One sentence on the group that fares worst; groups without a value are named too."""
    if attributes == ("",):
        return []
    ranked = [(group, e) for group, e in found if not math.isnan(e.value)]
    absent = [f"{group} ({e.reason})" for group, e in found if math.isnan(e.value)]
    sentences = []
    if ranked:
        group, worst = (max if highest else min)(ranked, key=lambda item: item[1].value)
        sentences.append(
            f"The {'highest' if highest else 'lowest'} {name} of a group is that of {group}: {_said(worst)}."
        )
    if absent:
        sentences.append(f"Without {name}: {', '.join(absent)}.")
    return sentences


def _reasons(plain: dict[str, Any]) -> list[str]:
    found = absent_values(plain)
    return [f"No value for {'; '.join(found[:30])}{' ...' if len(found) > 30 else ''}."] if found else []


def _figure(draw: Callable[[Any], Any], title: str, description: str) -> Figure:
    figure, axes = new_figure()
    draw(axes)
    legend = axes.get_legend()
    if legend is not None:
        legend.set_frame_on(False)
        for text in legend.get_texts():
            text.set_color(INK)
    return figure_of(figure, title, description)
