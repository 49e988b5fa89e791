"""A complete Hugging Face folder: weights, code, processor, template, card."""

from __future__ import annotations

import shutil
from pathlib import Path

from oculi import __version__, durable
from oculi.errors import CheckpointError
from oculi.model import OculiForConditionalGeneration, OculiProcessor
from oculi.model.lora import has_lora

CARD = """---
library_name: transformers
pipeline_tag: image-text-to-text
---
# {name}

A vision-language model made with oculi {version}: {summary}

```python
from transformers import pipeline

pipe = pipeline("image-text-to-text", model="PATH_OF_THIS_FOLDER", trust_remote_code=True)
message = {{"role": "user", "content": [{{"type": "image", "path": "picture.png"}},
                                      {{"type": "text", "text": "What is this?"}}]}}
print(pipe(text=[message], return_full_text=False)[0]["generated_text"])
```

With oculi installed: `oculi chat PATH_OF_THIS_FOLDER --image picture.png "What is this?"`.
The code in this folder is a copy of `oculi.model`; with `import oculi` first it is not run.
"""


def check_free(out: Path) -> None:
    """Raise CheckpointError unless a folder can be written at ``out`` without harm to another."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is no empty folder: choose another")


def export(
    model: OculiForConditionalGeneration,
    processor: OculiProcessor,
    out: Path,
    name: str,
    summary: str,
    max_shard_size: str = "5GB",
) -> Path:
    """Write the folder; it appears under its name when it is complete and on the disk.

    Raises:
        CheckpointError: the model still has LoRA (merge it first), or ``out`` exists.
    """
    if has_lora(model):
        raise CheckpointError("the model still has LoRA: merge it before exporting (oculi merge)")
    check_free(out)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    durable.reach("write", partial)
    model.save_pretrained(partial, max_shard_size=max_shard_size)
    processor.save_pretrained(partial)
    card = CARD.format(name=name, version=__version__, summary=summary)
    (partial / "README.md").write_text(card, encoding="utf-8")
    durable.sync_tree(partial)
    if out.exists():
        out.rmdir()
    durable.move(partial, out)
    return out
