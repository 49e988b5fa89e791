"""Make ``tests/golden/vora_checkpoint``: checkpoints that the released VoRA code saved, and its logits.

    python tests/export/make_convert_golden.py FOLDER

FOLDER is a checkout of ``Hon-Wong/VoRA`` at f138756e10db87d5c96864b36a3fd8b1cfae4e86; its merging tool
imports ``colorlog``. That code builds, saves, merges and runs the models; this file draws weights and
inputs. It is not run by the tests, which need nothing of that code.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

OUT = Path(__file__).parents[1] / "golden" / "vora_checkpoint"
SIDE, GRID, WIDTH, RANK, BLOCKS = 4, 4, 24, 4, 2
# Mean and deviation of pixels: CLIP's, which the release trains with, and others that the folder of the
# merged one says, so that ignoring them would show.
PIXELS = {
    "unmerged": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "merged": ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)),
}
PLACEHOLDER = -200
EVERY = 3  # logits of every third position are kept
# (tokens before an image, then the image's rows and columns of patches), then tokens at the end.
ROWS: list[tuple[list[tuple[int, int, int]], int]] = [
    ([(3, GRID, GRID)], 6),
    ([(0, GRID, GRID), (2, GRID, GRID)], 4),
    ([(2, 5, 6)], 5),  # larger than the position table: interpolated
    ([], 12),
]
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nGolden.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> Any:
    """Bytes and ChatML's control tokens: 264 entries, of which one has no id in the LLM."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=264,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the circle, the square, the cross"], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def save_parts(tokenizer: Any) -> None:
    """The LLM and the teacher that the released code loads by path, in the working folder."""
    llm = transformers.Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=40, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
        rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(llm).save_pretrained("llm")
    tokenizer.save_pretrained("llm")
    teacher = transformers.Aimv2VisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=BLOCKS, num_attention_heads=2,
        patch_size=SIDE, image_size=SIDE * GRID, use_head=False,
    )  # fmt: skip
    transformers.Aimv2VisionModel(teacher).save_pretrained("teacher")


@torch.no_grad()
def draw(model: Any) -> None:
    """All weights anew, those included that start as zero or one, and the biases LoRA has left."""
    for name, parameter in model.named_parameters():
        std = 0.1 if "lora_" in name else 0.3
        parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=std)


def row_inputs(row: int, vocabulary: int) -> tuple[Tensor, list[Tensor]]:
    """Token ids [T] with placeholders, and the pictures' pixels, each [3, H, W] uint8."""
    generator = torch.Generator().manual_seed(row)
    pieces, images = [], []
    for before, rows, columns in ROWS[row][0]:
        pieces += [torch.randint(3, vocabulary, (before,), generator=generator)]
        pieces += [torch.tensor([PLACEHOLDER])]
        shape = (3, rows * SIDE, columns * SIDE)
        images.append(torch.randint(0, 256, shape, generator=generator).to(torch.uint8))
    pieces.append(torch.randint(3, vocabulary, (ROWS[row][1],), generator=generator))
    return torch.cat(pieces), images


@torch.no_grad()
def logits(model: Any, name: str, tokens: Tensor, images: list[Tensor]) -> Tensor:
    """What the released ``forward`` computes for one row, [T, V]."""
    mean, std = (torch.tensor(v)[:, None, None] for v in PIXELS[name])
    frames = [(image / 255 - mean) / std for image in images]
    empty = torch.zeros(0, 3, SIDE * GRID, SIDE * GRID)
    output = model(
        input_ids=tokens[None],
        labels=tokens[None],
        attention_mask=torch.ones_like(tokens)[None],
        frames=torch.stack(frames) if frames else empty,
        n_frames=[len(frames)],
        vision_placeholder_index=PLACEHOLDER,
    )
    return output.logits[0]


def record(model: Any, name: str, vocabulary: int) -> dict[str, Tensor]:
    """Logits of every row, without the distillation loss: its teacher takes pictures of one size."""
    model.report_metrics = lambda **metrics: None  # the trainer adds this method
    model.enable_aux_vision = False
    model.eval()
    kept = {}
    for row in range(len(ROWS)):
        found = logits(model, name, *row_inputs(row, vocabulary))
        kept[f"{name}.{row}.logits"] = found[::EVERY].contiguous()
    return kept


def cast(model: Any, dtype: torch.dtype) -> None:
    """The weights alone: ``model.to`` would round the rotary frequencies, and that cannot be undone."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def keep_data(folder: Path) -> None:
    """Take the code away that ``save_pretrained`` has copied: none of it is kept here."""
    for file in folder.glob("*.py"):
        file.unlink()


def main(released: Path) -> None:
    sys.path.insert(0, str(released.resolve()))
    from models.lora import QWEN2_TARGET_MODULES
    from models.modeling_vora import VoRAConfig, VoRAForCausalLM
    from tools.merge_lora import merge_lora

    shutil.rmtree(OUT, ignore_errors=True)
    torch.manual_seed(20261130)
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)  # so that config.json names "llm" and no folder of this machine
        tokenizer = make_tokenizer()
        save_parts(tokenizer)
        settings: dict[str, Any] = {
            "llm": "llm", "aux_vision": "teacher", "image_size": SIDE * GRID, "patch_size": SIDE,
            "vision_embedding": "AIMv2Embedding", "vision_embedding_intermediate_size": WIDTH,
            "lora": {"layers": BLOCKS, "r": RANK, "target_modules": QWEN2_TARGET_MODULES},
        }  # fmt: skip
        trained = VoRAForCausalLM(VoRAConfig(**settings))
        draw(trained)
        trained.save_pretrained(OUT / "unmerged", max_shard_size="90KB")
        golden = record(trained, "unmerged", len(tokenizer))

        weights = shutil.ignore_patterns("*.safetensors", "generation_config.json")
        shutil.copytree("llm", OUT / "llm", ignore=weights)

        # As tools/merge_lora.py does it: the same configuration with r = -1, and no teacher.
        settings["lora"] = {**settings["lora"], "r": -1}
        merged = VoRAForCausalLM(VoRAConfig(**{**settings, "aux_vision": ""}))
        state = {k: v for k, v in merge_lora(trained.state_dict()).items() if "aux_" not in k}
        merged.load_state_dict(state)
        cast(merged, torch.bfloat16)
        merged.save_pretrained(OUT / "merged")
        cast(merged, torch.float32)
        golden |= record(merged, "merged", len(tokenizer))

    # The release's folder has these beside the weights.
    tokenizer.save_pretrained(OUT / "merged")
    (OUT / "merged" / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    mean, std = PIXELS["merged"]
    preprocessor = {"image_mean": mean, "image_std": std, "size": 8, "crop_size": 8}
    (OUT / "merged" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    for row in range(len(ROWS)):
        tokens, images = row_inputs(row, len(tokenizer))
        golden[f"input.{row}.tokens"] = tokens
        golden |= {f"input.{row}.image.{i}": image for i, image in enumerate(images)}
    save_file(golden, OUT / "logits.safetensors")
    for folder in (OUT / "unmerged", OUT / "merged"):
        keep_data(folder)
    for file in OUT.rglob("*.*"):
        file.chmod(0o644)
    made = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(made), sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file()), "bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
