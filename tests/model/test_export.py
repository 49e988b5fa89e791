"""An exported folder works with transformers alone, and gives what the model gave here."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from helpers import PATCH, make_tower
from oculi.export.hf import export
from oculi.model import OculiForConditionalGeneration, OculiProcessor
from oculi.model.lora import inject_lora, lora_layers, merge_lora
from routed import fill

pytestmark = pytest.mark.usefixtures("no_grad")


def tower(family: str) -> dict[str, Any]:
    """Configuration of a vision part with a tower."""
    config = make_tower(family).config.to_dict()
    return {"kind": "tower", "tower": config, "patch_size": PATCH, "layer": -2}


# LLM, mask policy and settings of the model: between them, what an exported folder has to keep.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2": ("qwen2", "bidirectional", {}),
    "llama": ("llama", "mutual", {"tie_word_embeddings": True}),
    "olmo2": ("olmo2", "causal", {}),
    "clip": ("qwen2", "causal", {"vision": tower("clip")}),
    "siglip2": ("llama", "bidirectional", {"vision": tower("siglip2")}),
    "routed": ("qwen2", "bidirectional", {}),
    "merged": ("qwen2", "bidirectional", {"compress": {"kind": "merge", "factor": 3}}),
    "aurora": (
        "qwen2",
        "causal",
        {
            "vision": {**tower("siglip2"), "layer": -1, "final_norm": True},
            "compress": {"kind": "mlp", "patches": 1024, "tokens": 4},
            "fusion": {"kind": "combined", "layers": 2},
        },
    ),
}
CODE = {
    "blocked_attention_oculi.py",
    "call_masks_oculi.py",
    "chat_oculi.py",
    "compress_learned_oculi.py",
    "compress_oculi.py",
    "configuration_oculi.py",
    "encoding_error_oculi.py",
    "fusion_oculi.py",
    "generation_oculi.py",
    "grids_oculi.py",
    "image_processing_oculi.py",
    "masks_oculi.py",
    "modeling_oculi.py",
    "outputs_oculi.py",
    "patch_embed_oculi.py",
    "perceiver_oculi.py",
    "processing_oculi.py",
    "recompute_oculi.py",
    "routed_oculi.py",
    "rows_oculi.py",
    "settings_oculi.py",
    "spans_oculi.py",
    "taps_oculi.py",
    "tower_oculi.py",
    "wide_rows_oculi.py",
}

# Runs where oculi cannot be imported; writes, per folder, what the Auto classes made of it.
FRESH = """
import json, sys
sys.modules["oculi"] = None
import torch
torch.set_num_threads(1)
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
from transformers import AutoTokenizer, pipeline

