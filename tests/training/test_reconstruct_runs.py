"""Reconstructive training in runs: beside other methods, over stages, resumed, exported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffusion import SIZE, save_pipeline
from helpers import Tiny, as_if_killed, exported, llava_data, losses, recipe_data, save_teacher
from oculi.objectives.latents import DENOISER, load_part
from oculi.recipe import Recipe, validate
from oculi.training import checkpoint as ckpt
from oculi.training.run import train
from ranks import on_ranks
from trainer import Trainer, bits


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("pipeline"))


def spec(pipeline: Path, **settings: Any) -> dict[str, Any]:
    return {
        "kind": "reconstruct", "denoiser": str(pipeline), "vae": str(pipeline), "size": SIZE,
        "rank": 6, **settings,
    }  # fmt: skip


def composed(tiny: Tiny, pipeline: Path, tower: Path, name: str) -> dict[str, Any]:
    """A recipe of another method with the objective beside its own."""
    terms = [{"kind": "lm"}, spec(pipeline)]
    extra = {"objectives.reconstruct.*": None}
    if name == "vora":
        distill = {"kind": "distill", "teacher": str(tiny.teacher), "mode": "block"}
        trained = {"llm.*.lora_?": None, "vision.*": None, "objectives.*": None}
        return recipe_data(
            tiny, **{"stages.0.objectives": [*terms, distill], "stages.0.trainable": trained}
        )
    changes: dict[str, Any] = {"stages.0.objectives": terms}
    if name == "perceiver":
        changes["model.vision"] = {
            "kind": "perceiver", "patch_size": 4, "init_from": str(tower), "heads": 2,
        }  # fmt: skip
        changes["stages.0.trainable"] = {"vision.*": None, **extra}
    else:
        changes["stages.0.trainable"] = {"vision.connector.*": None, **extra}
    if name == "aurora":
        changes["model.compress"] = {"kind": "mlp", "patches": 16, "tokens": 4}
        changes["model.fusion"] = {"kind": "combined"}
        changes["stages.0.trainable"] |= {"compress.*": None, "fusion.*": None, "llm.*": None}
        changes["stages.1.trainable"] = {"compress.*": None, "fusion.*": None, "llm.*": None}
    return llava_data(tiny, tower, **changes)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("tower"), "clip")


@pytest.mark.parametrize("name", ["vora", "llava", "perceiver", "aurora"])
def test_it_composes(tiny: Tiny, pipeline: Path, tower: Path, name: str) -> None:
    """With patch embedding and LoRA, with a tower, compressed and fused: the loss falls, all groups have
    gradients."""
    data = composed(tiny, pipeline, tower, name)
    data["stages"][0] |= {"steps": 10, "batch": 6, "lr": 3e-3, "schedule": "constant"}
    trainer = Trainer(validate(data, "test"))
    trainer.steps = [trainer.steps[0]] * 10  # one batch again and again
    found, reached = [], set()
    for step in range(10):
        torch.manual_seed(0)  # with the same noise
        parts = trainer.module(trainer.steps[0][0], trainer.module.counts(trainer.steps[0]))
        trainer.module.loss(parts).backward()
        reached |= {n for n, p in trainer.parameters.items() if p.grad is not None and p.grad.any()}
        trainer.optimizer.zero_grad()
        torch.manual_seed(0)
        found.append(float(trainer.step(step).losses["reconstruct"]))
    assert found[-1] < 0.8 * found[0], found
    groups = {".".join(name.split(".")[:3]) for name in trainer.parameters}
    groups -= {"vision.tower.post_layernorm"}  # the state before the last block is read
    assert groups == {".".join(name.split(".")[:3]) for name in reached}


@pytest.fixture(scope="module")
def stages(tiny: Tiny, pipeline: Path, tower: Path) -> dict[str, Any]:
    """As the paper's: the Epigone first, then the denoiser and the tower as well."""
    data = composed(tiny, pipeline, tower, "perceiver")
    connector = {"vision.connector.*": None, "vision.perceiver.*": None}
    data["stages"][0]["trainable"] = {**connector, "objectives.reconstruct.epigone.*": None}
    data["stages"][1]["objectives"] = [{"kind": "lm"}, spec(pipeline, weight=0.5)]
    data["stages"][1]["trainable"] = {"vision.*": None, "objectives.*": None, "llm.*": None}
    return data


