"""The paper's way of counting: its rules on small modules, its numbers on the models it names."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen2VLConfig
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from typer.testing import CliRunner

from helpers import Tiny, llava_data, save_teacher
from oculi.cli import app
from oculi.errors import CheckpointError
from oculi.eval.evaluate import answer
from oculi.model.tower_oculi import VisionTower
from oculi.plan import paper_report
from oculi.plan.configs import find_config
from oculi.plan.paper_peers import count_peer
from oculi.plan.paper_report import paper_plan
from oculi.plan.paper_style import RULES, PaperCount, counting, every_token
from oculi.recipe import Recipe, validate
from oculi.recipes.papers import PAPER_TABLES, PaperTable, Peer, Published, Variant
from oculi.training.build import build_model, build_processor

# Rules


def count(module: nn.Module, *shapes: tuple[int, ...]) -> PaperCount:
    with counting(module) as found:
        module(*(torch.zeros(shape) for shape in shapes))
    return found


RULE_BY_RULE: dict[str, tuple[nn.Module, tuple[int, ...], int, int]] = {
    "linear": (nn.Linear(5, 7), (2, 3, 5), 6 * 5 * 7, 5 * 7 + 7),
    "no bias": (nn.Linear(5, 7, bias=False), (3, 5), 3 * 5 * 7, 5 * 7),
    "convolution": (nn.Conv2d(3, 8, 4, stride=4), (1, 3, 8, 8), 4 * 8 * 48, 8 * 48 + 8),
    "in groups": (nn.Conv1d(6, 6, 3, groups=3), (1, 6, 9), 7 * 6 * 2 * 3, 6 * 2 * 3 + 6),
    "frames": (nn.Conv3d(3, 2, (2, 4, 4), bias=False), (1, 3, 2, 4, 4), 2 * 96, 2 * 96),
    "layer norm": (nn.LayerNorm(5), (3, 5), 4 * 15, 10),
    "plain layer norm": (nn.LayerNorm(5, elementwise_affine=False), (3, 5), 2 * 15, 0),
    "RMSNorm": (nn.RMSNorm(5), (3, 5), 0, 0),
    "activation": (nn.GELU(), (3, 5), 0, 0),
}


@pytest.mark.parametrize("case", RULE_BY_RULE)
def test_a_rule(case: str) -> None:
    module, shape, macs, parameters = RULE_BY_RULE[case]
    found = count(module, shape)
    assert (found.macs, found.parameters) == (macs, parameters)
    assert found.gflops == macs / 1e9 and found.params_b == parameters / 2**30


def test_attention_that_is_no_module_is_not_seen() -> None:
    """torch's own attention calls no module for its weights, as in SigLIP 2's pooling head."""
    found = count(nn.MultiheadAttention(8, 2), (4, 1, 8), (5, 1, 8), (5, 1, 8))
    assert (found.macs, found.parameters) == (0, 0)


class TiedHead(nn.Module):
    """An embedding that is its own head, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.table.weight
        self.idle = nn.Linear(4, 4)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.table(rows.long())
        return self.head(hidden) + self.head(hidden)


def test_a_table_is_free_its_head_is_not_and_what_is_not_called_is_not_there() -> None:
    found = count(TiedHead(), (3,))
    assert (found.macs, found.parameters) == (2 * 3 * 4 * 11, 44)


