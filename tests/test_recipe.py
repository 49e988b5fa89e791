"""Recipes: what is wrong is said in one line, what is printed runs, what trains is written down."""

import copy
from pathlib import Path
from typing import Any

import pytest

import settings_page
from golden_names import (
    COMMAND,
    compact,
    golden_file,
    stages,
    trainable,
)
from helpers import PATCH, put
from oculi.errors import DataError, RecipeError
from oculi.recipe import (
    EvalSpec,
    FileSource,
    LmSpec,
    PlayroomSource,
    Recipe,
    TowerSpec,
    load,
    override,
    validate,
)
from oculi.recipes import BUILTIN, find_recipe
from oculi.recipes.flags import SHOWN_ANSWERS, apply_epochs, apply_flags


def data() -> dict[str, Any]:
    stage = {
        "name": "pretrain",
        "data": [
            {"kind": "file", "path": "a.json"},
            {"kind": "playroom", "level": 1, "samples": 9},
        ],
        "steps": 5,
        "batch": 2,
        "length": 64,
        "objectives": [{"kind": "lm"}, {"kind": "distill", "teacher": "vit"}],
        "lr": 1e-3,
        "trainable": {"llm.*.lora_?": None, "vision.*": 1e-4},
        "merge_lora": True,
    }
    return {
        "name": "x",
        "summary": "y",
        "model": {
            "llm": "llm",
            "vision": {"kind": "patch_embed", "patch_size": PATCH, "width": 8, "grid": [2, 2]},
            "images": {},
            "lora": {"rank": 2, "blocks": 1},
        },
        "stages": [stage, {**stage, "name": "finetune", "merge_lora": False}],
        "evals": [{"task": "playroom:1"}],
    }


def problem(changes: dict[str, Any], base: dict[str, Any] | None = None) -> str:
    wrong = copy.deepcopy(base or data())
    for key, value in changes.items():
        put(wrong, key, value)
    with pytest.raises(RecipeError) as caught:
        validate(wrong, "here")
    message = str(caught.value)
    assert message.startswith("here: ") and "\n" not in message
    return message.removeprefix("here: ")