@pytest.fixture(scope="module")
def run(stages: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From start to end; read only."""
    return train(validate(stages, "test"), tmp_path_factory.mktemp("run") / "run", quiet=True)


def test_what_is_trained_goes_on_in_the_next_stage(run: Path, pipeline: Path) -> None:
    """The model is exported between stages; the Epigone of the first is not drawn anew."""
    _, first = ckpt.load(run / "checkpoints" / "step-0000003")
    assert {n.split(".")[2] for n in first if n.startswith("objectives.")} == {"epigone"}
    _, second = ckpt.load(run / "checkpoints" / "step-0000005")
    assert {n.split(".")[2] for n in second if n.startswith("objectives.")} == {
        "epigone",
        "denoiser",
    }
    name = "objectives.reconstruct.epigone.prompt.weight"
    # Two steps of at most lr away, where a new draw would be a rank's square root.
    assert (second[name] - first[name]).abs().max() <= 3 * 1e-2
    assert (second[name] - first[name]).abs().max() > 0
    key = "pos_embed.proj.weight"
    own = load_part(str(pipeline), DENOISER).state_dict()[key]
    assert 0 < (second[f"objectives.reconstruct.denoiser.{key}"] - own).abs().max() <= 3 * 1e-2


@pytest.mark.parametrize("checkpoint", [2, 3, 5], ids=["stage 1", "boundary", "stage 2"])
def test_resume_equals_uninterrupted(
    run: Path, stages: dict[str, Any], tmp_path: Path, checkpoint: int
) -> None:
    again = as_if_killed(run, tmp_path / "run", checkpoint)
    train(validate(stages, "test"), again, resume=True, quiet=True)
    assert losses(again) == losses(run) and len(losses(run)) == 6
    found, wanted = exported(again), exported(run)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert shown(again) == shown(run)


def shown(run: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """What was shown at checkpoints: its lines, and its pictures by name."""
    lines = [json.loads(line) for line in (run / "shown.jsonl").read_text().splitlines()]
    return lines, {path.name: path.read_bytes() for path in (run / "shown").iterdir()}


def test_every_checkpoint_shows_what_it_restores(run: Path) -> None:
    lines, pictures = shown(run)
    saved = [int(path.name[5:]) for path in sorted((run / "checkpoints").iterdir())]
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("pretrain" if total <= 3 else "finetune", total if total <= 3 else total - 3)
        for total in saved
    ]
    assert set(pictures) == {line["picture"] for line in lines}
    for line in lines:
        assert line["objective"] == "reconstruct" and line["images"] >= 2
        conditions = [
            f"{whose} at {level}" for whose in ("own", "shuffled") for level in (0.9, 0.75, 0.5)
        ]
        assert list(line["scores"]) == [
            f"{measure}, {each}" for each in conditions for measure in ("PSNR", "SSIM")
        ]
        with Image.open(run / "shown" / line["picture"]) as sheet:
            count = min(line["images"], 8)
            assert sheet.size == (count * (SIZE + 4), len(line["rows"]) * (SIZE + 4))
    first, *_, last = (line["scores"] for line in lines)
    assert first != last
    page = (run / "report.html").read_text()
    assert page.count("<summary>pretrain, step 3: reconstruct</summary>") == 1
    assert "<th>PSNR, own at 0.9</th>" in page and f"{last['PSNR, own at 0.9']:.3f}" in page


def changed(stages: dict[str, Any], **changes: Any) -> Recipe:
    """With other settings of the objective, or of every stage."""
    data = json.loads(json.dumps(stages))
    for stage in data["stages"]:
        stage["objectives"][1] |= {k: v for k, v in changes.items() if k == "shown"}
        stage |= {k: v for k, v in changes.items() if k != "shown"}
    return validate(data, "test")


def test_showing_disturbs_nothing(run: Path, stages: dict[str, Any], tmp_path: Path) -> None:
    other = train(changed(stages, shown=0), tmp_path / "run", quiet=True)
    assert not (other / "shown").exists() and not (other / "shown.jsonl").exists()
    assert losses(other) == losses(run)
    found, wanted = exported(other), exported(run)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_ranks_show_together(stages: dict[str, Any], tmp_path: Path) -> None:
    """Parameters that are split meet for it; what does not change is shown as one process shows it."""
    recipe = changed(stages, lr=1e-12)
    one, two = tmp_path / "one", tmp_path / "two"
    train(recipe, one, quiet=True)
    assert on_ranks(2, lambda: str(train(recipe, two, quiet=True))) == [str(two)] * 2
    (lines, pictures), (wanted, known) = shown(two), shown(one)
    assert pictures.keys() == known.keys()
    for line, other in zip(lines, wanted, strict=True):
        assert line.pop("scores") == pytest.approx(other.pop("scores"), abs=0.02)
        assert line == other


def test_showing_disturbs_no_rank(stages: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for count in (0, 8):
        recipe, out = changed(stages, shown=count), tmp_path / str(count)
        on_ranks(2, lambda recipe=recipe, out=out: str(train(recipe, out, quiet=True)))
        found.append((losses(out), {k: v.tolist() for k, v in exported(out).items()}))
    assert found[0] == found[1]


def test_training_modules_are_never_exported(
    run: Path, stages: dict[str, Any], tmp_path: Path
) -> None:
    """Names and bytes are those of the same recipe without the objective."""
    plain = json.loads(json.dumps(stages))
    for stage in plain["stages"]:
        stage["objectives"] = [{"kind": "lm"}]
        stage["trainable"] = {k: v for k, v in stage["trainable"].items() if "objectives" not in k}
    other = train(validate(plain, "test"), tmp_path / "plain", quiet=True)
    for stage in ("0-pretrain", "1-finetune"):
        found, wanted = exported(run, stage), exported(other, stage)
        assert {n: (v.shape, v.dtype) for n, v in found.items()} == {
            n: (v.shape, v.dtype) for n, v in wanted.items()
        }
        assert {name.split(".")[0] for name in found} == {"llm", "vision"}
        sizes = [
            sum(f.stat().st_size for f in (at / "stages" / stage).glob("*.safetensors"))
            for at in (run, other)
        ]
        assert sizes[0] == sizes[1]


def test_the_same_step_twice_is_the_same(tiny: Tiny, pipeline: Path, tower: Path) -> None:
    data = composed(tiny, pipeline, tower, "perceiver")
    found = []
    for _ in range(2):
        trainer = Trainer(validate(data, "test"))
        torch.manual_seed(0)
        trainer.step(0)
        found.append(bits(trainer.module))
    assert found[0] == found[1]
