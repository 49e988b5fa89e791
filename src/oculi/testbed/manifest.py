"""What the tiny checkpoints' folder says about itself: MANIFEST.json and the model card.

safetensors notices a cut file but no flipped bit, so every file's SHA-256 is kept; the numbers
that the model card shows come from the same file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from oculi.errors import CheckpointError
from oculi.testbed.vocabulary import VERSION

MANIFEST, CARD = "MANIFEST.json", "README.md"
COMMAND = "oculi testbed build"
_PURPOSE = {
    "llm": (
        "Qwen2 language model and tokenizer, pre-trained on the testbed's language: scenes "
        "described in words, and skills such as arithmetic, spelling and sorting. It has seen no "
        "picture. Scores: per cent of replies exactly right on texts of other dice than those of "
        "training, a fifth of Playroom's multiple choice; drills are lists and records of random "
        "words. Chance is 50 for existence and comparison, 20 to 25 for count and relation and for "
        "multiple choice. Skills are not all new: of 1,400 prompts 44 % are also among 137,000 of "
        "training (of 200 each: add 176, subtract 187, copy 54, spell 200, sort numbers 1, sort "
        "words and reverse 0)."
    ),
    "aimv2": (
        "AIMv2 vision tower for 84 x 84 pixels, the teacher. Trained on Playroom pictures with "
        "what is in them, never on questions. Scores: per cent of objects whose attribute a "
        'linear head reads off their patch; "pairs" are the colour-shape pairs held out of '
        "training. 200 pictures each."
    ),
    "clip": "CLIP vision tower, with a class token; pictures, training and scores as of aimv2.",
    "siglip2": (
        "SigLIP 2 vision tower (NaFlex: any grid of patches); pictures, training and scores as of "
        "aimv2."
    ),
    "reader": (
        "CLIP vision tower that knows letters: clip, trained on with words and numbers, in tiles of "
        "84 x 84 pixels and in pictures of as many, and told which glyph lies where, never a question. "
        "Scores of level 3: per cent of glyphs that a linear head reads, and of words of which it reads "
        "every glyph in view; of levels 1 and 2 as of aimv2. 300 pictures each."
    ),
    "vae": (
        "Autoencoder of diffusers' AutoencoderKL: 96 x 96 pixels to 16 channels of 12 x 12 and back. "
        "Scores: PSNR in dB of 200 held-out pictures of all levels, and what a blank picture of the "
        "mean colour of each has."
    ),
    "sd3": (
        "Text-to-image transformer of diffusers' SD3Transformer2DModel on the latents of vae, trained "
        "on Playroom's captions; what made prompts of them is not shipped, so it draws for an Epigone "
        "alone. Scores: its loss with the captions of held-out pictures, and with exchanged ones."
    ),
    "vq": (
        "VQ model (diffusers' VQModel) for 64 x 64 pixels, 8 x 8 indices of 256 codes. Trained to "
        "reconstruct Playroom pictures of all levels, never on questions. Scores: PSNR of 100 "
        'held-out pictures a level in dB; "codes in use" is two to the power of the entropy of '
        "their indices."
    ),
}


def digest(path: Path) -> str:
    """Return a file's SHA-256 as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of the packages that a build's numbers depend on."""
    from importlib.metadata import version

    names = ("numpy", "pillow", "safetensors", "tokenizers", "torch", "transformers")
    return {name: version(name) for name in names}


def read(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoints folder; one without parts if there is none yet."""
    path = folder / MANIFEST
    if not path.exists():
        return {"command": COMMAND, "playroom": VERSION, "parts": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def record(folder: Path, name: str, facts: dict[str, Any], quick: bool = False) -> None:
    """Enter the part `name`, that lies in `folder / name`, and rewrite manifest and card."""
    manifest = read(folder)
    files = {
        path.relative_to(folder).as_posix(): {"sha256": digest(path), "bytes": path.stat().st_size}
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    }
    command = f"{COMMAND} --only {name}" + " --quick" * quick
    manifest["parts"][name] = {"command": command, "versions": versions(), **facts, "files": files}
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    (folder / CARD).write_text(card(manifest), encoding="utf-8")


def problems(folder: Path) -> list[str]:
    """Return what differs between a folder and its manifest, a line each; none if all is well."""
    if not (folder / MANIFEST).exists():
        raise CheckpointError(f"testbed: {folder} has no {MANIFEST}; {COMMAND} writes one")
    wrong = []
    parts = read(folder)["parts"]
    known = {name: entry for part in parts.values() for name, entry in part["files"].items()}
    for name, entry in known.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != entry["bytes"] or digest(path) != entry["sha256"]:
            wrong.append(f"{name} is not the file that was built")
    for part in parts:
        for path in sorted((folder / part).rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name not in known:
                wrong.append(f"{name} is not in {MANIFEST}")
    return wrong


def card(manifest: dict[str, Any]) -> str:
    """Return the model card: what each part is, how it was made, what it scores, its limits."""
    lines = [
        "# Tiny checkpoints",
        "",
        f"Made by `{manifest['command']}` from Playroom v{manifest['playroom']}, a world drawn by "
        "the program; no outside data went in. They let every recipe run without network or "
        "downloads, in the classes and file formats of real checkpoints. They know Playroom and "
        "nothing else, and are of no use beyond demonstrations, tests and small experiments.",
    ]
    for name, part in sorted(manifest["parts"].items()):
        lines += ["", f"## {name}", "", _PURPOSE.get(name, ""), ""]
        size = sum(entry["bytes"] for entry in part["files"].values()) / 2**20
        lines += [
            f"{part['parameters'] / 1e6:.2f}M parameters in bf16, {size:.1f} MiB; trained for "
            f"{part['steps']} steps on {part['samples']} samples with seed {part['seed']} "
            f"(`{part['command']}`).",
            "",
        ]
        lines += [part["note"], ""] if "note" in part else []
        for group, scores in part["metrics"].items():
            shown = ", ".join(f"{kind} {score}" for kind, score in scores.items())
            lines.append(f"- {group}: {shown}")
    return "\n".join(lines) + "\n"