def overridden(*assignments: str) -> str:
    with pytest.raises(RecipeError) as caught:
        override(validate(data(), "here"), list(assignments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


UNKNOWN = [
    ("sead", "sead", "seed"),
    ("model.lllm", "model.lllm", "llm"),
    ("model.vision.widht", "model.vision.widht", "width"),
    ("model.images.max_patch", "model.images.max_patch", "max_patches"),
    ("model.lora.ranks", "model.lora.ranks", "rank"),
    ("stages.1.learning_rates", "stages.1.learning_rates", None),
    ("stages.1.step", "stages.1.step", "steps"),
    ("stages.0.data.0.paht", "stages.0.data.0.paht", "path"),
    ("stages.0.data.1.sampels", "stages.0.data.1.sampels", "samples"),
    ("stages.0.objectives.0.wieght", "stages.0.objectives.0.wieght", "weight"),
    ("stages.0.objectives.1.teach", "stages.0.objectives.1.teach", "teacher"),
    ("evals.0.limits", "evals.0.limits", "limit"),
]


@pytest.mark.parametrize(("key", "named", "guess"), UNKNOWN)
def test_an_unknown_key_is_named_with_the_nearest(key: str, named: str, guess: str | None) -> None:
    hint = f'; did you mean "{guess}"?' if guess else ""
    assert problem({key: 1}) == f'unknown key "{named}"{hint}'


@pytest.mark.parametrize(("key", "named", "guess"), UNKNOWN)
def test_an_unknown_override_is_named_with_the_nearest(
    key: str, named: str, guess: str | None
) -> None:
    message = overridden(f"{key}=1")
    assert message.startswith(f'unknown key "{named}"')
    assert (f'did you mean "{guess}"?' in message) if guess else ("known here: " in message)


def test_a_key_under_an_unknown_key_is_named() -> None:
    assert overridden("modle.llm=x") == 'unknown key "modle.llm"; did you mean "model"?'
    assert "stages has 2 entries, from 0" in overridden("stages.2.lr=1")
    assert "stages has 2 entries, from 0" in overridden("stages.first.lr=1")
    assert "stages has 2 entries, from 0" in overridden("stages.².lr=1")
    assert "stages.0.lr is a value" in overridden("stages.0.lr.x=1")
    assert "is no override" in overridden("stages.0.lr")
    assert 'unknown key ""' in overridden("=3")


WRONG = [
    ("stages.0.steps", 0),
    ("stages.0.steps", "many"),
    ("stages.0.steps", 2.5),
    ("stages.0.steps", True),
    ("stages.0.batch", 0),
    ("stages.0.length", 7),
    ("stages.0.lr", 0),
    ("stages.0.lr", -1e-3),
    ("stages.0.lr", True),
    ("stages.0.lr", None),
    ("stages.0.clip", 0),
    ("stages.0.betas", [0.9, 1.0]),
    ("stages.0.betas", [0.9]),
    ("stages.0.schedule", "cosin"),
    ("stages.0.name", "Pre Train"),
    ("stages.0.data", []),
    ("stages.0.trainable", {}),
    ("stages.0.trainable", {"llm.*": "fast"}),
    ("stages.0.trainable", {"llm.*": -1e-3}),
    ("stages.0.data.1.level", 6),
    ("stages.0.data.1.split", "pair"),
    ("stages.0.data.1.size", [84, 0]),
    ("stages.0.objectives.1.mode", "blocks"),
    ("stages.0.workers", -1),
    ("stages", []),
    ("seed", -1),
    ("model.lora.rank", 0),
    ("model.lora.blocks", 0),
    ("model.dtype", "float16"),
    ("model.image_attention", "both"),
    ("model.images.size", 0),
    ("model.images.min_patches", 0),
    ("model.vision.grid", [0, 4]),
    ("model.vision.width", 0),
    ("evals.0.limit", 0),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_value_is_refused_by_key(key: str, value: object) -> None:
    assert problem({key: value}).startswith(key)


NOT_FINITE = [
    "stages.0.lr",
    "stages.0.clip",
    "stages.0.objectives.0.weight",
    "stages.0.weight_decay",
]


@pytest.mark.parametrize("key", NOT_FINITE)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", ".nan", ".inf"])
def test_not_finite_is_refused(key: str, value: str) -> None:
    assert f": {key}: " in overridden(f"{key}={value}")
    assert problem({key: float(value.replace(".", ""))}).startswith(key)


def test_a_rate_that_is_not_finite_is_refused() -> None:
    assert "stages.0.trainable.vision.*" in overridden("stages.0.trainable.vision.*=nan")


def test_a_compressor_by_override() -> None:
    recipe = override(BUILTIN["vora"](), ["model.compress={kind: merge, factor: 4}"])
    assert recipe.model.compress is not None and recipe.model.compress.factor == 4
    again = override(recipe, ["model.compress.factor=2"])
    assert again.model.compress is not None and again.model.compress.factor == 2
    assert override(recipe, ["model.compress=null"]) == BUILTIN["vora"]()
    few = {"kind": "merge", "factor": 1}
    assert problem({"model.compress": few}).startswith("model.compress.factor")
    unknown = 'unknown key "model.compress.'
    assert problem({"model.compress": {"kind": "merge", "factor": 2, "factr": 2}}) == (
        unknown + 'factr"; did you mean "factor"?'
    )


def test_an_unknown_kind_lists_the_known() -> None:
    message = problem({"stages.0.objectives.1.kind": "distil"})
    assert "stages.0.objectives.1" in message and "'lm', 'distill'" in message
    assert "'patch_embed', 'tower'" in problem({"model.vision": {"kind": "towr", "init_from": "v"}})


def test_a_missing_kind_lists_the_known() -> None:
    said = {
        "model.vision": "patch_embed, tower, perceiver",
        "stages.0.data.0": "file, playroom, language",
        "stages.0.objectives.1": "lm, distill, reconstruct",
    }
    for key, kinds in said.items():
        message = problem({key: {"path": "a.json"}})
        assert message == f"{key}: kind is missing; it is one of {kinds}"


def test_keys_of_a_tower() -> None:
    """An unknown one is named with the nearest of its kind, not of the other."""
    tower = {"kind": "tower", "init_from": "vit"}
    unknown = 'unknown key "model.vision.'
    assert (
        problem({"model.vision": {**tower, "lyer": 1}}) == unknown + 'lyer"; did you mean "layer"?'
    )
    assert problem({"model.vision": {**tower, "grid": [4, 4]}}) == unknown + 'grid"'
    assert problem({"model.vision": {"kind": "tower"}}) == "model.vision.init_from: Field required"
    for layer in (1.5, True, "last", None):
        assert problem({"model.vision": {**tower, "layer": layer}}).startswith("model.vision.layer")


def test_overrides_of_a_tower() -> None:
    recipe = override(BUILTIN["llava"](), ["model.vision.layer=-1", "model.vision.init_from=a/b"])
    assert recipe.model.vision == TowerSpec(init_from="a/b", layer=-1)
    with pytest.raises(RecipeError, match=r'"model\.vision\.lyer"; did you mean "layer"'):
        override(recipe, ["model.vision.lyer=-1"])
    with pytest.raises(RecipeError, match=r'"model\.vision\.layer"; known here: grid'):
        override(BUILTIN["vora"](), ["model.vision.layer=-1"])
    swapped = override(BUILTIN["vora"](), ["model.vision={kind: tower, init_from: a/b}"])
    assert swapped.model.vision == TowerSpec(init_from="a/b")


def test_rules_between_fields() -> None:
    assert "LoRA is merged twice, after pretrain and after finetune" in problem(
        {"stages.1.merge_lora": True}
    )
    assert "merges LoRA, but the model has none" in problem({"model.lora": None})
    assert "two stages have one name" in problem({"stages.1.name": "pretrain", "seed": 0})
    both = problem({"stages.0.single_turns": 0.6, "stages.0.separate_turns": 0.6})
    assert "together they are at most 1" in both
    mutual = {"model.image_attention": "mutual", "stages.1.separate_turns": 0.5}
    assert "stages.1.separate_turns: under model.image_attention" in problem(mutual)
    assert "there is none to learn from" in problem({"stages.0.objectives": []})
    none = {"kind": "distill", "teacher": "a", "mode": "none"}
    assert "there is none to learn from" in problem({"stages.0.objectives": [none]})
    plain = problem({"stages.0.plain_turns": 0.5})
    assert "plain_turns is a share of the turns that single_turns" in plain
    parts = {"kind": "perceiver", "patch_size": 4, "init_from": "a"}
    distils = {"model.vision": parts, "stages.0.objectives": [{"kind": "distill", "teacher": "a"}]}
    assert 'of model.vision.kind "perceiver" no token stands for a patch' in problem(distils)
    assert "of new parts" in problem({"model.start": "a", "model.init": "normal"})
    assert "occurs twice" in problem({"stages.0.objectives": [{"kind": "lm"}, {"kind": "lm"}]})
    assert "init_from" in problem({"model.vision": {"kind": "patch_embed", "patch_size": 4}})
    assert "max_patches" in problem({"model.images": {"min_patches": 9, "max_patches": 8}})
    assert "multiple" in problem({"model.images": {"mode": "square", "size": 450}})


def test_overrides_are_applied_in_order_and_typed() -> None:
    recipe = override(
        validate(data(), "here"),
        [
            "stages.0.lr=1e-4",
            "stages.1.steps=7",
            "model.llm=some/where-1",
            "model.image_attention=mutual",
            "stages.0.betas=[0.8, 1e-1]",
            "model.lora=null",
            "stages.0.merge_lora=false",
            "stages.1.lr=3",
            "stages.1.lr=2e-5",
        ],
    )
    assert [stage.lr for stage in recipe.stages] == [1e-4, 2e-5]
    assert recipe.stages[0].betas == (0.8, 0.1)
    assert (recipe.stages[1].steps, recipe.model.llm) == (7, "some/where-1")
    assert recipe.model.lora is None and recipe.model.image_attention == "mutual"
    assert override(recipe, []) is recipe


def test_a_glob_holds_dots_and_can_be_overridden() -> None:
    recipe = override(
        validate(data(), "here"),
        ["stages.0.trainable.llm.*.lora_?=3e-4", "stages.0.trainable.vision.patch.*=null"],
    )
    expected = {"llm.*.lora_?": 3e-4, "vision.*": 1e-4, "vision.patch.*": None}
    assert recipe.stages[0].trainable == expected
    assert recipe.stages[1].trainable == validate(data(), "here").stages[1].trainable


def test_a_recipe_cannot_be_changed_in_place() -> None:
    recipe = validate(data(), "here")
    with pytest.raises(ValueError, match="frozen"):
        recipe.stages[0].lr = 1.0


def test_the_page_of_settings_is_up_to_date() -> None:
    """And every setting is described; written by: python tests/settings_page.py"""
    text = settings_page.page()
    assert settings_page.PAGE.read_text(encoding="utf-8") == text
    assert not [
        line for line in text.splitlines() if line.startswith("| `") and line.endswith("|  |")
    ]
    assert "| `stages` | several of [Stage](#stage) |" in text and "\n## Distill\n" in text


@pytest.mark.parametrize("name", BUILTIN)
def test_what_is_printed_is_the_recipe(name: str, tmp_path: Path) -> None:
    recipe = BUILTIN[name]()
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load(file) == recipe == find_recipe(str(file)) == find_recipe(name)
    # Built with model_copy, which validates nothing.
    assert validate(recipe.model_dump(), name) == recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read the recipe"),
        ("", "holds no recipe"),
        ("- 1", "holds no recipe"),
        ("a: [", "is no YAML"),
        ("\0", "is no YAML"),
        ("name: x\nstages: []\n", "summary: Field required"),
        ("1: 2\nname: x", "summary: Field required"),
        ("a: !!python/object:os.system x", "is no YAML"),
        ("name: 2024-13-01", "is no YAML: month must be in"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "recipe.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(RecipeError, match=said) as caught:
        load(file)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_numbers_that_yaml_reads_as_text(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    text = validate(data(), "here").to_yaml()
    file.write_text(text.replace("lr: 0.001", "lr: 1e-3"))
    assert "lr: 1e-3" in file.read_text()
    assert load(file).stages[0].lr == 1e-3


PRIVATE = """
from __future__ import annotations
from dataclasses import dataclass
from oculi.recipe import Recipe, Stage, validate
from oculi.recipes import find_recipe
@dataclass
class Sizes:
    rank: int = 4
def mine():
    return find_recipe("vora")
def typo():
    stage = find_recipe("vora").stages[0].model_dump()
    return Stage.model_validate({**stage, "step": 5})
def deep():
    stage = find_recipe("vora").stages[0].model_dump()
    return Stage.model_validate({**stage, "data": [{"kind": "file", "path": "a", "pth": "b"}]})
def other():
    return 5
"""


def test_a_private_recipe(tmp_path: Path) -> None:
    file = tmp_path / "private.py"
    file.write_text(PRIVATE)
    assert find_recipe(f"{file}:mine") == BUILTIN["vora"]()
    said = {
        f"{file}:mien": 'has no function "mien"; did you mean "mine"?',
        f"{file}:other": "returned int, not a Recipe",
        f"{tmp_path}/none.py:mine": "there is no file",
        f"{file}:typo": 'unknown key "step"',
        f"{file}:deep": 'unknown key "data.0.file.pth"',
        "vora_tinny": 'unknown recipe "vora_tinny"; did you mean "vora_tiny"?',
        str(tmp_path / "none.yaml"): "cannot read the recipe",
    }
    for name, message in said.items():
        with pytest.raises(RecipeError) as caught:
            find_recipe(name)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_flags_replace_what_they_name(tmp_path: Path) -> None:
    recipe = BUILTIN["vora_tiny"]()
    file = tmp_path / "a.json"
    file.write_text("[]")
    changed = apply_flags(recipe, llm="L", teacher="T", data=[file], seed=7)
    assert (changed.model.llm, changed.seed) == ("L", 7)
    assert changed.model.vision.init_from == "T"
    assert [o.teacher for o in changed.stages[0].objectives if o.kind == "distill"] == ["T"]
    for stage in changed.stages:
        assert stage.data == (FileSource(path=str(file)),)
    assert changed.evals == (EvalSpec(task=str(file), limit=SHOWN_ANSWERS),)
    assert apply_flags(recipe) == recipe
    with pytest.raises(DataError, match="there is no data file"):
        apply_flags(recipe, data=[tmp_path / "none.json"])


def test_a_stage_has_files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions and texts for pre-training, conversations for fine-tuning, as the papers have them."""
    monkeypatch.chdir(tmp_path)
    recipe = BUILTIN["vora"]()
    for name in ("captions.json", "text.json", "talks.json", "finetune=odd.json"):
        Path(name).write_text("[]")

    def files(*data: str) -> list[list[str]]:
        changed = apply_flags(recipe, data=data)
        shown = [spec.task for spec in changed.evals]
        assert sorted(shown) == sorted({source.path for s in changed.stages for source in s.data})
        return [[source.path for source in stage.data] for stage in changed.stages]

    both = ("pretrain=captions.json", "pretrain=text.json")
    assert files(*both, "finetune=talks.json") == [["captions.json", "text.json"], ["talks.json"]]
    # One without a stage is for those that have none of their own.
    assert files("pretrain=captions.json", "talks.json") == [["captions.json"], ["talks.json"]]
    assert files("finetune=odd.json") == [["finetune=odd.json"]] * 2  # a file's name as it is
    own = apply_flags(recipe, data=["finetune=talks.json"]).stages
    assert own[0] == recipe.stages[0] and own[1].data == (FileSource(path="talks.json"),)


def test_data_may_be_a_folder_or_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("many").mkdir()
    Path("many/0.jsonl").write_text("{}\n")
    recipe = BUILTIN["vora_tiny"]()
    for data in ("many", "many/*.jsonl"):
        changed = apply_flags(recipe, data=[data, f"finetune={data}"])
        assert all(stage.data == (FileSource(path=data),) for stage in changed.stages)
    with pytest.raises(DataError, match="there is no data file"):
        apply_flags(recipe, data=["many/*.parquet"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("pretrain=none.json", "there is no data file none.json"),
        ("pretrain=", "there is no data file "),
        ("", "there is no data file "),
        (
            "pretrian=a.json",
            "there is no data file pretrian=a.json; the stages are pretrain, finetune",
        ),
        ("none.json", "there is no data file none.json"),
    ],
)
def test_a_file_or_stage_that_is_not_there_is_named(given: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        apply_flags(BUILTIN["vora"](), data=[given])
    assert str(caught.value) == message


def test_epochs_become_steps() -> None:
    """Of a stage's whole data, weights included, rounded up; nothing else changes but a long warm-up."""
    few = "{kind: playroom, level: 1, samples: 10, weight: 2.5}"
    data = f"stages.0.data=[{{kind: playroom, level: 1, samples: 100}}, {few}]"
    recipe = override(
        BUILTIN["vora_tiny"](), [data, "stages.0.batch=8", "stages.0.warmup_steps=50"]
    )
    found = apply_epochs(recipe, ["pretrain=2"])
    assert (found.stages[0].steps, found.stages[0].warmup_steps) == (32, 3)  # 2 x 125 / 8
    same = {"steps", "warmup_steps"}
    assert found.stages[0].model_dump(exclude=same) == recipe.stages[0].model_dump(exclude=same)
    assert found.stages[1:] == recipe.stages[1:]
    both = apply_epochs(recipe, ["0.5", "pretrain=100"])
    assert both.stages[0].steps == 1563 and both.stages[0].warmup_steps == 50
    rows, batch = recipe.stages[1].data[0].samples, recipe.stages[1].batch  # type: ignore[union-attr]
    assert len(recipe.stages[1].data) > 1 or both.stages[1].steps == -(-rows // (2 * batch))
    assert apply_epochs(recipe, []) is recipe


@pytest.mark.parametrize(
    ("given", "overrides", "message"),
    [
        ("0", [], '--epochs 0: "0" is no number above 0'),
        ("pretrain=many", [], '--epochs pretrain=many: "many" is no number above 0'),
        ("inf", [], "is no number above 0"),
        ("pretrian=1", [], 'there is no stage "pretrian"; the stages are pretrain, finetune'),
        ("1", ["stages.1.steps=3"], "stages.1.steps and --epochs both set it"),
    ],
)
def test_epochs_that_make_no_sense(given: str, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        apply_epochs(BUILTIN["vora_tiny"](), [given], overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_flag_names_the_codebook_of_every_stage_that_asks_for_codes() -> None:
    changed = apply_flags(BUILTIN["vlsa"](), vq="V")
    codes = [stage.cognition and stage.cognition.codes for stage in changed.stages]
    assert codes[:2] == [None, None] and codes[2] is not None and codes[2].vq == "V"
    with pytest.raises(RecipeError, match="--vq: llava asks for no codebook indices") as caught:
        apply_flags(BUILTIN["llava"](), vq="V")
    assert "\n" not in str(caught.value)


def test_a_start_that_is_not_the_teacher_stays() -> None:
    recipe = override(BUILTIN["vora_tiny"](), ["model.vision.init_from=elsewhere"])
    assert apply_flags(recipe, teacher="T").model.vision.init_from == "elsewhere"


@pytest.mark.parametrize("name", ["llava", "llava_aimv2", "llava_tiny"])
def test_flags_replace_the_tower(name: str) -> None:
    """Without a distillation the ViT is what the model sees with."""
    recipe = BUILTIN[name]()
    changed = apply_flags(recipe, llm="L", teacher="T")
    assert (changed.model.llm, changed.model.vision.init_from) == ("L", "T")
    same = {"model": recipe.model}
    assert changed.model_copy(update=same) == recipe
    update = {"init_from": "T"}
    assert changed.model.vision == recipe.model.vision.model_copy(update=update)


def test_a_tower_beside_another_teacher_stays() -> None:
    distill = {"kind": "distill", "teacher": "vit"}
    tower = {"kind": "tower", "init_from": "eyes"}
    changes = {"model.vision": tower, "stages.0.objectives": [distill]}
    for start, wanted in (("eyes", "eyes"), ("vit", "T")):
        base = data()
        for key, value in {**changes, "model.vision": {**tower, "init_from": start}}.items():
            put(base, key, value)
        changed = apply_flags(validate(base, "here"), teacher="T")
        assert changed.model.vision.init_from == wanted
        assert {o.teacher for s in changed.stages for o in s.objectives if o.kind == "distill"} == {
            "T"
        }


def test_a_teacher_that_nothing_uses_is_refused() -> None:
    base = data()
    for number in (0, 1):
        put(base, f"stages.{number}.objectives", [{"kind": "lm"}])
    with pytest.raises(RecipeError, match="--teacher: x distils from no ViT") as caught:
        apply_flags(validate(base, "here"), teacher="T")
    assert "\n" not in str(caught.value)
    put(base, "model.vision.init_from", "old")
    assert apply_flags(validate(base, "here"), teacher="T").model.vision.init_from == "T"


@pytest.mark.parametrize(
    ("name", "size", "kept"),
    [("llava", 336, ("vicuna-7b-v1.5", "clip-vit-large-patch14-336")),
     ("llava_aimv2", 448, ("Qwen2.5-7B-Instruct", "aimv2-huge-patch14-448"))],
)  # fmt: skip
def test_defaults_are_those_of_llava(name: str, size: int, kept: tuple[str, str]) -> None:
    """LLaVA-1.5, section 3.3 and table 9; the LLM and the ViT of VoRA's table 3 beside it."""
    recipe = BUILTIN[name]()
    model, (pretrain, finetune) = recipe.model, recipe.stages
    assert model.vision.kind == "tower" and model.vision.layer == -2
    assert (model.llm.split("/")[1], model.vision.init_from.split("/")[1]) == kept
    assert (model.images.mode, model.images.size) == ("square", size)
    assert (model.image_attention, model.lora) == ("causal", None)
    assert [(s.batch, s.lr, s.schedule, s.weight_decay) for s in (pretrain, finetune)] == [
        (256, 1e-3, "cosine", 0), (128, 2e-5, "cosine", 0)
    ]  # fmt: skip
    for stage, samples in ((pretrain, 558_000), (finetune, 665_000)):
        assert stage.steps == samples // stage.batch
        assert stage.warmup_steps == round(0.03 * stage.steps)
        assert stage.objectives == (LmSpec(),) and stage.length == 2048


def test_the_other_two_of_vora_differ_from_it_where_the_paper_says() -> None:
    """Sections 5.1 and 5.2: fewer samples; pictures at their own size in fine-tuning alone."""
    full, small, native = (BUILTIN[name]() for name in ("vora", "vora_8m", "vora_anyres"))
    assert small.model == native.model == full.model
    assert small.stages[0].steps * small.stages[0].batch == 8_000_000
    changed = {"steps": full.stages[0].steps, "data": full.stages[0].data}
    assert small.stages[0].model_copy(update=changed) == full.stages[0]
    assert small.stages[0].data == full.stages[0].data[:1]  # captions, without the text
    assert small.stages[1] == full.stages[1] and native.stages[0] == full.stages[0]
    assert [native.images_of(n).mode for n in (0, 1)] == ["square", "native"]
    assert [full.images_of(n) for n in (0, 1)] == [full.model.images] * 2
    differ = {"images", "length", "pack_length", "micro_rows"}
    assert native.stages[1].model_dump(exclude=differ) == full.stages[1].model_dump(exclude=differ)
    assert native.stages[1].length >= native.images_of(1).max_patches + 128


def test_pictures_of_a_stage_are_whole_patches_and_last() -> None:
    recipe = BUILTIN["vora_tiny"]()
    square = ["stages.0.images={mode: square, size: 56}"]
    assert [override(recipe, square).images_of(n).size for n in (0, 1)] == [56, 56]
    with pytest.raises(RecipeError, match=r"stages\.0\.images\.size 60 is not a multiple .* 14"):
        override(recipe, ["stages.0.images={mode: square, size: 60}"])


def test_llava_tiny_stands_beside_vora_tiny() -> None:
    """The same LLM, ViT, pictures, samples, order and steps: only the way in differs."""
    ours, beside = BUILTIN["llava_tiny"](), BUILTIN["vora_tiny"]()
    assert ours.model.vision.init_from == beside.model.vision.init_from
    assert (ours.seed, ours.evals, ours.model.llm) == (beside.seed, beside.evals, beside.model.llm)
    assert ours.model.images == beside.model.images
    differ = {"objectives", "trainable", "muon", "merge_lora"}
    for one, other in zip(ours.stages, beside.stages, strict=True):
        assert one.model_dump(exclude=differ) == other.model_dump(exclude=differ)


def test_defaults_are_the_papers() -> None:
    """Section 5.1 of VoRA: a change of a default must not change the method."""
    recipe = BUILTIN["vora"]()
    pretrain, finetune = recipe.stages
    assert (recipe.model.lora.rank, recipe.model.lora.blocks) == (1024, 24)  # type: ignore[union-attr]
    assert recipe.model.image_attention == "bidirectional"
    assert (pretrain.lr, pretrain.batch, pretrain.warmup_steps) == (2e-4, 256, 100)
    assert (pretrain.schedule, pretrain.merge_lora) == ("constant", True)
    distill = pretrain.objectives[1]
    assert distill.kind == "distill" and (distill.mode, distill.align) == ("block", "output")
    assert (finetune.lr, finetune.objectives) == (2e-5, (LmSpec(),))


@pytest.mark.parametrize(("name", "number"), stages())
def test_every_stage_trains_what_is_written_down(name: str, number: int) -> None:
    header, *golden = golden_file(name, number).read_text(encoding="utf-8").splitlines()
    assert header == COMMAND
    assert compact(trainable(BUILTIN[name](), number)) == golden


def test_the_papers_parameter_counts() -> None:
    """VoRA, section 3.1 and table 1: 2.2B of LoRA for a 7B LLM, an embedding of about 6M."""
    found = trainable(BUILTIN["vora"](), 0)
    count = {
        part: sum(p.numel() for name, p in found.items() if part in name)
        for part in ("lora_", "vision.", "vision.position", "objectives.")
    }
    assert count["lora_"] == 2_214_592_512
    assert count["vision."] - count["vision.position"] == 6_411_264
    assert count["vision.position"] == 32 * 32 * 1536
    assert count["objectives."] == 24 * (3584 + 3584 * 1536)


@pytest.mark.parametrize(("name", "count"), [("llava", 20_979_712), ("llava_aimv2", 18_357_248)])
def test_parameters_of_llavas_first_stage(name: str, count: int) -> None:
    """Two linear layers: 1024 or 1536 to the LLM's width, and that to itself."""
    found = trainable(BUILTIN[name](), 0)
    assert sum(parameter.numel() for parameter in found.values()) == count
    assert all(parameter.is_meta for parameter in found.values())


def test_compact_names() -> None:
    names = [f"a.{i}.b" for i in (0, 1, 2, 5, 7, 8)] + ["a.0.c", "d"]
    assert compact(names) == ["a.{0-2,5,7-8}.b", "a.{0}.c", "d"]


def test_playroom_of_any_split_is_data() -> None:
    recipe = validate(data(), "here")
    assert isinstance(recipe, Recipe)
    assert recipe.stages[0].data[1] == PlayroomSource(level=1, samples=9)
