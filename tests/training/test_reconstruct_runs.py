"""Reconstructive training in runs: beside other methods, over stages, resumed, exported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion import SIZE, save_pipeline
from helpers import Tiny, as_if_killed, exported, llava_data, losses, recipe_data, save_teacher
from oculi.objectives.latents import DENOISER, load_part
from oculi.recipe import validate
from oculi.training import checkpoint as ckpt
from oculi.training.run import train
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