class Saving(nn.Module):
    """A layer that computes text alone unless it is told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.text_alone = True
        self.layer = nn.Linear(4, 4)

    def forward(self, states: Tensor) -> Tensor:
        return self.layer(states[-1:] if self.text_alone else states)


def test_what_is_saved_is_counted_in_the_papers_way() -> None:
    model = nn.Sequential(Saving(), nn.Identity())
    assert count(model, (3, 4)).macs == 16
    with every_token(model):
        assert count(nn.Sequential(model[0].layer), (3, 4)).macs == count(model[0], (3, 4)).macs
    with pytest.raises(RuntimeError), every_token(model):
        model(torch.zeros(3, 5))
    assert model[0].text_alone and count(model, (3, 4)).macs == 16


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    with pytest.raises(RuntimeError), counting(model) as found:
        model(torch.zeros(1, 3))
    count(model, (1, 2))
    assert found.macs == 0 and not any(module._forward_hooks for module in model.modules())


# The paper's numbers, in multiply-accumulates derived by hand: d 1536, 28 layers of 46,792,704

D, LAYER, VOCABULARY = 1536, 46_792_704, 151_936
PATCHES, FEWER, TEXT = 256, 64, 28
SIGLIP = (
    PATCHES * 27 * (4 * 1152**2 + 2 * 1152 * 4304)
    + PATCHES * 768 * 1152
    + 2 * 1152 * 4304  # the pooling head's MLP, on one token
    + 4 * 1152 * (55 * PATCHES + 1)
)
LLM = 28 * LAYER + D * VOCABULARY
COMPRESS = (
    SIGLIP + PATCHES * (1152 * D + D * D) + PATCHES * FEWER * D + (FEWER + TEXT) * LLM,
    28 * (LAYER + 2048) + D * VOCABULARY + 412_354_800 + 9_924_176 + 4_131_840 + 16_448,
)
CROSS = ((2 * TEXT + 2 * PATCHES) * D**2 + 8 * D**2 * TEXT, 12 * D**2)
DECODER = ((PATCHES + TEXT) * LAYER, LAYER + 2048)
AURORA = {
    "compress": (COMPRESS, 248.6, 1.83),
    "cross": (tuple(map(sum, zip(COMPRESS, CROSS, strict=True))), 250.5, 1.86),
    "decoder": (tuple(map(sum, zip(COMPRESS, DECODER, strict=True))), 261.9, 1.88),
    "combined": (tuple(map(sum, zip(COMPRESS, CROSS, DECODER, strict=True))), 263.8, 1.90),
}


class Cross(nn.Module):
    """Attention of text to vision with four projections, and a network four times as wide on text."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)

    def forward(self, text: Tensor, vision: Tensor) -> Tensor:
        scores = (self.q(text) @ self.k(vision).mT).softmax(-1)
        return self.down(self.up(text + self.o(scores @ self.v(vision))))


class Aurora(nn.Module):
    """The paper's parts in a row, of transformers' classes and plain linear layers."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        llm: Any = find_config("Qwen/Qwen2.5-1.5B")
        tower = find_config("google/siglip2-so400m-patch16-naflex").to_dict()
        self.vision = VisionTower(D, tower, patch_size=16)
        self.compress = nn.Linear(PATCHES, FEWER)
        self.cross = Cross() if variant in ("cross", "combined") else None
        decoder = variant in ("decoder", "combined")
        self.decoder = Qwen2DecoderLayer(llm, 0) if decoder else None
        self.llm = AutoModelForCausalLM.from_config(llm)

    def forward(self) -> Tensor:
        pixels = torch.zeros(PATCHES, 3 * 16**2, dtype=torch.uint8, device="meta")
        vision = self.vision(pixels, torch.tensor([[16, 16]]))[None]
        text = torch.zeros(1, TEXT, D, device="meta")
        if self.cross is not None:
            text = self.cross(text, vision)
        if self.decoder is not None:
            both = torch.cat([vision, text], 1)
            angles = torch.zeros(1, PATCHES + TEXT, D // 12, device="meta")
            text = self.decoder(both, position_embeddings=(angles, angles))[:, PATCHES:]
        compressed = self.compress(vision.mT).mT
        places = torch.zeros(1, FEWER + TEXT, dtype=torch.int64, device="meta")
        mask = torch.zeros(1, 1, FEWER + TEXT, FEWER + TEXT, device="meta")
        return self.llm(
            inputs_embeds=torch.cat([compressed, text], 1), attention_mask=mask, position_ids=places
        ).logits


@pytest.mark.parametrize("variant", AURORA)
def test_aurora_of_plain_parts(variant: str) -> None:
    """Tables 4 and 7, to every multiply-accumulate and parameter of the derivation."""
    derived, gflops, params_b = AURORA[variant]
    with torch.device("meta"):
        model = Aurora(variant).eval()
    with counting(model) as found:
        model()
    assert (found.macs, found.parameters) == derived
    assert found.gflops == pytest.approx(gflops, rel=0.002)
    assert round(found.params_b, 2) == params_b


P, MERGED = 1564, 391  # 640x480 is cut into 34 x 46 patches, four of which become a token
PEERS = {
    "Qwen/Qwen2-VL-2B-Instruct": (
        27,
        32 * P * (4 * 1280**2 + 2 * 1280 * 5120) + 1176 * 1280 * P + 4 * 1280 * 65 * P
        + MERGED * (5120**2 + 5120 * 1536) + (MERGED + 27) * LLM,
        (1645.4, 2.06),
    ),
    "Qwen/Qwen2.5-VL-3B-Instruct": (
        26,
        32 * P * (4 * 1280**2 + 3 * 1280 * 3420) + 1176 * 1280 * P
        + MERGED * (5120**2 + 5120 * 2048)
        + (MERGED + 26) * (36 * 77_070_336 + 2048 * VOCABULARY),
        (2288.7, 3.50),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PEERS)
def test_peers(name: str) -> None:
    """Table 4, by transformers' own classes."""
    text, derived, (gflops, params_b) = PEERS[name]
    found = count_peer(name, (640, 480), text)
    assert (found.count.macs, found.image_tokens) == (derived, MERGED)
    assert found.count.gflops == pytest.approx(gflops, rel=0.002)
    assert round(found.count.params_b, 2) == params_b


