"""``oculi bench gpu``: a training step and an answer at real shapes on one device, with random weights.

Rates are read against what the same device was just measured to do: one large matrix product for
training, one large copy for decoding, where every token reads all weights once. Needs no download.

Without a CUDA device it runs tiny shapes on the CPU, so that tests see every line of it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from oculi.bench import sides
from oculi.bench.goals import Goal, table
from oculi.bench.report import versions
from oculi.bench.shapes import SMALL, Shapes, add_lora, build_vlm, make_batch
from oculi.bench.sides import Side
from oculi.errors import OculiError
from oculi.model.lora import merge_lora
from oculi.model.recompute_oculi import MODES

QWEN_7B = Shapes(
    width=3584, blocks=28, mlp=18_944, heads=28, kv_heads=4, vocabulary=152_064, rank=1024,
    lora_blocks=24, patch=14, vision_width=1536, grid=(32, 32), teacher_blocks=24,
    teacher_width=1536, samples=8, text=128, answer=96,
)  # fmt: skip
QWEN_1_5B = replace(
    QWEN_7B, width=1536, mlp=8960, heads=12, kv_heads=2, vocabulary=151_936, tied=True, rank=512,
    samples=32,
)  # fmt: skip
SIZES = {"7b": QWEN_7B, "1.5b": QWEN_1_5B, "tiny": SMALL}
# Share of the bound that the product alone would allow, and times the peer beside it.
SHARE, TIMES = 0.5, 2.0


@dataclass(frozen=True)
class GpuReport:
    """What was measured on one device.

    Attributes:
        size, shapes, device: what ran where.
        product: FLOP/s of a large matrix product. copy: bytes/s that a large copy read and wrote.
        training: by side: seconds, samples_per_second, flops of a step, needed_flops (without what
            checkpointing computes again), mfu (needed_flops against ``product``), peak_bytes.
        serving: seconds to the first token, tokens_per_second after it, and their bounds.
        planned: samples/s that ``oculi plan`` allows, where it knows the device.
    """

    size: str
    shapes: Shapes
    device: str
    product: float
    copy: float
    training: dict[str, dict[str, float]]
    serving: dict[str, float]
    planned: float | None = None

    @property
    def bound(self) -> float:
        """Samples a second if a step were its matrix products and they ran at ``product``."""
        return self.shapes.samples * self.product / self.training["ours"]["needed_flops"]

    def goals(self) -> list[Goal]:
        """The promises; all are advice, because a clock measures them."""
        ours, peer = (self.training[side] for side in ("ours", "official_style"))
        rate = ours["samples_per_second"]
        settings: dict[str, Any] = {"at_least": True, "advice": True}
        planned = [("samples/s / bound of oculi plan", self.planned)] if self.planned else []
        bounds = [("samples/s / bound", self.bound), *planned]
        return [
            *(Goal(name, rate / bound, SHARE, **settings) for name, bound in bounds),
            Goal("samples/s / (a)", rate / peer["samples_per_second"], TIMES, **settings),
        ]

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "size": self.size,
            "device": self.device,
            "versions": versions(),
            "product_flops": self.product,
            "copy_bytes": self.copy,
            "bound_samples_per_second": self.bound,
            "planned_samples_per_second": self.planned,
            "training": self.training,
            "serving": self.serving,
            "goals": [goal.to_dict() for goal in self.goals()],
        }

    def lines(self) -> list[str]:
        """For the terminal and for Markdown."""
        heads = ["step", "samples/s", "seconds", "TFLOP", "MFU", "peak GB"]
        rows = [
            [
                name, f"{one['samples_per_second']:.2f}", f"{one['seconds']:.3f}",
                f"{one['flops'] / 1e12:.2f}", f"{one['mfu']:.1%}", f"{one['peak_bytes'] / 1e9:.1f}",
            ]
            for name, one in self.training.items()
        ]  # fmt: skip
        s, shapes = self.serving, self.shapes
        return [
            f"{self.size} on {self.device}: {shapes.samples} samples of {shapes.vision_tokens} vision "
            f"and {shapes.text} text tokens a step; a large product runs at "
            f"{self.product / 1e12:.1f} TFLOP/s, a copy at {self.copy / 1e9:.0f} GB/s",
            "",
            *table(heads, rows),
            "",
            f"- bound of the products alone: {self.bound:.2f} samples/s",
            f"- first token after {s['first_token_seconds'] * 1e3:.1f} ms (products alone: "
            f"{s['first_token_bound_seconds'] * 1e3:.1f}), then {s['tokens_per_second']:.1f} tokens/s "
            f"(reading the weights alone: {s['tokens_per_second_bound']:.1f})",
            *(f"- {goal.line()}" for goal in self.goals()),
        ]


def bench_gpu(
    size: str = "7b",
    samples: int | None = None,
    checkpointing: str = "none",
    repeats: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> GpuReport:
    """Measure on the CUDA device, or, at the size ``tiny``, on whatever there is.

    Args:
        size: one of ``SIZES``.
        samples: of a step; None: those of the size.
        checkpointing: of our step; the peer recomputes whole blocks, as it is configured.
        repeats: steps that are timed; the middle one counts.
        progress: told how many of the parts are done.

    Raises:
        OculiError: there is no CUDA device, or it has too little memory.
    """
    if size not in SIZES:
        raise OculiError(f'--size "{size}" is none of {", ".join(SIZES)}')
    if checkpointing not in MODES:
        raise OculiError(f'--checkpointing "{checkpointing}" is none of {", ".join(MODES)}')
    if size != "tiny" and not torch.cuda.is_available():
        raise OculiError(f"--size {size} needs a CUDA device, and there is none: try --size tiny")
    shapes = SIZES[size] if samples is None else replace(SIZES[size], samples=samples)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    say = progress or (lambda done, total: None)
    try:
        training, product, copy, serving = _measure(
            shapes, size, device, checkpointing, repeats, say
        )
    except torch.cuda.OutOfMemoryError:
        raise OculiError(
            f"the device has too little memory for {size} with {shapes.samples} samples: lower "
            "--samples, or add --checkpointing selective"
        ) from None
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return GpuReport(size, shapes, name, product, copy, training, serving, plan_bound(size, name))


def plan_bound(size: str, device: str) -> float | None:
    """Samples a second that ``oculi plan`` allows VoRA-7B on a device that it knows by name."""
    from oculi.plan.gpus import GPUS
    from oculi.plan.report import plan
    from oculi.recipes import find_recipe

    known = [name for name in GPUS if name in device.lower()]
    if size != "7b" or not known:
        return None
    name = max(known, key=len)  # an L40S is no L4
    return plan(find_recipe("vora"), name).stages[0].samples_per_second


def _measure(
    shapes: Shapes,
    size: str,
    device: str,
    checkpointing: str,
    repeats: int,
    say: Callable[[int, int], None],
) -> tuple[dict[str, dict[str, float]], float, float, dict[str, float]]:
    say(0, 4)
    product, copy = product_rate(device, size), copy_rate(device, size)
    say(1, 4)
    # FLOPs of one sample, times samples: not compiled, because a compiled step hides them, and small.
    one = replace(shapes, samples=1)
    needed = _flops(lambda: _ours(one, device, "none", compiled=False))
    flops = {"ours": needed, "official_style": _flops(lambda: _peer(one, device))}
    if checkpointing != "none":
        flops["ours"] = _flops(lambda: _ours(one, device, checkpointing, compiled=False))
    training: dict[str, dict[str, float]] = {}
    builds: dict[str, Callable[[], Side]] = {
        "ours": lambda: _ours(shapes, device, checkpointing, compiled=True),
        "official_style": lambda: _peer(shapes, device),
    }
    for done, (name, build) in enumerate(builds.items(), 2):
        say(done, 4)
        taken, peak = _time(build, repeats, device)
        training[name] = {
            "seconds": taken,
            "samples_per_second": shapes.samples / taken,
            "flops": shapes.samples * flops[name],
            "needed_flops": shapes.samples * needed,
            "mfu": shapes.samples * needed / taken / product,
            "peak_bytes": peak,
        }
    serving = _serving(shapes, device, product, copy, repeats)
    say(4, 4)
    return training, product, copy, serving


def seconds(call: Callable[[], object], repeats: int, device: str) -> float:
    """The middle one of several calls, after one that is not timed."""
    call()
    taken = []
    for _ in range(repeats):
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        taken.append(time.perf_counter() - began)
    return sorted(taken)[len(taken) // 2]


def product_rate(device: str, size: str) -> float:
    """FLOP/s of a large bfloat16 product."""
    n = 256 if size == "tiny" else 8192
    left, right = torch.randn(2, n, n, device=device, dtype=torch.bfloat16)
    return 2 * n**3 / seconds(lambda: left @ right, 10, device)


def copy_rate(device: str, size: str) -> float:
    """Bytes/s, read and written, of a large copy."""
    source = torch.zeros(2**20 if size == "tiny" else 2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source), 10, device)


def _flops(build: Callable[[], Side]) -> float:
    """Of one step."""
    side = build()
    device = next(iter(side.trained.values())).device.type
    with FlopCounterMode(display=False) as counted:
        side.step()
    del side
    _free(device)
    return float(counted.get_total_flops())


def _time(build: Callable[[], Side], repeats: int, device: str) -> tuple[float, float]:
    """Seconds of a step, and the most bytes that the device held."""
    side = build()
    taken = seconds(side.step, repeats, device)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    del side
    _free(device)
    return taken, float(peak)


def _ours(shapes: Shapes, device: str, checkpointing: str, compiled: bool) -> Side:
    settings = {"precision": "bfloat16", "checkpointing": checkpointing, "compile": compiled}
    teacher = sides.drawn_teacher(shapes, device, torch.bfloat16)
    return sides.ours(shapes, make_batch(shapes), teacher, device, **settings)


def _peer(shapes: Shapes, device: str) -> Side:
    teacher = sides.drawn_teacher(shapes, device, torch.bfloat16)
    batch = make_batch(shapes)
    return sides.official(shapes, batch, teacher, device=device, precision="bfloat16")


@torch.inference_mode()
def _serving(
    shapes: Shapes, device: str, product: float, copy: float, repeats: int, tokens: int = 32
) -> dict[str, float]:
    """One picture and its question, answered by a merged model as ``generate`` does it by default."""
    model = build_vlm(shapes, torch.bfloat16, device).eval()
    add_lora(model, shapes)
    merge_lora(model.llm)
    batch = make_batch(replace(shapes, samples=1))
    moved = batch.to(device)
    inputs: dict[str, Any] = {
        "input_ids": moved.tokens_BT,
        "attention_mask": torch.ones_like(moved.tokens_BT),
        "pixel_values": moved.patches_PC,
        "image_grids": moved.grids_N2,
    }

    def answer(length: int) -> float:
        settings = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False}
        return seconds(lambda: model.generate(**inputs, **settings), repeats, device)

    first, whole = answer(1), answer(1 + tokens)
    weights = sum(p.numel() for p in model.llm.parameters())
    if not shapes.tied:  # the table is looked up, not read
        weights -= shapes.vocabulary * shapes.width
    return {
        "first_token_seconds": first,
        "first_token_bound_seconds": prefill_flops(weights, shapes) / product,
        "tokens_per_second": tokens / max(whole - first, 1e-9),
        # A copy reads and writes; decoding only reads.
        "tokens_per_second_bound": copy / (2 * weights),
    }


def prefill_flops(weights: int, shapes: Shapes) -> float:
    """Of a prompt through weights that are read; its last row alone goes through the LM head."""
    head = shapes.vocabulary * shapes.width
    return 2.0 * ((weights - head) * shapes.length + head)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
