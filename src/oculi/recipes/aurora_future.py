"""What AuroraEdge-V leaves as future work (section 7): a compressor that pictures teach, and video.

    oculi train aurora_reconstruct --llm Qwen/Qwen2.5-1.5B --teacher DIR --data captions.jsonl --out RUN
    oculi train aurora_reconstruct_tiny --out RUN
    oculi train aurora_video --llm Qwen/Qwen2.5-1.5B --teacher DIR --data video=videos.json --out RUN

The third of that section, more compression, is ``aurora_16`` in ``aurora.py``. The paper describes both
in a sentence or two, so all but the idea is ours; nothing was trained at full size. docs/aurora.md.
"""

from __future__ import annotations

from oculi.recipe import FileSource, LmSpec, Recipe, ReconstructSpec
from oculi.recipes.aurora import WARMUP_RATIO, aurora, aurora_16
from oculi.recipes.tiny_aurora import aurora_tiny

SD3 = "stabilityai/stable-diffusion-3-medium-diffusers"

VIDEOS = 178_510  # of LLaVA-Video-178K (2410.02713), a conversation each
PICTURES = (
    50_000  # conversations about one picture between them, so that single pictures stay known
)
FRAMES = 16
VIDEO_BATCH = 32


def _restored(plain: Recipe, name: str, summary: str, term: ReconstructSpec) -> Recipe:
    """A recipe whose compressor also learns from what can be restored of its tokens, in every stage.

    The denoiser stays as it is and the Epigone alone is trained beside it: a denoiser that learns could
    make up for what the tokens lack.
    """
    stages = tuple(
        stage.model_copy(
            update={
                "objectives": (LmSpec(weight=1.0), term),
                "trainable": {**stage.trainable, "objectives.reconstruct.epigone.*": None},
            }
        )
        for stage in plain.stages
    )
    return plain.model_copy(update={"name": name, "summary": summary, "stages": stages})


def aurora_reconstruct() -> Recipe:
    """``aurora`` with the losses of answers and of reconstruction summed, as VLSA sums them.

    Pictures are restored at 256 pixels a side, which is what 256 patches of 16 hold.
    """
    term = ReconstructSpec(weight=1.0, denoiser=SD3, vae=SD3, size=256, checkpointing=True)
    summary = "aurora whose compressor also learns by restoring pictures from its 64 tokens"
    return _restored(aurora(), "aurora_reconstruct", summary, term)


def aurora_reconstruct_tiny() -> Recipe:
    """``aurora_tiny`` beside it: pictures are restored from 9 tokens by the testbed's SD3."""
    term = ReconstructSpec(weight=1.0, denoiser="testbed:sd3", vae="testbed:vae", size=96, rank=64)
    summary = "aurora_tiny whose compressor also learns by restoring pictures from its 9 tokens"
    return _restored(aurora_tiny(), "aurora_reconstruct_tiny", summary, term)


def aurora_video() -> Recipe:
    """``aurora_16`` with a stage of videos: a conversation about several frames, 16 tokens each.

    A row of data is VoRA's: ``frames``, a list of pictures, and ``conversations`` with ``<video>`` where
    all of them stand. ``FRAMES`` frames are 256 tokens of the LLM and 4,096 of the fusion, so a
    packed row holds one video. Rates are those of the second stage, because reading frames in order is
    new to the LLM; the tower, which sees single pictures as before, stays frozen.
    """
    plain = aurora_16()
    _, llm, _ = plain.stages
    steps = (VIDEOS + PICTURES) // VIDEO_BATCH
    video = llm.model_copy(
        update={
            "name": "video",
            "data": (
                FileSource(path="data/llava-video-178k.jsonl"),
                FileSource(path="data/detailed-vqa.jsonl", weight=0.5),
            ),
            "steps": steps,
            "batch": VIDEO_BATCH,
            "pack_length": 2 * FRAMES * 16,
            "micro_rows": 4,
            "warmup_steps": round(WARMUP_RATIO * steps),
        }
    )
    return plain.model_copy(
        update={
            "name": "aurora_video",
            "summary": "aurora_16 that goes on to videos: several frames a conversation, 16 tokens each",
            "stages": (*plain.stages, video),
        }
    )
