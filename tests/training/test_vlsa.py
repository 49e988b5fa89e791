"""Tiles, a snapshot and reconstruction in runs: pictures of any size, recipes, plan, processor."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import oculi
from diffusion import SIZE, save_pipeline
from helpers import Tiny, exported, llava_data, metrics, save_teacher
from oculi.cognition.turns import cognition_of
from oculi.data.index import sample_length
from oculi.data.source import open_sources
from oculi.errors import RecipeError
from oculi.model.perceiver_oculi import Perceiver
from oculi.objectives.reconstruct import Reconstruct
from oculi.plan import plan
from oculi.plan.build import meta_model
from oculi.recipe import ReconstructSpec, override, validate
from oculi.recipes import BUILTIN
from oculi.training.build import build_model, build_processor, recut
from oculi.training.module import learning_rates
from oculi.training.optim import muon_matrices
from oculi.training.run import train

SIZES = ((1, 4000), (4000, 1), (4000, 4000), (10_000, 900), (3, 2))
TILES = 4


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("tower"), "clip")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("pipeline"))


def vlsa(tiny: Tiny, tower: Path, pipeline: Path, **changes: Any) -> dict[str, Any]:
    terms = [
        {"kind": "lm"},
        {
            "kind": "reconstruct", "denoiser": str(pipeline), "vae": str(pipeline), "size": SIZE,
            "rank": 6,
        },
    ]  # fmt: skip
    vision = {
        "kind": "perceiver", "patch_size": 4, "init_from": str(tower), "heads": 2,
        "max_tiles": TILES, "tiles_at_once": 2,
    }  # fmt: skip
    return llava_data(
        tiny,
        tower,
        **{
            "model.vision": vision,
            "model.images": {"mode": "native", "min_patches": 1, "max_patches": 256},
            "stages.0.objectives": terms,
            "stages.0.trainable": {"vision.*": None, "objectives.*": None},
            "stages.1.trainable": {"vision.*": None, "llm.*": None},
            **changes,
        },
    )


def odd_rows(folder: Path) -> Path:
    """One row for each size, and one without a picture."""
    rows = [{"id": "text", "conversations": turns("no picture", "none")}]
    for number, size in enumerate(SIZES):
        colour = (40 * number, 200, 10)
        Image.new("RGB", size, colour).save(folder / f"{number}.png")
        rows.append(
            {
                "id": str(number), "image": f"{number}.png",
                "conversations": turns("<image>\nWhat colour?", "green"),
            }
        )  # fmt: skip
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def turns(asked: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]


def test_it_trains_on_pictures_of_any_size(
    tiny: Tiny, tower: Path, pipeline: Path, tmp_path: Path
) -> None:
    """A line of pixels, a huge square, and one smaller than a patch: as many tokens each."""
    data = vlsa(tiny, tower, pipeline)
    rows = [{"kind": "file", "path": str(odd_rows(tmp_path))}]
    for stage in data["stages"]:
        stage |= {"data": rows, "batch": len(SIZES) + 1, "steps": 2}
    recipe = validate(data, "test")
    run = train(recipe, tmp_path / "run", quiet=True)
    found = metrics(run)
    assert len(found) == 4
    assert all(torch.isfinite(torch.tensor(step["loss"])) for step in found.values())
    assert all(step["bad_samples"] == 0 for step in found.values())
    assert found["pretrain", 1]["reconstruct"] > 0 and "reconstruct" not in found["finetune", 1]
    model, processor = oculi.load(run)
    for size in SIZES:
        assert processor.image_processor.tokens(processor.image_processor.grid(*size)) == 16
    encoded = processor.encode([("user", [Image.new("RGB", (1, 4000)), "What?"])], True)
    inputs = processor.collate([encoded])
    assert model.generate(**inputs, max_new_tokens=2).shape[0] == 1
    assert {name.split(".")[1] for name in exported(run) if name.startswith("vision.")} == {
        "tower", "perceiver", "connector",
    }  # fmt: skip


@pytest.mark.parametrize("tokens", ["compressed", "all", "snapshot"])
def test_the_recipes_processor_is_told_how_many(tiny: Tiny, tower: Path, tokens: str) -> None:
    data = llava_data(
        tiny,
        tower,
        **{
            "model.vision": {
                "kind": "perceiver", "patch_size": 4, "init_from": str(tower), "tokens": tokens,
                "max_tiles": TILES,
            }
        },
    )  # fmt: skip
    recipe = validate(data, "test")
    processor = build_processor(recipe.model)
    model = build_model(recipe.model, processor, 0)
    grids = [(1, 16), (4, 4), (3, 5), (10, 6)]
    counts = [recut(processor, recipe.model.images).image_processor.tokens(grid) for grid in grids]
    assert counts == model.tokens_per_image(torch.tensor(grids)).tolist()
    assert counts == meta_model(recipe.model).tokens_per_image(torch.tensor(grids)).tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patch_size": 8}, "model.vision.patch_size: 8 here but 4 in"),
        ({"heads": 5}, "model.vision.heads: 5 do not divide the width of"),
        ({"width": 4}, "model.vision.width: 4 is less than the width of"),
        ({"layer": 9}, "model.vision.layer"),
    ],
)
def test_a_spec_that_does_not_fit_its_tower(
    tiny: Tiny, tower: Path, pipeline: Path, change: dict[str, Any], said: str
) -> None:
    data = vlsa(tiny, tower, pipeline)
    data["model"]["vision"] |= change
    recipe = validate(data, "test")
    for make in (lambda: build_model(recipe.model, build_processor(recipe.model), 0),
                 lambda: meta_model(recipe.model)):  # fmt: skip
        with pytest.raises(RecipeError, match=said) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_the_plan_counts_reconstruction_apart() -> None:
    """Sizes of section 4.1 and of the published checkpoints; without a weight."""
    recipe = BUILTIN["vlsa"]()
    quick = override(recipe, ["model.vision.max_tiles=1", "model.images.max_patches=576"])
    stages = plan(quick).stages
    assert [stage.tokens_per_image for stage in stages] == [576] * 3
    first = stages[0]
    assert first.parameters["llm"] == 8_030_261_248 and first.parameters["tower"] == 303_507_456
    # Five matrices of CLIP's width, the query, four numbers for each of 16 heads.
    assert first.parameters["perceiver"] == 5 * 1024**2 + 1024 + 64
    epigone = 4096 * 256 + 256 + 256 * 4096 + 4096 + 256 * 2048 + 2048
    sd3 = 2_028_328_000
    term = first.objectives["reconstruct"]
    assert (term.parameters, term.trainable) == (sd3 + epigone, epigone)
    assert term.teacher == 83_819_683  # SD3's autoencoder, frozen
    assert first.macs["reconstruct"].forward > 10**11 and first.trained["llm"] == 0
    assert stages[1].objectives["reconstruct"].trainable == sd3 + epigone
    assert stages[1].trained["tower"] == 303_507_456 and stages[1].trained["llm"] == 0
    assert stages[2].trained["llm"] == 8_030_261_248


def test_stages_are_the_papers() -> None:
    """Section 4.1: 558K, 422K and 790K samples; the summation of both losses."""
    recipe = BUILTIN["vlsa"]()
    samples = [stage.steps * stage.batch for stage in recipe.stages]
    assert [round(n, -3) for n in samples] == [558_000, 422_000, 790_000]
    for stage in recipe.stages:
        lm, term = stage.objectives
        assert isinstance(term, ReconstructSpec) and (lm.weight, term.weight) == (1, 1)
        assert (term.rank, term.target) == (256, "latent")
    assert recipe.stages[2].cognition is not None  # instructions, and an LLM that learns
    assert [stage.cognition for stage in recipe.stages[:2]] == [None, None]
    vision = recipe.model.vision
    assert (vision.kind, vision.tokens, vision.layer) == ("perceiver", "compressed", -2)
    assert recipe.model.image_attention == "causal"


def test_what_the_tiny_recipe_asks_is_never_left_out_for_its_length() -> None:
    """Both questions beside all turns of a conversation: the longest is within the stage's length."""
    recipe = BUILTIN["vlsa_tiny"]()
    stage = recipe.stages[2]
    assert stage.cognition is not None
    processor = build_processor(recipe.model)
    asking = cognition_of(stage, 0, processor)
    assert asking is not None and [reader.name for reader in asking.readers] == ["codes", "pixels"]
    added = sum(asking.cost(reader)[0] for reader in asking.readers)
    rows = open_sources(stage.data)
    longest = max(sample_length(rows[number], processor) for number in range(300))
    assert longest > 100 and longest + added <= stage.length


