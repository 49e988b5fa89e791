"""Training checkpoints: what differs from the base, committed as a whole or not at all.

``checkpoints/step-N/`` holds ``tensors.safetensors`` (every tensor that training has changed, by
canonical name), ``optimizer.pt``, ``state.json`` and ``MANIFEST.json`` with the SHA-256 of each file
and of itself. Several ranks write ``shards/`` and ``optimizer.json`` in place of the first two
(``training/shards.py``); either kind is read by any number of ranks. The base model is not copied; its
fingerprint is, and a merge or a resume on another base is refused. ``training/saver.py`` writes
checkpoints while training goes on.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from oculi import durable
from oculi.errors import CheckpointError, NoUsableCheckpointError
from oculi.model import OculiForConditionalGeneration
from oculi.model.lora import canonical_name
from oculi.training import shards
from oculi.training.optim import Optimizers
from oculi.training.parallel import fit_state
from oculi.training.ranks import ALONE, Ranks

MANIFEST = "MANIFEST.json"
STATE, WHOLE = "state.json", ("tensors.safetensors", "optimizer.pt")


@dataclass(frozen=True)
class State:
    """Where a run was.

    Attributes:
        stage: number of the stage. step: steps done in it. total_steps: over all stages.
        lora: whether LoRA is in the model.
        base: folder or id that the tensors are changes to.
        base_tensors: SHA-256 of every tensor of the base LLM and of a vision tower, by name; of a base
            that oculi has exported, of all of it (in older checkpoints of a second stage not).
        seconds: spent training so far.
        monitor: state of ``training.monitor.Monitor``; empty in checkpoints that are older than it.
    """

    stage: int
    step: int
    total_steps: int
    lora: bool
    base: str
    base_tensors: dict[str, str]
    seconds: float
    monitor: dict[str, Any] = field(default_factory=dict)


def stage_folder(run: Path, base: str, llm: str) -> Path | None:
    """The exported stage that a base names relative to its run, or None for any other base.

    Args:
        llm: the recipe's, which may be a folder of such a name beside the caller.

    Raises:
        CheckpointError: it is a stage of the run, and is gone.
    """
    folder = run / base
    if Path(base).parts[:1] != ("stages",):
        return None
    if (folder / "config.json").exists():
        return folder
    if Path(base) == Path(llm):
        return None
    raise CheckpointError(
        f"{folder} is gone, and the checkpoints after it hold only what has changed since: put it back, "
        "or begin a new run"
    )


def tensor_hashes(module: nn.Module) -> dict[str, str]:
    """SHA-256 of each parameter of a model (its name, dtype, shape and bytes), without its LoRA."""
    hashes = {}
    for name, parameter in module.named_parameters():
        name = canonical_name(name)
        if name.endswith((".lora_A", ".lora_B")):
            continue
        data = parameter.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{name} {data.dtype} {tuple(data.shape)} ".encode())
        digest.update(data.view(torch.uint8).numpy().tobytes())
        hashes[name] = digest.hexdigest()
    return hashes


def base_hashes(model: OculiForConditionalGeneration, started: bool = False) -> dict[str, str]:
    """Of all that a run takes as it is: the LLM by its own names, a tower's tensors as ``vision.*``.

    Args:
        started: the model began with one that was exported: all of it is.
    """
    hashes = tensor_hashes(model.llm)
    if started:
        others = tensor_hashes(model)
        return hashes | {k: v for k, v in others.items() if not k.startswith("llm.")}
    for part, module in model.vision.named_children():
        if isinstance(module, PreTrainedModel):
            found = tensor_hashes(module)
            hashes |= {f"vision.{part}.{name}": value for name, value in found.items()}
    return hashes


def check_base(found: Mapping[str, str], expected: Mapping[str, str], base: str) -> None:
    """Raises CheckpointError naming the first tensor in which two bases differ."""
    stage = Path(base).parts[:1] == ("stages",)
    parts = ("vision.", "compress.", "fusion.")
    for name in sorted(found.keys() | expected.keys()):
        if stage and name not in expected and name.startswith(parts):
            continue  # an older checkpoint
        if found.get(name) != expected.get(name):
            if stage:
                raise CheckpointError(
                    f"{base} is not what this run has exported: {name} differs. Put it back as it "
                    "was, or begin a new run"
                )
            if name.startswith(parts):
                raise CheckpointError(
                    f"the vision part is not the one that this run was trained on: {name} differs. "
                    "Put the original one where the recipe says (model.start, or vision.init_from)"
                )
            raise CheckpointError(
                f"{base} is not the LLM that this run was trained on: {name} differs. Give the "
                "original one with --base"
            )


def save(
    folder: Path,
    state: State,
    tensors: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    before_commit: Callable[[], None] | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Write ``folder/step-N``; it appears under that name only when it is complete and on the disk.

    Args:
        folder: the run's ``checkpoints``.
        state, tensors: see ``State``; tensors may be split over the ranks.
        optimizer: the optimizer's ``state_dict``.
        before_commit: called on rank 0 when all is written, and before it has its name.
        ranks: that all call this, from the thread that saves.

    Raises:
        OSError, RuntimeError, SafetensorError: it cannot be written; ``durable.disk_errors`` says why.
        ElsewhereError: another rank cannot write.
    """
    final = folder / f"step-{state.total_steps:07d}"
    partial = final.with_suffix(durable.PARTIAL)

    def begin() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    def write() -> dict[str, dict[str, Any]]:
        if ranks.alone:
            names = _write_whole(partial, tensors, optimizer)
        else:
            names = shards.write(partial, tensors, optimizer, ranks)
        if ranks.first:
            durable.reach("write", partial / STATE)
            (partial / STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")
            names.append(STATE)
        return {name: _entry(partial / name) for name in names}

    def commit() -> None:
        durable.reach("write", partial / MANIFEST)
        (partial / MANIFEST).write_text(_manifest_text(files), encoding="utf-8")
        durable.sync_tree(partial)
        if before_commit is not None:
            before_commit()
        durable.discard(final)
        durable.move(partial, final)
        durable.reach("committed", final)

    ranks.first_does(begin, saving=True)
    found = ranks.gather(ranks.all_do(write, saving=True), saving=True)
    files = {name: entry for of_rank in found for name, entry in of_rank.items()}
    ranks.first_does(commit, saving=True)
    return final


def _write_whole(
    folder: Path, tensors: Mapping[str, Tensor], optimizer: Mapping[str, Any]
) -> list[str]:
    contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    durable.reach("write", folder / WHOLE[0])
    save_file(contiguous, folder / WHOLE[0])
    durable.reach("write", folder / WHOLE[1])
    with (folder / WHOLE[1]).open("wb") as file:  # given a path, torch hides what went wrong
        torch.save(dict(optimizer), file)
    return list(WHOLE)


def _entry(path: Path) -> dict[str, Any]:
    return {"sha256": _sha256(path), "bytes": path.stat().st_size}


def _manifest_text(files: Any) -> str:
    """The manifest is this text to the byte: it holds the SHA-256 of the rest of itself."""
    body = {"format": 2, "files": files}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}, indent=1)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run in the order of their steps, whole or not."""
    found = [p for p in folder.glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    return int(path.name[5:])


def newest(folder: Path) -> Path | None:
    """The checkpoint with the highest step, unverified, or None."""
    return next(reversed(checkpoints(folder)), None)


def newest_valid(folder: Path, on_broken: Callable[[str], None]) -> Path | None:
    """The newest checkpoint all of whose files are what was written, or None where there is none.

    Args:
        folder: the run's ``checkpoints``.
        on_broken: told of each newer one that is not, in a line that names the file.

    Raises:
        NoUsableCheckpointError: there are some, and all are damaged.
    """
    problems: list[str] = []
    for path in reversed(checkpoints(folder)):
        found = problem(path)
        if found is None:
            for line in problems:
                on_broken(f"{line}; using {path.name} instead")
            return path
        problems.append(found)
    if problems:
        raise NoUsableCheckpointError(
            f"no checkpoint in {folder} is whole: {problems[0]}; start anew with another --out"
        )
    return None


def set_aside(folder: Path, used: Path) -> None:
    """Rename the damaged checkpoints above the one that is used: they are none any more.

    Left there they would count among the newest, and ``prune`` would remove whole ones for them.
    """
    for path in checkpoints(folder):
        if _step(path) > _step(used):
            damaged = path.with_suffix(".damaged")
            shutil.rmtree(damaged, ignore_errors=True)
            durable.move(path, damaged)


def prune(folder: Path, keep_last: int | None, keep_every: int | None) -> None:
    """Remove old checkpoints; call it only when a newer one is on the disk.

    Args:
        folder: the run's ``checkpoints``.
        keep_last: the newest so many stay; None: all.
        keep_every: those whose step is a multiple of it stay as well.

    Raises:
        OSError: one cannot be removed.
    """
    if keep_last is None:
        return
    for path in checkpoints(folder)[:-keep_last]:
        if keep_every is None or _step(path) % keep_every:
            durable.discard(path)


def load(path: Path, verified: bool = False) -> tuple[State, dict[str, Tensor]]:
    """State and tensors of a checkpoint, verified unless ``newest_valid`` has just done so.

    Raises:
        CheckpointError: a file is missing or is not what was written.
    """
    if not verified:
        verify(path)
    if shards.is_sharded(path):
        return load_state(path), shards.read_tensors(path)
    return load_state(path), load_file(path / WHOLE[0])


def load_state(path: Path) -> State:
    """The state alone, not verified; raises CheckpointError."""
    try:
        return State(**json.loads((path / STATE).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}/{STATE} cannot be read: {error}") from None


def load_optimizer(path: Path, optimizer: Optimizers) -> None:
    """Take up the optimizer's state of a verified checkpoint; no code in it is run.

    Raises:
        CheckpointError: it is of other parameters than the stage trains now.
    """
    if shards.is_sharded(path):
        state = shards.read_optimizer(path, optimizer)
    else:
        state = torch.load(path / WHOLE[1], weights_only=True, map_location="cpu", mmap=True)
    try:
        optimizer.check(state)
    except ValueError as error:
        raise CheckpointError(
            f"{path} has the optimizer of other parameters than the stage trains now ({error}): "
            "trainable or muon in recipe.yaml was changed; put it back, or begin a new run"
        ) from None
    optimizer.load_state_dict(fit_state(state, optimizer))


def verify(path: Path) -> None:
    """Compare every file with the manifest; raises CheckpointError naming the file that differs."""
    if found := problem(path):
        raise CheckpointError(f"{found}; remove {path} to use an earlier checkpoint")


def problem(path: Path) -> str | None:
    """What is wrong with a checkpoint, by the first file that is not what was written, or None."""
    entries = _read_manifest(path / MANIFEST)
    if entries is None:
        return f"{path} has no readable {MANIFEST}: it is no checkpoint, or damaged"
    needed = (shards.GROUPS,) if shards.GROUPS in entries else WHOLE
    for name in (STATE, *needed):
        if name not in entries:
            return f"{path}/{MANIFEST} does not list {name}"
    for name in entries:
        try:
            if _sha256(path / name) != entries[name]:
                return f"{path / name} is damaged (its SHA-256 is not the manifest's)"
        except FileNotFoundError:
            return f"{path / name} is missing"
        except OSError as error:
            return f"{path / name} cannot be read: {error.strerror}"
    for file in (path / shards.FOLDER).glob("*"):
        if f"{shards.FOLDER}/{file.name}" not in entries:
            return f"{file} is not in the manifest"
    state = load_state(path)
    if state.total_steps != _step(path):
        return f"{path} holds step {state.total_steps}: it is a copy of another checkpoint"
    return None


def _read_manifest(file: Path) -> dict[str, str] | None:
    """SHA-256 by file name; None if the manifest is not what was written."""
    try:
        text = file.read_text(encoding="utf-8")
        manifest = json.loads(text)
        sums = {name: str(entry["sha256"]) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    # The first version of the manifest had no sum of its own.
    if manifest.keys() != {"files"} and text != _manifest_text(manifest["files"]):
        return None
    return sums


@torch.no_grad()
def restore(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors into parameters of the same canonical names.

    Raises:
        CheckpointError: a tensor has no parameter, or another shape.
    """
    for name, value in tensors.items():
        target = parameters.get(name)
        if target is None or target.shape != value.shape:
            have = "no such parameter" if target is None else f"shape {tuple(target.shape)}"
            raise CheckpointError(
                f"{path}: {name} {tuple(value.shape)} does not fit: the model has {have}"
            )
        if target.dtype != value.dtype and value.dtype == torch.float32:
            target.data = target.data.float()  # trained parameters are kept in float32
        target.copy_(value)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
