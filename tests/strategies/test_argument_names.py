"""A keyword that is none is answered with the name that is meant, and the signatures stay readable to every tool."""

from __future__ import annotations

import inspect

import pytest
from jsonargparse import ArgumentParser

from lightning_dp import BAMStrategy, DPStrategy, LangevinStrategy, NeuralDPStrategy
from lightning_dp.strategies.argument_names import ELSEWHERE

STRATEGIES = [BAMStrategy, DPStrategy, LangevinStrategy, NeuralDPStrategy]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("target_epsilon", "it is called eps"),
        ("clip", "called max_grad_norm"),
        ("sigma", "called noise_multiplier"),
        ("batch_size", "the DataLoader's; physical_batch_size"),
        ("secure_mode", "seeded by the operating system"),
        ("noise_multipler", "did you mean noise_multiplier"),
        ("find_unused_parameters", "there are eps, delta, noise_multiplier"),
    ],
)
def test_the_message_names_the_argument(name: str, hint: str) -> None:
    with pytest.raises(TypeError, match=rf"DPStrategy has no argument {name}: .*{hint}"):
        DPStrategy(**{"eps": 8, name: 1})  # type: ignore[arg-type]


def test_several_are_all_named() -> None:
    with pytest.raises(TypeError, match=r"target_delta: it is called delta; DPStrategy has no argument sigma"):
        DPStrategy(target_delta=1e-5, sigma=1.0)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda kind: kind.__name__)
def test_every_strategy_has_it_and_no_name_of_its_own_is_taken_for_another_s(kind: type) -> None:
    with pytest.raises(TypeError, match=f"{kind.__name__} has no argument target_epsilon: it is called eps"):
        kind(target_epsilon=1)
    assert not set(ELSEWHERE) & set(inspect.signature(kind).parameters)


@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda kind: kind.__name__)
def test_signatures_stay_what_they_were(kind: type) -> None:
    parameters = inspect.signature(kind).parameters.values()
    assert list(parameters)[0].name == "eps"
    assert not {p.kind for p in parameters} & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "strategy")
    assert parser.parse_args(["--strategy.noise_multiplier=2"]).strategy.noise_multiplier == 2