def test_the_tiny_recipe_trains(tmp_path: Path) -> None:
    """Every stage as it ships but for its size; the last asks in every draw."""
    changes = [f"stages.{n}.{key}" for n in range(3) for key in ("steps=1", "batch=6")]
    changes += ["evals=[]", "stages.2.steps=2"]
    changes += [f"stages.2.cognition.{kind}.share=1" for kind in ("pixels", "codes")]
    run = train(override(BUILTIN["vlsa_tiny"](), changes), tmp_path / "run", quiet=True)
    found = metrics(run)
    assert [stage for stage, _ in found] == ["align", "read", "finetune", "finetune"]
    for step in found.values():
        assert step["bad_samples"] == 0 and step["reconstruct"] > 0
        assert torch.isfinite(torch.tensor(step["loss"]))
        assert step["loss"] == pytest.approx(step["lm"] + step["reconstruct"], rel=1e-4)
    parts = {name.split(".")[0] for name in exported(run, "2-finetune")}
    assert parts == {"llm", "vision"}


def test_the_tower_attends_so_in_every_stage(
    tiny: Tiny, tower: Path, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stage starts from an exported folder, which says nothing of it."""
    found: list[str] = []
    forward = Perceiver.forward

    def watched(part: Any, *args: Any) -> Any:
        found.append(part.tower.config._attn_implementation)
        return forward(part, *args)

    monkeypatch.setattr(Perceiver, "forward", watched)
    recipe = vlsa(tiny, tower, pipeline)
    recipe["model"]["vision"]["attention"] = "eager"
    run = train(validate(recipe, "test"), tmp_path / "run", quiet=True)
    assert len({stage for stage, _ in metrics(run)}) == 2
    assert len(found) >= len(metrics(run)) and set(found) == {"eager"}


def test_heads_are_held_where_they_start_and_the_tower_changes_slowly() -> None:
    """In every stage that trains them: "vision.*" must not take back what a rate of its own says."""
    recipe = BUILTIN["vlsa_tiny_instructions"]()
    names = [name for name, _ in meta_model(recipe.model).named_parameters()]
    for stage in recipe.stages:
        rates = learning_rates(names, stage.trainable, stage.lr, stage.name)
        assert rates["vision.perceiver.bumps"] == 1e-5 < rates["vision.perceiver.query"] == stage.lr
        tower = {rate for name, rate in rates.items() if name.startswith("vision.tower.")}
        assert tower == (set() if stage.name == "align" else {2e-5})


def test_muon_has_every_matrix_of_connector_and_perceiver() -> None:
    """And none of the tower, which reads already: AdamW at a rate of its own keeps what it knows."""
    recipe = BUILTIN["vlsa_tiny_instructions"]()
    model = build_model(recipe.model, build_processor(recipe.model), 0)
    parameters = dict(model.named_parameters())
    found = muon_matrices(parameters, list(parameters), recipe.stages[-1], "here")
    seeing = {name for name in found if name.startswith("vision.")}
    assert seeing == {
        *(f"vision.perceiver.w_{name}.weight" for name in ("q", "kv", "o1", "k", "o2")),
        "vision.connector.0.weight",
        "vision.connector.2.weight",
    }


def test_muon_has_the_matrices_of_the_denoisers_blocks_at_the_stages_rate() -> None:
    """With AdamW at 1e-3 it did not learn to use what it is given in time to teach (docs/log.md)."""
    recipe = BUILTIN["vlsa_tiny"]()
    model = build_model(recipe.model, build_processor(recipe.model), 0)
    stage = recipe.stages[-1]
    term = Reconstruct.from_spec(stage.objectives[1], model)
    parameters = {
        **dict(model.named_parameters()),
        **{f"objectives.reconstruct.{name}": weight for name, weight in term.named_parameters()},
    }
    found = muon_matrices(parameters, list(parameters), stage, "here")
    named = {name for name in found if name.startswith("objectives.")}
    assert named == {
        name for name, weight in parameters.items()
        if ".transformer_blocks." in name and weight.ndim == 2
    }  # fmt: skip
    assert len(named) > 40
    rates = learning_rates(list(parameters), stage.trainable, stage.lr, stage.name)
    assert {rates[name] for name in named} == {stage.lr}
    without = BUILTIN["vlsa_tiny_instructions"]().stages[-1].muon
    assert set(stage.muon) - set(without) == {"objectives.reconstruct.denoiser.*blocks.*.weight"}


@pytest.mark.parametrize(
    ("name", "tokens", "count", "dropped", "new"),
    [
        ("vlsa_tiny_snapshot", "snapshot", 36, {"objectives", "cognition"}, ["vision.perceiver."]),
        (
            "vlsa_tiny_tiles",
            "all",
            192,
            {"objectives", "cognition"},
            ["vision.perceiver.", "vision.newline"],
        ),
        ("vlsa_tiny_instructions", "compressed", 36, {"objectives"}, []),
    ],
)
def test_a_baseline_stands_beside_the_tiny_recipe(
    name: str, tokens: str, count: int, dropped: set[str], new: list[str], tmp_path: Path
) -> None:
    """The same LLM, tower, samples, order and steps, and it trains; only what its name says differs."""
    ours, beside = BUILTIN[name](), BUILTIN["vlsa_tiny"]()
    assert (ours.seed, ours.evals) == (beside.seed, beside.evals)
    vision = beside.model.vision.model_copy(update={"tokens": tokens})
    assert ours.model == beside.model.model_copy(update={"vision": vision})
    differ = {*dropped, "trainable", "muon"}  # the globs of what is not there
    for one, other in zip(ours.stages, beside.stages, strict=True):
        assert one.model_dump(exclude=differ) == other.model_dump(exclude=differ)
        assert [term.kind for term in one.objectives] == ["lm"]
        unlike = dict(one.trainable.items() ^ other.trainable.items())
        unlike |= dict.fromkeys(set(one.muon) ^ set(other.muon))
        assert all(glob.startswith(("objectives.", *new)) for glob in unlike)
    cutter = build_processor(ours.model).image_processor
    assert cutter.tokens(cutter.grid(168, 168)) == count
    changes = [f"stages.{n}.{key}" for n in range(3) for key in ("steps=1", "batch=2")]
    run = train(override(ours, [*changes, "evals=[]"]), tmp_path / "run", quiet=True)
    for step in metrics(run).values():
        assert step["bad_samples"] == 0 and torch.isfinite(torch.tensor(step["loss"]))