def test_a_peer_of_another_family() -> None:
    with pytest.raises(CheckpointError, match="is a qwen2; the families that can be compared"):
        count_peer("Qwen/Qwen2.5-1.5B", (640, 480), 26)


def test_the_tables_name_what_is_shipped() -> None:
    for table in PAPER_TABLES.values():
        for peer in table.peers.values():
            assert find_config(peer.checkpoint)


# Recipes


@pytest.fixture(scope="module")
def small(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A tower, a connector and an LLM, of a few thousand weights."""
    tower = save_teacher(tmp_path_factory.mktemp("towers") / "siglip2", "siglip2")
    return validate(llava_data(tiny, tower), "test")


def test_our_prefill_is_what_generate_computes(small: Recipe) -> None:
    """Counted on the meta device, and with weights while one token is generated."""
    processor = build_processor(small.model)
    model = build_model(small.model, processor, 0).eval()
    picture = Image.new("RGB", (picture_side(small), picture_side(small)))
    prompt = processor.encode([("user", [picture, "what is it?"])], add_generation_prompt=True)
    with counting(model) as found:
        answer(model, processor, [prompt], max_new_tokens=1)
    length, image_tokens = len(prompt.input_ids), prompt.image_spans[0][1]
    (row,) = paper_plan(small, length - image_tokens, picture.size).rows
    assert row.image_tokens == image_tokens and row.prefill is not None
    assert (row.prefill.macs, row.prefill.parameters) == (found.macs, found.parameters)
    head = model.get_output_embeddings().weight.numel()
    assert row.count.macs - row.prefill.macs == (length - 1) * head


def picture_side(recipe: Recipe) -> int:
    return 3 * recipe.model.vision.patch_size


TABLE = PaperTable(
    "a paper, table 1",
    picture=(16, 8),
    padded=True,
    variants={
        "whole": Variant(5, Published(0.1, 0.2)),
        "merged": Variant(5, changes=("model.compress={kind: merge, factor: 2}",)),
    },
    peers={"qwen2-vl": Peer("PEER", 7, Published(3.0, 4.0))},
    not_derived={"closed": Published(9.9)},
    remarks=("the picture is small",),
)


@pytest.fixture
def in_table(small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe's file, with a paper that names it and a peer of a few weights."""
    text = {
        "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
    Qwen2VLConfig(text_config=text, vision_config=vision).save_pretrained(tmp_path / "peer")
    qwen = replace(TABLE.peers["qwen2-vl"], checkpoint=str(tmp_path / "peer"))
    table = replace(TABLE, peers={"qwen2-vl": qwen})
    monkeypatch.setattr(paper_report, "PAPER_TABLES", {small.name: table})
    file = tmp_path / "recipe.yaml"
    file.write_text(small.to_yaml())
    return file


def asked(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert done.exit_code == 0, (done.stderr, done.exception)
    return str(done.stdout)


def test_a_table_of_variants_and_peers(in_table: Path) -> None:
    said = json.loads(asked(in_table, "--style", "paper", "--json"))
    rows = said["paper_table"]
    assert list(rows) == ["whole", "merged", "qwen2-vl", "whole_ours", "merged_ours"]
    whole, merged = rows["whole"], rows["merged"]
    assert (whole["image_tokens"], whole["text_tokens"]) == (16, 5)  # all that the tower takes
    assert merged["image_tokens"] == 8 and merged["gflops"] < whole["gflops"]
    assert whole["published"] == {"gflops": 0.1, "params_b": 0.2}
    assert 0 < rows["whole_ours"]["gflops"] < whole["gflops"]
    assert rows["qwen2-vl"]["text_tokens"] == 7 and rows["qwen2-vl"]["gflops"] > 0
    assert said["not_derived"] == {"closed": {"gflops": 9.9, "params_b": None}}
    assert said["rules"] == list(RULES) and said["remarks"] == ["the picture is small"]


def test_the_table_for_people(in_table: Path) -> None:
    lines = asked(in_table, "--style", "paper").splitlines()
    assert lines[0].endswith("as papers count it: a paper, table 1")
    rows = {line.split()[0]: line.split() for line in lines if line.startswith("  ")}
    assert rows["whole"][1:3] == ["16", "5"] and rows["whole"][4::2] == ["0.1", "0.20"]
    assert rows["merged"][4] == "-" and rows["qwen2-vl"][-1] == "-"
    assert all(f"- {rule}" in lines for rule in RULES) and "- the picture is small" in lines
    assert "- closed: the paper's 9.9 GFLOPS are not derived" in lines


def test_the_samples_size_may_be_given(in_table: Path) -> None:
    options = ("--style", "paper", "--text-tokens", "3", "--image", "8x8", "--json")
    rows = json.loads(asked(in_table, *options))["paper_table"]
    assert {rows[name]["text_tokens"] for name in ("whole", "merged", "qwen2-vl")} == {3}
    assert rows["whole"]["image_tokens"] == 16  # padding does not depend on the picture
    wider = json.loads(asked(in_table, *options[:4], "--json"))["paper_table"]
    assert rows["whole_ours"]["gflops"] <= wider["whole_ours"]["gflops"]


def test_the_exact_style_is_the_default(small: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(small.to_yaml())
    exact = asked(file, "--style", "exact", "--text-tokens", "9", "--json")
    assert exact == asked(file, "--text-tokens", "9", "--json")
    assert json.loads(exact)["flops_per_sample"] > 0


MISTAKES = {
    'no style "papr"; did you mean "paper"?; there are exact and paper': ("--style", "papr"),
    '"0x4" is no size in pixels': ("--style", "paper", "--image", "0x4"),
    "--image: 9000x4 is no picture for Qwen-VL": ("--style", "paper", "--image", "9000x4"),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_one_line(said: str, in_table: Path) -> None:
    done = CliRunner().invoke(app, ["plan", str(in_table), *MISTAKES[said]])
    assert done.exit_code == 2 and done.stdout == "", (done.stdout, done.exception)
    (line,) = done.stderr.splitlines()
    assert said in line


def test_a_model_that_can_see_is_no_llm() -> None:
    done = CliRunner().invoke(app, ["plan", "vora", "--llm", "Qwen/Qwen2-VL-2B-Instruct"])
    assert done.exit_code == 2 and "can see already" in done.stderr


# The recipe of the paper


def test_aurora() -> None:
    rows = json.loads(asked("aurora", "--style", "paper", "--json"))["paper_table"]
    table = PAPER_TABLES["aurora"]
    for name, row in {**table.variants, **table.peers}.items():
        gflops, params_b = row.published.gflops, row.published.params_b
        assert rows[name]["gflops"] == pytest.approx(gflops, rel=0.002), name
        assert round(rows[name]["params_b"], 2) == params_b, name
    # 263.8 less logits of all positions but one, and less the last block's text and vision.
    assert rows["combined_ours"]["gflops"] <= 238.5
