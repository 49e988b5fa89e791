"""Trains the tiny Qwen2 language model and its tokenizer on the testbed's language.

The loss is mostly on replies; a little is on all tokens, which teaches the words themselves. Two
things let the model learn to look words up again, on which all reading rests. Its embeddings start
larger and move slower than usual: tied and at the usual scale, those of words that can stand for
one another (the colours) end up nearly the same before any attention can use them. And training
begins with a primer of scenes of one object and lists to copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from oculi.testbed import language, tokenizer
from oculi.testbed.build_common import (
    Optimisers,
    Plan,
    Progress,
    batches,
    cast,
    compiled,
    save,
    setup,
)
from oculi.testbed.vocabulary import Dice

# Here a batch is a number of tokens, padding included.
PLAN = Plan(steps=4800, batch=4096, muon_lr=0.02, adam_lr=5e-3, warmup=40, save_every=400)
AGAIN = Plan(steps=3000, batch=4096, muon_lr=0.01, adam_lr=2e-3, warmup=20, seed=1, save_every=400)
THIRD = Plan(steps=2200, batch=4096, muon_lr=0.01, adam_lr=2e-3, warmup=20, seed=2, save_every=400)
FOURTH = replace(THIRD, seed=3)
QUICK = Plan(steps=3, batch=1024, muon_lr=0.02, adam_lr=1.5e-3, warmup=1, report_every=1)

CONTEXT = 0.1  # weight of a token that is not part of a reply
EMBEDDING = 0.06  # standard deviation at the start; transformers' default is 0.02
POOL = 1024  # dialogues that are sorted by length together
Texts = Callable[[str, int], list[language.Turn]]
# What is read until which step. Copying is mastered first, to a loss of 0.2 a token.
LESSONS: tuple[tuple[int, Texts], ...] = ((350, language.copying), (550, language.primer))
LESSONS_AGAIN = ((350, language.lookup), (600, language.lookups))
LESSONS_THIRD = ((200, language.chosen), (1200, language.choosing))
LESSONS_FOURTH = ((150, language.chosen), (1200, language.choosing))
SYSTEM = "You are a helpful assistant."
Tokens = tuple[list[int], list[float]]  # ids, and what each counts in the loss (0: no reply)


def new_model(vocabulary: int, pad: int, end: int) -> Any:
    """Return an untrained Qwen2: width 192, 6 blocks, tied embeddings."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=pad,
        eos_token_id=end,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    model.set_attn_implementation("eager")  # on a CPU faster than SDPA, whose backward is slow
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=EMBEDDING)
    return model


