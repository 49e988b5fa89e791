"""Runs that compress by an MLP and fuse: trained, merged, exported, resumed; and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

import oculi
from helpers import Tiny, as_if_killed, exported, losses, recipe_data, save_teacher
from oculi.errors import RecipeError
from oculi.model.lora import has_lora
from oculi.plan import plan
from oculi.recipe import Recipe, validate
from oculi.training.build import build_model, build_processor
from oculi.training.run import train

MLP = {"kind": "mlp", "patches": 16, "tokens": 4}
CONNECTORS = {"compress.*": None, "fusion.*": None}


def aurora(tiny: Tiny, **changes: Any) -> Recipe:
    """VoRA's patch embedding and LoRA, with the compressor and the fusion of AuroraEdge-V."""
    settings = {
        "model.compress": dict(MLP),
        "model.fusion": {"kind": "combined", "layers": 1},
        "stages.0.objectives": [{"kind": "lm"}],
        "stages.0.trainable": {"llm.*.lora_?": None, "vision.*": None, **CONNECTORS},
        "stages.1.trainable": {"llm.*": None, "vision.*": None, **CONNECTORS},
        **changes,
    }
    return validate(recipe_data(tiny, **settings), "test")


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From start to end with LoRA that is merged, packed rows and rows of text alone; read only."""
    return train(aurora(tiny), tmp_path_factory.mktemp("aurora") / "run", quiet=True)


@pytest.mark.parametrize("step", [2, 5])
def test_resume_equals_uninterrupted(run: Path, tiny: Tiny, tmp_path: Path, step: int) -> None:
    """Within the first stage, and within the second, which starts from what the first has exported."""
    again = as_if_killed(run, tmp_path / "run", step)
    train(aurora(tiny), again, resume=True, quiet=True)
    assert losses(again) == losses(run)
    found, wanted = exported(again), exported(run)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@torch.no_grad()
def test_what_is_exported_answers_as_the_checkpoint_did(run: Path, tmp_path: Path) -> None:
    """LoRA folded by `oculi merge`: the same logits; fusion and compressor are in the folder."""
    from oculi.export.load import load_unmerged
    from oculi.export.merge import merge_run

    unmerged = load_unmerged(run / "checkpoints/step-0000003")
    assert has_lora(unmerged.model)
    assert merge_run(run / "checkpoints/step-0000003", tmp_path / "merged") < 1e-4
    model, processor = oculi.load(tmp_path / "merged")
    parts = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert parts == {"llm", "vision", "compress", "fusion"}
    grids = torch.tensor([[2, 3]])
    inputs = {
        "input_ids": torch.tensor([[5, *[processor.image_token_id] * 4, 7, 8]]),
        "pixel_values": torch.arange(6 * 48).view(6, 48).to(torch.uint8),
        "image_grids": grids,
    }
    expected = unmerged.model.eval()(**inputs).logits
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-4)


def test_every_part_that_a_stage_trains_has_moved(run: Path, tiny: Tiny) -> None:
    start = build_model(aurora(tiny).model, build_processor(aurora(tiny).model), 0)
    before, after = dict(start.named_parameters()), exported(run)
    parts = [name for name in before if name.startswith(("compress.", "fusion.", "vision."))]
    assert len(parts) > 15 and not [n for n in parts if torch.equal(before[n], after[n])]


def test_distillation_through_a_learned_compressor_is_refused(tiny: Tiny) -> None:
    """In any stage, when the recipe is read; merging says which token a patch went into."""
    objectives = [
        {"kind": "lm"},
        {"kind": "distill", "teacher": str(tiny.teacher), "mode": "block"},
    ]
    with pytest.raises(
        RecipeError, match=r'stages\.1 distils .* "mlp" no token stands for a patch'
    ):
        aurora(tiny, **{"stages.1.objectives": objectives})
    merge = {"kind": "merge", "factor": 2}
    trainable = {"llm.*": None, "fusion.*": None}
    aurora(
        tiny,
        **{
            "model.compress": merge, "stages.1.objectives": objectives,
            "stages.0.trainable": trainable, "stages.1.trainable": trainable,
        },
    )  # fmt: skip
    objectives[1]["mode"] = "none"
    aurora(tiny, **{"stages.1.objectives": objectives})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.images.max_patches": 17}, r"images\.max_patches lets pictures have 17 patches"),
        ({"model.images": {"mode": "square", "size": 20}}, r"images\.size lets pictures have 25"),
        ({"stages.1.images": {"max_patches": 99}}, r"stages\.1\.images\.max_patches lets .* 99"),
        ({"model.compress.tokens": 17}, "tokens 17 are more than patches 16"),
        ({"model.compress": {"kind": "conv", "patches": 16, "tokens": 5}}, "conv needs squares"),
        ({"model.compress": {"patches": 16}}, "kind is missing; it is one of merge, mlp, conv"),
        ({"model.compress.factor": 2}, r'unknown key "model\.compress\.factor"'),
        ({"model.fusion": {"kind": "none"}}, r"model\.fusion\.kind: .*'combined'"),
        ({"model.fusion.layers": 0}, r"model\.fusion\.layers"),
        ({"model.init": "zeros"}, r"model\.init"),
    ],
)
def test_settings_that_cannot_be(tiny: Tiny, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        aurora(tiny, **changes)


def test_a_decoder_of_an_llm_that_has_none_is_one_line(tiny: Tiny, tmp_path: Path) -> None:
    """GPT-2's blocks are given no rotary positions."""
    from transformers import AutoConfig, AutoTokenizer

    from helpers import save_llm

    config = AutoConfig.for_model(
        "gpt2", vocab_size=1024, n_embd=32, n_layer=2, n_head=2, n_positions=256
    )
    llm = save_llm(tmp_path / "gpt2", config, AutoTokenizer.from_pretrained(tiny.llm))
    spec = aurora(tiny, **{"model.llm": str(llm), "model.lora": None, "stages.0.merge_lora": False})
    with pytest.raises(
        RecipeError, match="takes no position_embeddings, so it cannot be a decoder"
    ):
        build_model(spec.model, build_processor(spec.model), 0)


