"""What AuroraEdge-V leaves as future work: a compressor taught by reconstruction, and video."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import oculi
from diffusion import SIZE, make_sd3, make_vae
from helpers import PATCH, Tiny, llava_data, mixture, save_teacher
from oculi.data.loader import collate, encode_sample
from oculi.eval.chat import Conversation
from oculi.model.taps_oculi import VISION, Seen
from oculi.objectives import Reconstruct
from oculi.objectives.latents import Autoencoder
from oculi.plan import plan
from oculi.recipe import LmSpec, MlpSpec, Recipe, ReconstructSpec, validate
from oculi.recipes import BUILTIN
from oculi.recipes.aurora_future import FRAMES
from oculi.training.module import TrainModule
from oculi.training.run import train

MLP = {"kind": "mlp", "patches": 16, "tokens": 4}

# --------------------------------------------------------------------------------- reconstruction


def test_pictures_are_restored_from_compressed_tokens_alone(
    make_model: Any, make_processor: Any
) -> None:
    """V and P are what the compressor made: where it makes nothing, the vision part is told nothing."""
    model, made = make_model(compress=MLP), mixture()
    encoded = [[(s.id, encode_sample(s, make_processor(compress=MLP))) for s in made]]
    batch = collate(encoded, 3 * PATCH**2)
    found: list[Seen] = []
    model(**batch.model_inputs(), taps={VISION: found.append})
    (seen,) = found
    assert seen.counts == (4,) * len(batch.grids_N2) and seen.pooled_ND is None
    compressed, _ = model.compress(model.vision(batch.patches_PC, batch.grids_N2), batch.grids_N2)
    assert torch.equal(seen.tokens_SD, compressed)
    spec = ReconstructSpec(denoiser="d", vae="v", size=SIZE, rank=6)
    term = Reconstruct(spec, make_sd3(), Autoencoder(make_vae()), model.width)
    module = TrainModule(model, [term])
    taught = []
    for scale in (1.0, 0.0):
        with torch.no_grad():
            model.compress.mix.weight.mul_(scale)
        model.zero_grad()
        module(batch, {"reconstruct": 1})["reconstruct"].backward()
        assert model.compress.mix.weight.grad.any()  # it is supervised
        taught.append(any(bool(p.grad.any()) for p in model.vision.parameters()))
    assert taught == [True, False]


@pytest.mark.parametrize("name", ["aurora", "aurora_tiny"])
def test_reconstruction_is_beside_answers_wherever_the_compressor_learns(name: str) -> None:
    """In all else the recipe is the plain one, so that the two can be compared."""
    plain = BUILTIN[name]()
    restored = BUILTIN["aurora_reconstruct" + name.removeprefix("aurora")]()
    assert restored.model == plain.model and restored.evals == plain.evals
    for stage, before in zip(restored.stages, plain.stages, strict=True):
        lm, term = stage.objectives
        assert isinstance(lm, LmSpec) and isinstance(term, ReconstructSpec)
        assert (lm.weight, term.weight) == (1, 1) and "compress.*" in before.trainable
        assert stage.trainable.keys() - before.trainable.keys() == {
            "objectives.reconstruct.epigone.*"
        }
        same = {"objectives": before.objectives, "trainable": before.trainable}
        assert stage.model_copy(update=same) == before


def test_the_denoiser_stays_as_it_is() -> None:
    """And so it does in the plan, which counts it apart."""
    for stage in plan(BUILTIN["aurora_reconstruct_tiny"](), text_tokens=8).stages:
        term = stage.objectives["reconstruct"]
        epigone = 192 * 64 + 64 + 64 * 128 + 128 + 64 * 64 + 64
        assert term.trainable == epigone < term.parameters
        assert stage.tokens_per_image == 9 and stage.trained["compressor"] == 36 * 9 + 9


# ------------------------------------------------------------------------------------------ video

COLOURS = {"red": (250, 10, 10), "blue": (10, 10, 250), "green": (10, 250, 10)}
ASKED = {"What colour comes first?": 0, "What colour comes last?": -1}


def videos(folder: Path) -> Path:
    """VoRA's rows: every order of three coloured frames, and what comes first and last."""
    for name, colour in COLOURS.items():
        Image.new("RGB", (12, 12), colour).save(folder / f"{name}.png")
    rows = [
        {
            "id": f"{'-'.join(order)} {place}", "frames": [f"{name}.png" for name in order],
            "conversations": [
                {"from": "human", "value": f"<video>\n{question}"},
                {"from": "gpt", "value": order[place]},
            ],
        }
        for order in itertools.permutations(COLOURS)
        for question, place in ASKED.items()
    ]  # fmt: skip
    path = folder / "videos.json"
    path.write_text(json.dumps(rows))
    return path


def recipe(tiny: Tiny, tower: Path, rows: Path) -> Recipe:
    """A tower, four tokens a frame, text that is fused with all frames; trained in one stage."""
    everything = {"vision.connector.*": None, "compress.*": None, "fusion.*": None, "llm.*": None}
    data = llava_data(
        tiny,
        tower,
        **{
            "model.compress": MLP,
            "model.fusion": {"kind": "combined", "layers": 2},
            "stages.0.trainable": everything,
            "stages.0.data": [{"kind": "file", "path": str(rows)}],
        },
    )
    data["stages"] = data["stages"][:1]
    data["stages"][0] |= {
        "steps": 120, "batch": 12, "lr": 5e-3, "warmup_steps": 10, "checkpoint_every": 1000,
        "micro_rows": 16,
    }  # fmt: skip
    return validate(data, "test")


def test_it_learns_from_several_frames_and_answers_about_their_order(
    tiny: Tiny, tmp_path: Path
) -> None:
    """The words of all conversations are alike: answers are in the frames and their order alone."""
    tower = save_teacher(tmp_path / "tower", "siglip2")
    run = train(recipe(tiny, tower, videos(tmp_path)), tmp_path / "run", quiet=True)
    model, processor = oculi.load(run)
    frames = {name: tmp_path / f"{name}.png" for name in COLOURS}
    answers = {}
    for order in itertools.permutations(COLOURS):
        for question, place in ASKED.items():
            talk = Conversation(model, processor, [frames[name] for name in order], 4)
            answers[(*order, question)] = (talk.ask(question), order[place])
    right = [found == wanted for found, wanted in answers.values()]
    assert sum(right) >= 11, answers


def test_the_full_recipe_goes_on_from_aurora_16_to_videos() -> None:
    """A packed row holds one video of 16 frames and its conversation: fusion reads all patches."""
    video, plain = BUILTIN["aurora_video"](), BUILTIN["aurora_16"]()
    assert video.model == plain.model and video.stages[:-1] == plain.stages
    compress, last = video.model.compress, video.stages[-1]
    assert isinstance(compress, MlpSpec)
    frames = FRAMES * compress.tokens
    assert frames == 256 and frames + 200 < (last.pack_length or 0) <= 2 * frames < last.length
    assert "vision.tower.*" not in last.trainable and "vision.*" not in last.trainable