trust = {"trust_remote_code": True}
settings = {"max_new_tokens": 5, "do_sample": False}
results = {}
for folder, chat in json.load(sys.stdin).items():
    pipe = pipeline("image-text-to-text", model=folder, **trust)
    piped = pipe(chat, return_tensors=True, generate_kwargs=settings)[0]["generated_token_ids"]
    answer = pipe(chat, return_full_text=False, generate_kwargs=settings)[0]["generated_text"]
    model = AutoModelForImageTextToText.from_pretrained(folder, **trust)
    processor = AutoProcessor.from_pretrained(folder, **trust)
    inputs = processor.apply_chat_template(
        chat, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    model.save_pretrained(folder + "-again")
    processor.save_pretrained(folder + "-again")
    results[folder] = {
        "piped": piped.tolist(),
        "answer": answer,
        "generated": model.generate(**inputs, **settings)[0].tolist(),
        "static": model.generate(**inputs, **settings, cache_implementation="static")[0].tolist(),
        "classes": [type(model).__name__, type(processor).__name__],
        "modules": [type(model).__module__, type(processor).__module__],
        "image_processor": type(AutoImageProcessor.from_pretrained(folder, **trust)).__name__,
        "tokenizer": len(AutoTokenizer.from_pretrained(folder)),
    }
with open("results.json", "w") as file:
    json.dump(results, file)
"""


@pytest.fixture(scope="module")
def exported(
    make_model: Any, make_processor: Any, make_picture: Any, tmp_path_factory: Any
) -> dict[str, tuple[Path, Any, Any, Any]]:
    """Per kind: the folder, the model and processor that were saved, and a chat with an image."""
    folder = tmp_path_factory.mktemp("export")
    found = {}
    for kind, (family, policy, settings) in KINDS.items():
        model = make_model(family, policy, **settings)
        processor = make_processor(compress=settings.get("compress"))
        if kind == "routed":
            model.add_routed_lora("image", 2, 2, ("q_proj", "up_proj"))
            fill(model)
        else:
            inject_lora(model.llm, rank=2, blocks=2, targets=("q_proj", "up_proj"))
            for _, layer in lora_layers(model.llm):
                torch.nn.init.normal_(layer.lora_B["default"].weight)
            merge_lora(model.llm)
        export(model, processor, folder / kind, kind, "for tests")
        path = folder / f"{kind}.png"
        make_picture(9, 13, seed=3).save(path)
        parts = [{"type": "image", "url": str(path)}, {"type": "text", "text": "<|im_end|> red?"}]
        found[kind] = (folder / kind, model, processor, [{"role": "user", "content": parts}])
    return found


def generated(model: Any, processor: Any, chat: Any) -> list[int]:
    inputs = processor.apply_chat_template(
        chat, tokenize=True, add_generation_prompt=True, return_dict=True
    )
    ids: list[int] = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0].tolist()
    return ids


@pytest.fixture(scope="module")
def fresh(exported: Any, tmp_path_factory: Any) -> dict[str, Any]:
    """What a process without oculi got from each folder; one process, because it starts slowly."""
    home = tmp_path_factory.mktemp("home")
    environment = {
        **{k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("HF_")},
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
    }
    chats = {str(folder): chat for folder, _, _, chat in exported.values()}
    done = subprocess.run(
        [sys.executable, "-c", FRESH],
        input=json.dumps(chats),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=home,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results: dict[str, Any] = json.loads((home / "results.json").read_text())
    return results


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_alone_generates_the_same(exported: Any, fresh: Any, kind: str) -> None:
    folder, model, processor, chat = exported[kind]
    result = fresh[str(folder)]
    expected = generated(model, processor, chat)
    prompt = processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True).shape[1]
    assert len(expected) > prompt
    assert result["generated"] == result["piped"] == result["static"] == expected
    answer = processor.tokenizer.decode(expected[prompt:], skip_special_tokens=True)
    assert result["answer"] == answer
    assert result["classes"] == ["OculiForConditionalGeneration", "OculiProcessor"]
    assert all(name.startswith("transformers_modules.") for name in result["modules"])
    assert result["image_processor"] == "OculiImageProcessor"
    assert result["tokenizer"] == len(processor.tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_has_all_code_and_all_settings(exported: Any, fresh: Any, kind: str) -> None:
    folder = exported[kind][0]
    for each in (folder, Path(f"{folder}-again")):
        assert {path.name for path in each.glob("*.py")} == CODE
        assert (each / "chat_template.jinja").exists() and (each / "tokenizer.json").exists()
        config = json.loads((each / "config.json").read_text())
        assert config["image_attention"] == KINDS[kind][1]
        assert config["auto_map"]["AutoModelForImageTextToText"].startswith("modeling_oculi.")
        auto_map = json.loads((each / "processor_config.json").read_text())["auto_map"]
        assert auto_map["AutoProcessor"] == "processing_oculi.OculiProcessor"


def test_the_folder_of_a_model_that_merges_says_so_twice(exported: Any) -> None:
    """The processor inserts as many placeholders as the model makes tokens."""
    folder, model, processor, chat = exported["merged"]
    setting = {"kind": "merge", "factor": 3}
    assert json.loads((folder / "config.json").read_text())["compress_config"] == setting
    saved = json.loads((folder / "processor_config.json").read_text())
    assert saved["image_processor"]["compress"] == setting
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
    placeholders = int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert inputs["image_grids"].tolist() == [[3, 2]] and placeholders == 2


def test_the_folder_of_a_routed_model_says_what_lora_it_has(exported: Any) -> None:
    folder, model, _, _ = exported["routed"]
    config = json.loads((folder / "config.json").read_text())
    targets = ["q_proj", "up_proj"]
    entry = {"modality": "image", "rank": 2, "blocks": 2, "targets": targets}
    assert config["routed_lora"] == [entry]
    again = OculiForConditionalGeneration.from_pretrained(folder)
    found = {name for name in again.state_dict() if ".lora_" in name}
    assert len(found) == 8 and found == {n for n in model.state_dict() if ".lora_" in n}


@pytest.mark.parametrize("kind", KINDS)
def test_with_oculi_imported_no_trust_is_needed(exported: Any, kind: str) -> None:
    folder, model, processor, chat = exported[kind]
    expected = generated(model, processor, chat)
    again = AutoModelForImageTextToText.from_pretrained(folder)
    loaded = AutoProcessor.from_pretrained(folder)
    assert type(again) is OculiForConditionalGeneration and type(loaded) is OculiProcessor
    assert generated(again, loaded, chat) == expected
    pipe = pipeline("image-text-to-text", model=str(folder))
    settings = {"max_new_tokens": 5, "do_sample": False}
    found = pipe(chat, return_tensors=True, generate_kwargs=settings)[0]["generated_token_ids"]
    assert found.tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_bit_for_bit(exported: Any, kind: str) -> None:
    folder, model, _, _ = exported[kind]
    again, report = OculiForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    expected, found = model.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_exported_code_imports_only_what_travels() -> None:
    """Relative imports inside of the folder, and no package that transformers and torch do not bring."""
    folder = Path(sys.modules["oculi.model"].__file__ or "").parent
    brought = {"jinja2", "numpy", "PIL", "tokenizers", "torch", "transformers"}
    known = {*sys.stdlib_module_names, *brought}
    for name in CODE:
        for node in ast.walk(ast.parse((folder / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert f"{node.module}.py" in CODE, f"{name} imports {node.module}"
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = (
                    [getattr(node, "module", None)]
                    if isinstance(node, ast.ImportFrom)
                    else [alias.name for alias in node.names]
                )
                assert {str(module).split(".")[0] for module in modules} <= known, name
