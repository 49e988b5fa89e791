"""An exported int8 model beside the same model through transformers in float32, in one run.

Both sides answer the same questions about the same pictures, one at a time, by turns, with as many new
tokens; either is given the picture as pixels and the question as text. The large model has random
weights: its times do not depend on them. Then a compressed model beside an uncompressed one of the same
size, both exported (``edge_prefill.py``).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, Qwen2Config

from oculi import load as load_torch
from oculi.bench import edge_prefill
from oculi.bench.goals import Goal, table
from oculi.data.source import pieces
from oculi.edge import Decoding, Runner, load
from oculi.edge.measure import Measured, ask, summary
from oculi.eval.asked import Question
from oculi.eval.evaluate import answer as answer_torch
from oculi.eval.evaluate import encode_question
from oculi.eval.score import exact
from oculi.eval.tasks import open_task
from oculi.export.onnx.write import export_onnx
from oculi.model import OculiConfig, OculiForConditionalGeneration, OculiProcessor
from oculi.training.build import build_processor

NEW_TOKENS = 16
SPEED, DROP = 3.0, 1.0  # times as many pictures a second; points of a score
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Speed:
    """One model on both sides; seconds.

    Attributes:
        name: of the model. parameters: millions. torch: median of an answer through transformers.
        edge: the exported model, int8.
    """

    name: str
    parameters: float
    torch: float
    edge: Measured

    @property
    def times(self) -> float:
        """Pictures a second of the exported model by those of transformers."""
        return self.torch / self.edge.answer


@dataclass(frozen=True)
class Scores:
    """Answers to a task's questions.

    Attributes:
        task: its name. questions: asked. same: of them, those whose greedy ids in float32 are torch's.
        torch, int8: per cent exactly right.
    """

    task: str
    questions: int
    same: int
    torch: float
    int8: float


@dataclass(frozen=True)
class Report:
    """What was measured."""

    threads: int
    speeds: list[Speed]
    scores: Scores | None
    prefills: list[edge_prefill.Pair] = field(default_factory=list)

    def goals(self) -> list[Goal]:
        """Agreement is a gate; speed depends on the clock, and is advice."""
        found = [
            Goal(
                f"{one.name}: pictures a second / transformers", one.times, SPEED, True, advice=True
            )
            for one in self.speeds
        ]
        if self.scores is not None:
            other = self.scores.questions - self.scores.same
            lost = self.scores.torch - self.scores.int8
            found.append(Goal("greedy answers in float32 that are not torch's", other, 0))
            found.append(Goal("points lost by int8", lost, DROP))
        return [*found, *(goal for pair in self.prefills for goal in pair.goals())]

    @property
    def ok(self) -> bool:
        """Whether all is met that does not depend on the clock."""
        return all(goal.met or goal.advice for goal in self.goals())

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "threads": self.threads, "new_tokens": NEW_TOKENS,
            "speeds": [{**asdict(one), "times": one.times} for one in self.speeds],
            "scores": asdict(self.scores) if self.scores else None,
            "prefills": [pair.to_json() for pair in self.prefills],
            "goals": [goal.to_dict() for goal in self.goals()],
        }  # fmt: skip

    def lines(self) -> list[str]:
        """For the terminal and the page."""
        heads = [
            f"{NEW_TOKENS} new tokens, batch 1, {self.threads} threads", "M parameters",
            "transformers fp32, pictures/s", "int8, pictures/s", "times", "first token p50, ms",
            "p95, ms", "a token, ms",
        ]  # fmt: skip
        rows = [
            [
                one.name, f"{one.parameters:.1f}", f"{1 / one.torch:.2f}",
                f"{one.edge.answers_per_second:.2f}", f"{one.times:.2f}",
                f"{1e3 * one.edge.first_p50:.1f}", f"{1e3 * one.edge.first_p95:.1f}",
                f"{1e3 * one.edge.step:.2f}",
            ]
            for one in self.speeds
        ]  # fmt: skip
        lines = table(heads, rows)
        if self.scores is not None:
            s = self.scores
            lines += [
                "",
                f"{s.task}, {s.questions} questions: {s.same} greedy answers in float32 have torch's "
                f"ids; exactly right {s.torch:.1f} % (torch), {s.int8:.1f} % (int8).",
            ]
        if self.prefills:
            lines += ["", *edge_prefill.lines(self.prefills)]
        return [*lines, "", *(f"- {goal.line()}" for goal in self.goals())]


def bench_edge(
    checkpoint: Path | None,
    task: str,
    questions: int,
    repeats: int,
    quick: bool,
    progress: Progress,
) -> Report:
    """Measure both sides.

    Args:
        checkpoint: trained, for the scores and as the tiny model; None: random weights, no scores.
        task, questions: what is asked for the scores, and how much of it.
        repeats: answers that are timed on each side.
        quick: the large model is a small one, and prefills of small ones alone are compared.

    Raises:
        CheckpointError, DataError: the checkpoint or the task is none.
    """
    threads = torch.get_num_threads()
    asked = open_task(task).load(max(questions, repeats))
    sizes = [edge_prefill.TINY] if quick else [edge_prefill.TINY, edge_prefill.LARGE]
    timed = (2 + 2 * len(sizes)) * (repeats + 1)
    total, done = timed + (questions if checkpoint else 0), [0]

    def step() -> None:
        done[0] += 1
        progress(done[0], total)

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if checkpoint is not None:
            model, processor = load_torch(checkpoint)
        else:
            model, processor = random_model(TINY)
        tiny = _speed("tiny", model, processor, asked[:repeats], place, threads, step)
        scores = None
        if checkpoint is not None:
            exported = export_onnx(model, processor, place / "float32", "float32")
            exact_side, int8_side = load(exported, threads), load(place / "tiny", threads)
            sides = (model, processor, exact_side, int8_side)
            scores = _scores(task, asked[:questions], *sides, step)
        big, cutter = random_model(TINY if quick else LARGE)
        large = _speed("large", big, cutter, asked[:repeats], place, threads, step)
        del big
        talks = [_conversation(question) for question in asked[:repeats]]
        prefills = [
            edge_prefill.compare_prefill(size, talks, place, threads, step) for size in sizes
        ]
    return Report(threads, [tiny, large], scores, prefills)


# The testbed's LLM, and one that is read from memory for every token.
TINY: dict[str, int] = {}
LARGE = edge_prefill.LARGE.llm


def random_model(sizes: dict[str, int]) -> tuple[OculiForConditionalGeneration, OculiProcessor]:
    """``vora_tiny``'s model without training, its LLM of the given sizes."""
    from oculi.recipes.tiny import vora_tiny

    processor = build_processor(vora_tiny().model)
    base: dict[str, Any] = {
        "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024,
    }  # fmt: skip
    llm = Qwen2Config(
        **{**base, **sizes}, max_position_embeddings=4096, tie_word_embeddings=True,
        eos_token_id=processor.tokenizer.eos_token_id, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    config = OculiConfig(
        text_config=llm,
        vision_config={"kind": "patch_embed", "patch_size": 14, "width": 192, "grid": [6, 6]},
        image_token_id=processor.image_token_id,
    )
    return OculiForConditionalGeneration(config).eval(), processor


def _speed(
    name: str,
    model: OculiForConditionalGeneration,
    processor: OculiProcessor,
    asked: list[Question],
    folder: Path,
    threads: int,
    step: Callable[[], None],
) -> Speed:
    """Both sides by turns on the same questions; the first one warms up."""
    runner = load(export_onnx(model, processor, folder / name, name, int8=True), threads)
    seconds, answers = [], []
    for i, question in enumerate([asked[0], *asked]):
        talk = _conversation(question)  # drawing or opening the picture is no part of an answer
        began = time.perf_counter()
        _answer_torch(model, processor, talk)
        taken = time.perf_counter() - began
        once = ask(runner, talk, NEW_TOKENS)
        if i:
            seconds.append(taken)
            answers.append(once)
        step()
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return Speed(name, count, float(np.median(seconds)), summary(runner, answers))


def _conversation(question: Question) -> Any:
    return pieces(question.messages, [image.load() for image in question.images])


def _answer_torch(
    model: OculiForConditionalGeneration, processor: OculiProcessor, talk: Any
) -> None:
    prompt = processor.encode(talk, add_generation_prompt=True)
    config = GenerationConfig(
        do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS,
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )  # fmt: skip
    answer_torch(model, processor, [prompt], NEW_TOKENS, config)


def _scores(
    task: str,
    asked: list[Question],
    model: OculiForConditionalGeneration,
    processor: OculiProcessor,
    exact_side: Runner,
    int8_side: Runner,
    step: Callable[[], None],
) -> Scores:
    decoding = Decoding(max_new_tokens=64)
    right = {"torch": 0, "int8": 0}
    same = 0
    for question in asked:
        ids = _greedy_ids(model, processor, question, decoding.max_new_tokens)
        talk = _conversation(question)
        found = list(exact_side.stream(exact_side.prompt(talk), decoding))
        same += found == ids
        text = processor.tokenizer.decode(ids, skip_special_tokens=True)
        right["torch"] += exact(text, question.answer)
        right["int8"] += exact(int8_side.answer(talk, decoding), question.answer)
        step()
    score = {side: 100 * count / len(asked) for side, count in right.items()}
    return Scores(task, len(asked), same, score["torch"], score["int8"])


@torch.inference_mode()
def _greedy_ids(
    model: OculiForConditionalGeneration, processor: OculiProcessor, question: Question, length: int
) -> list[int]:
    batch = processor.collate([encode_question(question, processor, blind=False)])
    end = model.generation_config.eos_token_id or processor.tokenizer.eos_token_id
    ends = {end} if isinstance(end, int) else set(end)
    config = GenerationConfig(
        do_sample=False, max_new_tokens=length, eos_token_id=sorted(ends),
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=model.generation_config.suppress_tokens,
    )  # fmt: skip
    output = model.generate(**batch, generation_config=config)
    ids: list[int] = output[0, batch["input_ids"].shape[1] :].tolist()
    return ids[: next((i for i, one in enumerate(ids) if one in ends), len(ids))]