def test_a_standard_normal_is_drawn_where_the_paper_says(tiny: Tiny, tmp_path: Path) -> None:
    """Connector, compressor and cross attention; not the decoder, the tower or the LLM."""
    vision = {"kind": "tower", "patch_size": 4, "init_from": str(save_teacher(tmp_path / "tower"))}
    made = {}
    for init in ("scaled", "normal"):
        spec = aurora(tiny, **{"model.vision": vision, "model.init": init}).model
        made[init] = dict(build_model(spec, build_processor(spec), 0).named_parameters())
    changed = {n for n, p in made["normal"].items() if not torch.equal(p, made["scaled"][n])}
    new = ("vision.connector.", "compress.", "fusion.cross.")
    assert changed == {n for n, p in made["normal"].items() if n.startswith(new) and p.ndim > 1}
    drawn = torch.cat([made["normal"][n].flatten() for n in changed])
    assert drawn.mean().abs() < 0.03 and (drawn.std() - 1).abs() < 0.03


def test_a_plan_counts_compressor_and_fusion(tiny: Tiny) -> None:
    """By hand: 16 patches, 4 tokens, T = 8, D = 32; a block has d^2 + 2 d d_kv + d^2 + 3 d 48."""
    stage = plan(aurora(tiny), text_tokens=8, image=(16, 16)).stages[0]
    assert (stage.tokens_per_image, stage.parameters["compressor"]) == (4, 16 * 4 + 4)
    assert stage.macs["compressor"].forward == 16 * 4 * 32
    model = build_model(aurora(tiny).model, build_processor(aurora(tiny).model), 0)
    fusion = sum(p.numel() for p in model.fusion.parameters())
    assert stage.parameters["fusion"] == fusion == stage.trained["fusion"]
    d, text, patches = 32, 8, 16
    cross = (2 * text + 2 * patches) * d * d + 8 * d * d * text + 2 * text * (patches + text) * d
    queries_keys_values = d * d + 2 * d * 16
    block = 2 * d * d + 2 * d * 16 + 3 * d * 48
    decoder = (
        (patches + text) * queries_keys_values + text * block + 2 * text * (patches + text) * d
    )
    assert stage.macs["fusion"].forward == cross + decoder