def chat(prompt: str) -> str:
    """Return a user's message as the chat template writes it, up to where the reply begins."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def encode_turns(talks: Sequence[Sequence[language.Turn]], encode: Any) -> list[Tokens]:
    """Return ids and weights of dialogues; one in sixteen begins with a system prompt.

    A reply of n tokens weighs sqrt(n) in all: by tokens alone a letter or a yes would hardly count
    beside a list, and by replies alone a list hardly beside them.
    """
    pieces = []
    for number, turns in enumerate(talks):
        lead = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n" if number % 16 == 0 else ""
        for turn in turns:
            pieces += [lead + chat(turn.prompt), turn.answer + "<|im_end|>\n"]
            lead = ""
    encoded = iter(encode.encode_batch(pieces, add_special_tokens=False))
    made = []
    for turns in talks:
        ids: list[int] = []
        weights: list[float] = []
        for _ in turns:
            prompt, reply = next(encoded).ids, next(encoded).ids
            ids += prompt + reply
            weights += [0.0] * len(prompt) + [len(reply) ** -0.5] * len(reply)
        made.append((ids, weights))
    return made


def stream(plan: Plan, encode: Any, lessons: Sequence[tuple[int, Texts]]) -> Iterator[list[Tokens]]:
    """Yield batches of about `plan.batch` tokens, alike in length, without end: lessons, then all."""
    number, step = plan.seed * 10**9, 0
    while True:
        source = next((texts for end, texts in lessons if step < end), language.dialogue)
        talks = [source("train", number + row) for row in range(POOL)]
        pool = encode_turns(talks, encode)
        number += POOL
        pool.sort(key=lambda pair: len(pair[0]))
        cut: list[list[Tokens]] = [[]]
        for pair in pool:
            if cut[-1] and (len(cut[-1]) + 1) * len(pair[0]) > plan.batch:
                cut.append([])
            cut[-1].append(pair)
        step += len(cut)
        yield from Dice(98, number).shuffled(cut)


def loss(model: Any, batch: Sequence[Tokens], pad: int) -> tuple[torch.Tensor, float]:
    """Return the weighted loss of a batch, and the loss of its replies alone for the log."""
    length = max(len(ids) for ids, _ in batch)
    ids_BT = torch.full((len(batch), length), pad)
    weights_BT = torch.zeros(len(batch), length)
    for row, (ids, weights) in enumerate(batch):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        weights_BT[row, : len(ids)] = torch.tensor(weights)
    logits = model(input_ids=ids_BT).logits[:, :-1]  # padding is on the right: no mask is needed
    each = F.cross_entropy(logits.flatten(0, 1).float(), ids_BT[:, 1:].flatten(), reduction="none")
    real = (ids_BT[:, 1:] != pad).flatten()
    weight = weights_BT[:, 1:].flatten()
    replies = (weight * each).sum() / weight.sum()
    return replies + CONTEXT * each[real & (weight == 0)].mean(), float(replies.detach())


@torch.no_grad()
def exact(model: Any, tok: Any, turns: Sequence[language.Turn]) -> list[bool]:
    """Return for each exchange whether the greedy reply, with its end, is the right one.

    A reply is checked in one pass: greedy decoding gives it if, and only if, each of its tokens
    is the most likely one after the right tokens before it.
    """
    right = []
    for numbers in batches(len(turns), 64):
        some = [turns[number] for number in numbers]
        prompts = tok([chat(turn.prompt) for turn in some], add_special_tokens=False).input_ids
        replies = tok([turn.answer + tokenizer.END for turn in some]).input_ids
        length = max(len(p) + len(r) for p, r in zip(prompts, replies, strict=True))
        ids = torch.full((len(some), length), tok.pad_token_id)
        for row, (p, r) in enumerate(zip(prompts, replies, strict=True)):
            ids[row, : len(p) + len(r)] = torch.tensor(p + r)
        guess = model(input_ids=ids).logits.argmax(-1)
        for row, (p, r) in enumerate(zip(prompts, replies, strict=True)):
            said = guess[row, len(p) - 1 : len(p) + len(r) - 1].tolist()
            right.append(said == r)
    return right


def evaluate(model: Any, tok: Any, n: int) -> dict[str, dict[str, float]]:
    """Return per cent exactly right by kind on `n` test texts each of levels, drills and skills."""
    model.eval()
    sets = {
        f"level {level}": [language.reading(level, "test", number) for number in range(n)]
        for level in language.LEVELS
    }
    sets["drills"] = [language.drill("test", number, 1)[0] for number in range(n)]
    sets["skills"] = [language.Turn(*language.skills("test", number)) for number in range(n)]
    scores: dict[str, dict[str, float]] = {}
    for name, turns in sets.items():
        right = exact(model, tok, turns)
        by_kind: dict[str, list[bool]] = {"all": right}
        for turn, hit in zip(turns, right, strict=True):
            by_kind.setdefault(turn.kind, []).append(hit)
        scores[name] = {k: round(100 * sum(hits) / len(hits), 1) for k, hits in by_kind.items()}
    model.train()
    return scores


def train(
    model: Any, tok: Any, plan: Plan, lessons: Sequence[tuple[int, Texts]], progress: Progress,
    folder: Path, compile: bool = True,
) -> int:  # fmt: skip
    """Train through the lessons and the mixture, on one schedule; return how many dialogues it took."""
    optimisers = Optimisers.of_layers(model, None, plan)
    source, samples = stream(plan, tok.backend_tokenizer, lessons), 0
    forward = compiled(model) if compile else model
    for step in range(plan.steps):
        batch = next(source)
        samples += len(batch)
        with torch.autocast("cpu", torch.bfloat16):
            total, replies = loss(forward, batch, tok.pad_token_id)
        total.backward()
        optimisers.step(step)
        progress.add(step, {"reply": replies, "all": total.item()})
        if plan.save_every and (step + 1) % plan.save_every == 0 and step + 1 < plan.steps:
            progress.say(str(evaluate(model, tok, 210)))
            save(model, folder)
            tok.save_pretrained(folder)
    return samples


def build(folder: Path, quick: bool, log: Path | None = None, plan: Plan = PLAN) -> dict[str, Any]:
    """Train tokenizer and LLM, write them to `folder`, return what the manifest says about it."""
    rounds = [
        (plan, LESSONS), (AGAIN, LESSONS_AGAIN), (THIRD, LESSONS_THIRD), (FOURTH, LESSONS_FOURTH),
    ]  # fmt: skip
    if quick:
        rounds = [(replace(QUICK, seed=plan.seed), lessons) for _, lessons in rounds]
    setup(plan.seed)
    tok = tokenizer.train()
    model = new_model(len(tok), tok.pad_token_id, tok.eos_token_id)
    parameters = sum(weight.numel() for weight in model.parameters())
    samples = 0
    for number, (each, lessons) in enumerate(rounds):
        progress = Progress("llm", each, log)
        progress.say(
            f"{parameters / 1e6:.2f}M parameters, {each.steps} steps of {each.batch} tokens"
        )
        setup(plan.seed + number)  # a round can be taken up from what the one before has saved
        samples += train(model, tok, each, lessons, progress, folder, compile=not quick)
        save(model, folder)
        tok.save_pretrained(folder)
        cast(model, torch.bfloat16)  # go on with, and score, what is shipped
        cast(model, torch.float32)
    scores = evaluate(model, tok, 21 if quick else 2100)
    progress.say(str(scores))
    return {
        "parameters": parameters,
        "steps": sum(each.steps for each, _ in rounds),
        "samples": samples,
        "seed": plan.seed,
        "metrics": scores,
    }
