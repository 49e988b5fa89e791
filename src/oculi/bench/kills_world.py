"""What the kill harness trains: a model of some thousand parameters, by the code of ``oculi train``.

Everything that has state is in it: dropout, packing, a mixture of sources drawn for more than two
epochs, an objective with a trained head, a schedule, LoRA that is merged between two stages, pruning.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from oculi.hub import resolve
from oculi.recipe import Recipe, validate
from oculi.training import checkpoint as ckpt
from oculi.training.log import EVENTS, METRICS

PATCH = 4
COLOURS = {"red": (250, 10, 10), "blue": (10, 10, 250), "green": (10, 250, 10)}
KEPT = 2  # checkpoints


def build_world(folder: Path) -> Recipe:
    """Write a random LLM, a random teacher and data files; returns the recipe that trains on them."""
    _llm(folder / "llm")
    _teacher(folder / "teacher")
    sources = [_rows(folder / "many", 5), _rows(folder / "few", 2)]
    mixture = [
        {"kind": "file", "path": str(path), "weight": weight}
        for path, weight in zip(sources, (1.0, 1.5), strict=True)
    ]
    pretrain: dict[str, Any] = {
        "name": "pretrain", "data": mixture, "steps": 4, "batch": 4, "length": 256, "pack_length": 96,
        "micro_rows": 1, "single_turns": 0.5, "crop": 0.2,
        "objectives": [{"kind": "lm"}, {"kind": "distill", "teacher": str(folder / "teacher")}],
        "lr": 1e-2, "trainable": {"llm.*.lora_?": None, "vision.*": None, "objectives.*": None},
        "warmup_steps": 2, "schedule": "cosine", "precision": "float32", "workers": 0,
        "log_every": 1, "checkpoint_every": 2, "merge_lora": True,
    }  # fmt: skip
    finetune = {
        **pretrain, "name": "finetune", "objectives": [{"kind": "lm"}], "weight_decay": 0.1,
        "trainable": {"llm.*": None, "vision.*": None}, "merge_lora": False,
    }  # fmt: skip
    model = {
        "llm": str(folder / "llm"),
        "vision": {"kind": "patch_embed", "patch_size": PATCH, "width": 8, "grid": [4, 4]},
        "images": {"mode": "native", "min_patches": 1, "max_patches": 9},
        "lora": {"rank": 2, "blocks": 2, "targets": ["q_proj", "v_proj", "down_proj"]},
    }
    recipe = {
        "name": "kills", "summary": "a model to be killed", "model": model,
        "stages": [pretrain, finetune], "keep_last": KEPT,
    }  # fmt: skip
    return validate(recipe, "kills")


def _llm(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

    tokenizer = AutoTokenizer.from_pretrained(resolve("testbed:llm"))
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512,
        initializer_range=0.3, attention_dropout=0.1, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _teacher(folder: Path) -> None:
    import torch
    from transformers import Aimv2VisionConfig, Aimv2VisionModel

    torch.manual_seed(1)
    config = Aimv2VisionConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        patch_size=PATCH, image_size=16,
    )  # fmt: skip
    Aimv2VisionModel(config).save_pretrained(folder)


def _rows(folder: Path, count: int) -> Path:
    from PIL import Image

    folder.mkdir(parents=True)
    rows = []
    for i in range(count):
        colour = list(COLOURS)[i % 3]
        Image.new("RGB", (8, 4 + 4 * (i % 2)), COLOURS[colour]).save(folder / f"{i}.png")
        turns = [("human", "<image>\nWhat colour is it?"), ("gpt", colour)]
        turns += [("human", "How many are there?"), ("gpt", "one")] * (i % 2)
        talk = [{"from": who, "value": what} for who, what in turns]
        rows.append({"id": f"{folder.name}-{i}", "image": f"{i}.png", "conversations": talk})
    path = folder / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def outcome(run: Path) -> dict[str, Any]:
    """All that a run has computed, to the bit: what a resumed run must share with a whole one."""
    last = ckpt.checkpoints(run / "checkpoints")[-1]
    state = json.loads((last / "state.json").read_text(encoding="utf-8"))
    del state["seconds"]
    return {
        "metrics": [_exact(entry) for entry in _lines(run / METRICS)],
        "events": [e for e in _lines(run / EVENTS) if e["event"] != "damaged checkpoint"],
        "checkpoints": [path.name for path in ckpt.checkpoints(run / "checkpoints")],
        "state": state,
        "tensors": _sum(last / "tensors.safetensors"),
        "optimizer": _sum(last / "optimizer.pt"),
        "stages": {p.parent.name: _sum(p) for p in sorted(run.glob("stages/*/model.safetensors"))},
    }


def _exact(entry: dict[str, Any]) -> list[Any]:
    """What was computed in a step; times of day and speeds are no part of it."""
    numbers = ("loss", *entry["objectives"], "grad_norm", "lr", "useful_tokens")
    names = [entry["stage"], entry["step"], entry["samples"], entry["bad_samples"]]
    return [*names, *(float(entry[key]).hex() for key in numbers)]


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
