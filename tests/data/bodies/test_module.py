"""Simulated bodies obey their equations and their ceiling; the data module gives graphs that nothing couples."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lightning_dp.data.bodies.graphs import FEATURES
from lightning_dp.data.bodies.module import BodyFatDataModule
from lightning_dp.data.bodies.simulation import (
    CORRELATIONS,
    SHARE_SD,
    BodyModel,
    draw_parameters,
    ellipsoid_bodies,
    fat_volumes,
    lean,
    r2_ceiling,
    simulate,
    trunk_lids,
    trunk_volume,
)
from lightning_dp.data.bodies.surfaces import edges_of, open_edges, signed_volume
from lightning_dp.errors import PrivacyConfigError
from tests.data.bodies.test_files import folder

SMALL: dict[str, Any] = {"bodies": "ellipsoid", "level": 20, "n_train": 12, "n_val": 3, "n_test": 5, "batch_size": 4}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_DP_CACHE", str(tmp_path / "cache"))


def body_models() -> list[Any]:
    anny = pytest.param("anny", marks=pytest.mark.slow)
    return ["ellipsoid", anny]


@pytest.fixture
def model(request: pytest.FixtureRequest) -> BodyModel:
    if request.param == "ellipsoid":
        return ellipsoid_bodies()
    if find_spec("anny") is None:
        pytest.skip("anny is not installed")
    import os

    if "ANNY_CACHE_DIR" not in os.environ:
        pytest.skip("anny would unpack a gigabyte: set ANNY_CACHE_DIR to a folder where it may")
    from lightning_dp.data.bodies.anny_model import anny_bodies

    return anny_bodies()


# --- the equations ----------------------------------------------------------------------------------------------------


def test_parameters_follow_their_copula() -> None:
    found = draw_parameters(20_000, np.random.default_rng(0))
    assert 25 <= found["age"].min() <= found["age"].max() <= 80
    assert found["male"].mean() == pytest.approx(0.5, abs=0.02)
    assert np.abs(found["tone"]).max() <= 1
    for name in ("muscle", "weight", "proportions", "central", "peripheral"):
        assert found[name].mean() == pytest.approx(0.5, abs=0.01)
    for (a, b), wanted in CORRELATIONS.items():
        # Of uniform margins: Spearman's rho, 6/pi asin(r/2) for a Gaussian copula; the standard error is below 0.01.
        ranks = [found[name].argsort().argsort() for name in (a, b)]
        assert np.corrcoef(*ranks)[0, 1] == pytest.approx(6 / np.pi * np.arcsin(wanted / 2), abs=0.03)


def test_volumes_add_up_to_the_fat_and_the_share_has_its_spread() -> None:
    parameters = {
        name: np.repeat(value, 50_000) for name, value in draw_parameters(1, np.random.default_rng(1)).items()
    }
    fat = np.full(50_000, 7.0)
    volumes = fat_volumes(fat, parameters, np.random.default_rng(2))
    assert volumes.sum(1) == pytest.approx(7)
    assert (volumes > 0).all()
    assert (volumes[:, 0] / 7).std() == pytest.approx(SHARE_SD, rel=0.02)


def test_old_slack_men_have_the_larger_visceral_share() -> None:
    base = {"male": np.zeros(1), "age": np.full(1, 40.0), "tone": np.zeros(1)}

    def share(**changed: float) -> float:
        some = {**base, **{name: np.full(1, value) for name, value in changed.items()}}
        return float(fat_volumes(np.ones(1), some, np.random.default_rng(0))[0, 0])

    assert share(male=1) > share() < share(age=70)
    assert share(tone=-1) > share() > share(tone=1)


def test_the_ceiling_is_the_r2_of_whoever_knows_everything() -> None:
    """The best prediction is share without noise times fat; its R2 is found here without the formula."""
    rng = np.random.default_rng(3)
    parameters = draw_parameters(40_000, rng)
    fat = rng.gamma(4, 2, 40_000)
    volumes = fat_volumes(fat, parameters, rng)
    quiet = [fat_volumes(fat, parameters, np.random.default_rng(seed)) for seed in range(200)]
    best = np.mean(quiet, axis=0)
    r2 = 1 - ((volumes - best) ** 2).mean(0) / volumes.var(0)
    assert r2_ceiling(fat, volumes) == pytest.approx(r2, abs=0.003)  # a standard error of R2 is below 0.001 here


# --- the shapes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", body_models(), indirect=True)
def test_bodies_are_closed_and_turned_outwards(model: BodyModel) -> None:
    assert len(open_edges(model.faces)) == 0
    bodies = model.vertices(draw_parameters(6, np.random.default_rng(0)))
    assert (signed_volume(bodies, model.faces) > 0.01).all()
    assert model.template.shape == bodies.shape[1:]


@pytest.mark.parametrize("model", body_models(), indirect=True)
def test_a_trunk_has_two_lids_and_less_volume_than_its_body(model: BodyModel) -> None:
    piece = model.faces[model.trunk]
    loops = trunk_lids(piece)
    assert len(loops) == 2
    parameters = draw_parameters(16, np.random.default_rng(1))
    body = model.vertices(parameters)
    trunk = trunk_volume(body, piece, loops)
    assert (trunk < 1000 * signed_volume(body, model.faces)).all()
    assert (trunk > trunk_volume(model.vertices(lean(parameters)), piece, loops)).all()
    assert trunk_volume(body + 3.0, piece, loops) == pytest.approx(trunk)


def test_the_trunk_of_a_sphere_is_a_spherical_segment() -> None:
    model = ellipsoid_bodies(rings=199, segments=200)
    middle = {"male": np.full(1, 0.5), "age": np.full(1, 52.5), "proportions": np.full(1, 0.5)}
    for name in ("muscle", "weight", "central", "peripheral", "tone", "height", "frame_width", "frame_depth"):
        middle[name] = np.zeros(1)
    body = model.vertices(middle)  # half axes 0.15, 0.10, about 0.3375 m
    piece = model.faces[model.trunk]
    loops = trunk_lids(piece)
    a, b, c = np.abs(body[0]).max(0)
    h = np.mean([abs(float(body[0, loop, 2].mean())) / c for loop in loops])
    expected = np.pi * a * b * c * 2 * (h - h**3 / 3) * 1000
    assert trunk_volume(body, piece, loops)[0] == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("model", body_models(), indirect=True)
def test_simulation_does_not_depend_on_blocks(model: BodyModel) -> None:
    def first(positions: NDArray[np.float64]) -> NDArray[np.float64]:
        return positions[:, :5]

    one, other = (simulate(model, 7, 0, first, block) for block in (3, 7))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value == pytest.approx(other[name], rel=1e-5), name
    assert 15 < one["anthropometry"][:, 0].mean() < 90


def test_shape_knows_more_than_body_mass_and_waist() -> None:
    """A straight line through the leading shape modes beats one through BMI and waist, and stays below the ceiling."""
    made = simulate(ellipsoid_bodies(), 1500, 0, lambda positions: positions[:, ::7])
    y = made["targets"][:, 0]

    def r2(x: NDArray[Any]) -> float:
        design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        weights = np.linalg.lstsq(design[:1000], y[:1000], rcond=None)[0]
        error = y[1000:] - design[1000:] @ weights
        return float(1 - (error**2).sum() / ((y[1000:] - y[1000:].mean()) ** 2).sum())

    flat = made["vertices"].reshape(1500, -1)
    u, s, _ = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    assert r2(made["anthropometry"]) + 0.1 < r2((u * s)[:, :12]) < made["ceiling"][0]


# --- the module -------------------------------------------------------------------------------------------------------

pytest_graphs = pytest.mark.skipif(find_spec("torch_geometric") is None, reason="torch-geometric is not installed")


def ready(**changed: Any) -> BodyFatDataModule:
    module = BodyFatDataModule(**{**SMALL, **changed})
    module.prepare_data()
    module.setup("fit")
    return module


@pytest_graphs
def test_batches_are_graphs_with_targets_in_litres() -> None:
    module = ready(features=("position", "residual", "normal", "degree"))
    batch = next(iter(module.train_dataloader()))
    assert batch.num_graphs == 4
    assert batch.x.shape[1] == module.in_features == sum(FEATURES.values())
    assert batch.x.dtype == batch.y.dtype == torch.float32
    assert batch.y.shape == (4, 2)
    assert len(module.train_dataloader()) == 3
    assert sum(b.num_graphs for b in module.test_dataloader()) == 5
    assert sum(b.num_graphs for b in module.val_dataloader()) == 3
    a, b = batch.edge_index
    assert torch.equal(batch.batch[a], batch.batch[b])


@pytest_graphs
def test_features_are_those_of_one_mesh_and_public_constants() -> None:
    module = ready(features=("position", "residual", "degree"))
    graph = module._sets["train"][0]
    position, residual, degree = graph.x.split([3, 3, 1], dim=1)
    assert position.mean(0).abs().max() < 1e-6  # centred
    assert module.template is not None
    shown = torch.from_numpy(module.template) / 0.05
    assert torch.allclose(position.double() * 0.5 / 0.05 - shown, residual.double(), atol=1e-4)
    counts = torch.bincount(graph.edge_index[0], minlength=len(degree))
    assert torch.allclose(degree[:, 0] * 6, counts.float())


@pytest_graphs
def test_the_same_seed_gives_the_same_bodies_and_another_seed_others() -> None:
    one, same, other = (ready(seed=seed)._sets["train"][3] for seed in (0, 0, 1))
    assert torch.equal(one.x, same.x)
    assert not torch.allclose(one.x, other.x)


@pytest_graphs
def test_no_validation_bodies_mean_no_loader() -> None:
    assert "val" not in ready(n_val=0)._sets


@pytest_graphs
def test_a_root_with_three_meshes_is_enough(tmp_path: Path) -> None:
    module = ready(root=str(folder(tmp_path)), level=100, n_val=0, n_test=1, features=("position",))
    batch = next(iter(module.train_dataloader()))
    assert batch.num_graphs == 2
    assert batch.num_nodes == 16
    assert torch.equal(module._sets["train"][0].edge_index, torch.from_numpy(edges_of(module.meshes[0].faces)))
    with pytest.raises(PrivacyConfigError, match="'residual' needs a template"):
        ready(root=str(tmp_path), level=100, n_val=0, n_test=1, features=("residual",))


@pytest_graphs
def test_meshes_of_one_subject_stay_in_one_part_as_one_unit(tmp_path: Path) -> None:
    table = "mesh,vat,subject\n0.off,1,b\n1.off,2,a\n2.off,3,b\n"
    for seed in range(6):
        module = ready(
            root=str(folder(tmp_path, targets_csv=table)), targets=("vat",), n_val=0, n_test=1, level=100, seed=seed,
            features=("position",),
        )  # fmt: skip
        sizes = {part: len(data) for part, data in module._sets.items()}
        assert sizes in ({"train": 2, "test": 1}, {"train": 1, "test": 2})
        owners = module._sets["train"].unit_id
        assert owners is not None
        assert len(set(owners.tolist())) == 1


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"bodies": "smplx"}, "choose 'anny' or 'ellipsoid'"),
        ({"features": ("colour",)}, "choose from position, residual, normal, degree"),
        ({"features": ()}, "choose from"),
        ({"level": 0}, "above 0 and at most 100"),
        ({"targets": ("liver",)}, "others need root="),
    ],
)
def test_unknown_settings_are_refused(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(PrivacyConfigError, match=reason):
        BodyFatDataModule(**{**SMALL, **changed})


def test_the_card_says_stand_in() -> None:
    assert not BodyFatDataModule.card.real
    assert "stand-in" in str(BodyFatDataModule.card)


def test_the_card_of_a_folder_says_real(tmp_path: Path) -> None:
    """Whether data are real decides what an eps is worth: a folder of one's own is no stand-in, read or not."""
    data = BodyFatDataModule(root=str(folder(tmp_path)), level=100, n_val=1, n_test=1, features=("position",))
    assert data.card.real
    data.prepare_data()
    assert data.card.real
    assert data.card.n == 2  # three meshes, one of them for test
    assert "stand-in" not in str(data.card)
    assert not BodyFatDataModule.card.real  # the class still speaks of the simulation
    assert not BodyFatDataModule(**SMALL).card.real
