"""What every test may rely on: fixed seeds, an empty working folder, a clean process."""

from __future__ import annotations

import logging
import os

# Before torch is imported: two ranks on two cores must not start four threads each; plots need no screen.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

# The same examples on every run, and no time limit an example: a slow machine is not a failing property.
settings.register_profile("fixed", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("fixed")

# Libraries and launchers write these themselves and never take them back. Any other leak is a fault.
_WRITTEN_BY_OTHERS = re.compile(
    r"(PL_|PYTORCH|PYTEST|TORCH|TRITON|KMP_|CUBLAS_|CUDA_|NCCL_|GLOO_|MASTER_|TF|JPY_|(WORLD_SIZE|\w*RANK)$)"
)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Seed the ordinary generators. Privacy noise has its own, which no test may reach by a global seed."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def empty_folder(clean_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, so that logs and checkpoints of a forgotten `default_root_dir` land nowhere."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def clean_process() -> Iterator[None]:
    """Put back every process-wide switch, and fail a test that leaks one nobody expects to change."""
    environment = dict(os.environ)
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    yield
    logger.setLevel(level)  # scripts of recipes silence it, as scripts may
    leaked = {
        key
        for key in environment.keys() | os.environ.keys()
        if environment.get(key) != os.environ.get(key) and not _WRITTEN_BY_OTHERS.match(key)
    }
    os.environ.clear()
    os.environ.update(environment)

    group_left_open = torch.distributed.is_available() and torch.distributed.is_initialized()
    if group_left_open:
        torch.distributed.destroy_process_group()
    dtype_left, grad_left = torch.get_default_dtype(), torch.is_grad_enabled()
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(True)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    if rank_zero := sys.modules.get("lightning.fabric.utilities.rank_zero"):
        rank_zero.rank_zero_only.rank = 0

    assert not leaked, f"the test left environment variables changed: {sorted(leaked)}"
    assert not group_left_open, "the test left a process group open"
    assert dtype_left == dtype, f"the test left the default dtype at {dtype_left}"
    assert grad_left, "the test left gradients switched off"


def _hooks(module: torch.nn.Module) -> list[str]:
    """Names of the hooks that hang on a module, its children and its parameters."""
    found = []
    for name, child in module.named_modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            found += [f"{name or 'module'}.{kind}" for _ in getattr(child, kind)]
    for name, parameter in module.named_parameters():
        found += [f"{name}._backward_hooks"] if parameter._backward_hooks else []
        found += [f"{name} is no Parameter"] if not isinstance(parameter, torch.nn.Parameter) else []
    return found


@pytest.fixture
def left_untouched() -> Iterator[Callable[[torch.nn.Module], torch.nn.Module]]:
    """Watch a module: after the test it must have the hooks and state-dict keys that it came with."""
    watched: list[tuple[torch.nn.Module, list[str], list[str]]] = []

    def watch(module: torch.nn.Module) -> torch.nn.Module:
        watched.append((module, _hooks(module), list(module.state_dict())))
        return module

    yield watch
    for module, hooks, keys in watched:
        assert _hooks(module) == hooks, "hooks were left on the module"
        assert list(module.state_dict()) == keys, "state-dict keys were renamed"
