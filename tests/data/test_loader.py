"""From a step's number to its batches: the right tokens are learnt, and no history matters."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import HOSTILE, Drawn, mixture, sample, write_rows
from oculi.batch import Batch
from oculi.data.branches import branch_positions, encode_branches
from oculi.data.feeding import make_loader
from oculi.data.loader import Steps, collate, encode_sample
from oculi.data.sample import Message
from oculi.data.source import open_source
from oculi.data.turns import side_by_side
from oculi.errors import DataError
from oculi.recipe import FileSource

CHANNELS = 3 * 4**2


def same(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in ((getattr(one, f.name), getattr(other, f.name)) for f in fields(Batch))
    )


def steps(processor: Any, source: Any = None, **settings: Any) -> Steps:
    defaults = {"seed": 3, "steps": 6, "batch": 5, "pack_length": 90, "micro_rows": 2}
    return Steps(source or mixture(), processor, **{**defaults, **settings})


@pytest.fixture
def processor(make_processor: Callable[..., Any]) -> Any:
    return make_processor()


@pytest.fixture
def batch(processor: Any) -> Batch:
    """Two rows: three samples packed with images and text, and three more."""
    encoded = [(s.id, encode_sample(s, processor)) for s in mixture()]
    return collate([encoded[:3], encoded[3:]], CHANNELS)


def test_long_rows_end_at_a_multiple_of_16(processor: Any) -> None:
    encoded = [(s.id, encode_sample(s, processor)) for s in mixture()]
    tokens = sum(len(e.input_ids) for _, e in encoded)
    assert tokens < 256 and collate([encoded], CHANNELS).tokens_BT.shape[1] == tokens
    repeats = -(-256 // tokens)
    long = collate([encoded * repeats, encoded], CHANNELS)
    assert long.tokens_BT.shape[1] % 16 == 0
    assert 0 <= long.tokens_BT.shape[1] - repeats * tokens < 16
    assert (long.segments_BT[0, repeats * tokens :] == -1).all()
    # Labels point into the flattened rows, so padding moves those of the second row.
    first, alone = collate([encoded * repeats], CHANNELS), collate([encoded], CHANNELS)
    width, few = long.tokens_BT.shape[1], len(first.label_rows_R)
    assert torch.equal(long.label_rows_R[:few], first.label_rows_R)
    assert torch.equal(long.label_rows_R[few:] - width, alone.label_rows_R)


def test_a_step_does_not_depend_on_what_came_before(processor: Any) -> None:
    made = steps(processor, micro_rows=1)
    wanted = [made[n] for n in range(6)]
    for start in (0, 2, 5):
        found = list(make_loader(steps(processor, micro_rows=1), start, workers=0))
        assert len(found) == 6 - start
        for loaded, other in zip(found, wanted[start:], strict=True):
            one = loaded.batches
            assert len(one) == len(other) > 1
            assert all(same(a, b) for a, b in zip(one, other, strict=True))
    assert not same(wanted[0][0], wanted[1][0])


def test_workers_give_the_same_steps_in_the_same_order(processor: Any) -> None:
    made = steps(processor)
    found = list(make_loader(made, 1, workers=2))
    assert len(found) == 5
    for number, loaded in enumerate(found, 1):
        assert all(same(a, b) for a, b in zip(loaded.batches, made[number], strict=True))


def test_a_step_holds_its_samples_of_the_order_once(processor: Any) -> None:
    made = steps(processor)
    seen = [[name for part in made[n] for name in part.sample_ids] for n in range(6)]
    assert all(len(names) == 5 for names in seen)
    flat = [name for names in seen for name in names]
    assert sorted(flat) == sorted([s.id for s in mixture()] * 5)  # 30 positions are five epochs


def test_single_turns_are_drawn_by_position(processor: Any) -> None:
    whole, alone = steps(processor), steps(processor, single_turns=1.0)
    cut = sum(p.tokens for n in range(6) for p in alone[n])
    assert cut < sum(p.tokens for n in range(6) for p in whole[n])
    assert [p.sample_ids for p in alone[3]] == [
        p.sample_ids for p in steps(processor, single_turns=1.0)[3]
    ]
    assert all(
        same(a, b) for a, b in zip(alone[3], steps(processor, single_turns=1.0)[3], strict=True)
    )
    later = steps(processor, single_turns=0.5)
    assert all(
        same(a, b) for a, b in zip(later[2], steps(processor, single_turns=0.5)[2], strict=True)
    )


def test_turns_side_by_side_share_their_pictures(processor: Any) -> None:
    talk = sample(
        "talk", ("#", "#", "\nWhat?"), "a cup", "Which colour?", "dark red", "Why?", "paint",
        images=(Drawn(8, 8, 1), Drawn(12, 4, 2)),
    )  # fmt: skip
    alone = [encode_sample(turn, processor) for turn in side_by_side(talk)]
    together = encode_sample(replace(talk, separate=True), processor)
    assert together.branches is not None
    branches, ids = np.array(together.branches), np.array(together.input_ids)
    labels, places = np.array(together.labels), branch_positions(together.branches)
    for number, turn in enumerate(alone, 1):
        seen = (branches == 0) | (branches == number)
        assert ids[seen].tolist() == turn.input_ids and labels[seen].tolist() == turn.labels
        assert places[seen].tolist() == list(range(len(turn.input_ids)))
    assert together.grids == alone[0].grids and together.image_spans == alone[0].image_spans
    batch = collate([[("talk", together)], [("text", alone[1])]], CHANNELS)
    assert batch.branches_BT is not None and not batch.branches_BT[1].any()
    assert batch.branches_BT[0, : len(branches)].tolist() == branches.tolist()
    assert collate([[("text", alone[1])]], CHANNELS).branches_BT is None


def test_turns_that_do_not_begin_alike_cannot_share(processor: Any) -> None:
    turns = [[("user", ["Hi", Drawn(8, 8).load()]), ("assistant", ["Hello"])] for _ in range(2)]
    turns[1][0][1][0] = "Ho"
    with pytest.raises(ValueError, match="begin alike"):
        encode_branches(processor, turns)


def test_turns_side_by_side_are_measured_as_they_are_encoded(processor: Any) -> None:
    """So ranks that measure, and the one that decodes, make the same rows."""
    talk = ("#", "\nWhat?"), "a cup", "Which colour?", "red"
    pictures = [Drawn(8, 4 * n) for n in range(1, 6)]
    source = [sample(f"{p.height}", *talk, images=(p,)) for p in pictures] + mixture()
    settings = {"separate_turns": 0.7, "plain_turns": 0.3, "micro_rows": 1}
    alone = steps(processor, source, **settings)
    ranks = [steps(processor, source, **settings, rank=rank, ranks=2) for rank in (0, 1)]
    branched = 0
    for n in range(6):
        rows = [batch.sample_ids for batch in alone[n]]
        assert [batch.sample_ids for batch in ranks[0][n]] == rows[::2]
        assert [batch.sample_ids for batch in ranks[1][n]] == rows[1::2]
        branched += sum(batch.branches_BT is not None for batch in alone[n])
    assert branched > 1


def test_crops_change_pixels_alone_and_are_drawn_by_position(processor: Any) -> None:
    whole, cut = steps(processor), steps(processor, crop=0.4)
    changed = 0
    for n in range(6):
        for one, other in zip(whole[n], cut[n], strict=True):
            assert torch.equal(one.tokens_BT, other.tokens_BT)
            assert torch.equal(one.grids_N2, other.grids_N2)
            changed += not torch.equal(one.patches_PC, other.patches_PC)
    assert changed > 3
    again = steps(processor, crop=0.4)
    assert all(same(a, b) for a, b in zip(cut[4], again[4], strict=True))


def test_rows_and_micro_batches_keep_their_limits(processor: Any) -> None:
    parts = steps(processor, batch=6)[0]
    assert all(len(part.tokens_BT) <= 2 for part in parts)
    lengths = [len(encode_sample(s, processor).input_ids) for s in mixture()]
    assert max(part.tokens_BT.shape[1] for part in parts) <= max(90, *lengths)
    assert sum(part.tokens for part in parts) == sum(lengths)
    assert sum(part.samples for part in parts) == 6


def test_label_rows_point_at_what_predicts_the_answer(batch: Batch, processor: Any) -> None:
    """Decoded: per sample the answers and the ends of their turns, nothing of the prompts."""
    width = batch.tokens_BT.shape[1]
    tokens, segments = batch.tokens_BT.flatten(), batch.segments_BT.flatten()
    rows = batch.label_rows_R
    assert torch.equal(tokens[rows + 1], batch.targets_R)
    assert torch.equal(segments[rows + 1], segments[rows])
    assert torch.equal((rows + 1) // width, rows // width)
    found: dict[tuple[int, int], list[int]] = {}
    for row, target in zip(rows.tolist(), batch.targets_R.tolist(), strict=True):
        found.setdefault((row // width, int(segments[row])), []).append(target)
    texts = [processor.tokenizer.decode(ids) for ids in found.values()]
    assert texts == [
        "red<|im_end|>",
        "There are three squares.<|im_end|>",
        "size<|im_end|>colour as well<|im_end|>",
        "no<|im_end|>",
        "The circle is red.<|im_end|>",
        "Hello<|im_end|>a square<|im_end|>",
    ]


def test_prompt_is_what_comes_before_the_first_answer(batch: Batch, processor: Any) -> None:
    text = []
    for row in range(2):
        for segment in range(3):
            here = (batch.segments_BT[row] == segment) & batch.prompt_BT[row]
            ids = batch.tokens_BT[row][here & (batch.images_BT[row] < 0)]
            text.append(processor.tokenizer.decode(ids.tolist()))
            positions = batch.positions_BT[row][here]
            assert positions.tolist() == list(range(len(positions)))
    end = "<|im_end|>\n<|im_start|>assistant\n"
    assert text[1] == "<|im_start|>user\nHow many squares are there?" + end
    assert text[2] == "<|im_start|>user\n and  differ in?" + end
    assert text[5] == "<|im_start|>user\nHi" + end  # the later question is no prompt
    assert not (batch.prompt_BT & (batch.segments_BT < 0)).any()


def test_images_are_numbered_over_the_whole_batch(batch: Batch, processor: Any) -> None:
    found = batch.images_BT.flatten()
    ids = found[found >= 0]
    assert ids.unique_consecutive().tolist() == list(range(6))
    assert torch.equal(ids.bincount(), batch.grids_N2.prod(-1))
    assert batch.grids_N2.tolist() == [[2, 2], [1, 3], [4, 2], [1, 4], [1, 1], [3, 3]]
    assert (batch.tokens_BT == processor.image_token_id).equal(batch.images_BT >= 0)
    assert batch.vision_tokens == len(batch.patches_PC) == 4 + 3 + 8 + 4 + 1 + 9


def test_patches_stand_in_the_order_of_their_positions(batch: Batch, processor: Any) -> None:
    pictures = [image.load() for s in mixture() for image in s.images]
    wanted = np.concatenate([processor.image_processor.patches(p)[0] for p in pictures])
    assert batch.patches_PC.dtype == torch.uint8
    assert np.array_equal(batch.patches_PC.numpy(), wanted)


def test_positions_restart_in_every_sample(batch: Batch) -> None:
    for row in range(2):
        for segment in range(3):
            found = batch.positions_BT[row][batch.segments_BT[row] == segment]
            assert found.tolist() == list(range(len(found)))
    assert (batch.positions_BT[batch.segments_BT < 0] == 0).all()


def test_a_batch_of_text_alone(processor: Any) -> None:
    encoded = [(s.id, encode_sample(s, processor)) for s in mixture() if not s.images]
    batch = collate([encoded], CHANNELS)
    assert batch.patches_PC.shape == (0, CHANNELS) and batch.grids_N2.shape == (0, 2)
    assert batch.vision_tokens == 0 and batch.samples == 2
    assert batch.model_inputs()["pixel_values"] is None


def test_hostile_text_is_text(processor: Any) -> None:
    made = sample("x", ("#", HOSTILE), f"no, {HOSTILE}", images=(Drawn(8, 8),))
    batch = collate([[("x", encode_sample(made, processor))]], CHANNELS)
    controls = set(processor.tokenizer.added_tokens_decoder)
    tokens = batch.tokens_BT[0]
    # Two turns opened and closed, and the picture: nothing that the text could have added.
    assert sum(int(t) in controls for t in tokens) == 4 + 4
    assert processor.tokenizer.decode(batch.targets_R.tolist()) == f"no, {HOSTILE}<|im_end|>"


def test_a_sample_without_an_answer_is_named(processor: Any) -> None:
    made = replace(mixture()[1], id="bad\x1b[2J")
    made = replace(made, messages=made.messages[:1])
    with pytest.raises(DataError, match="no answer tokens") as caught:
        encode_sample(made, processor)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_left_out_and_named(
    tmp_path: Path, processor: Any, workers: int
) -> None:
    """The others of its step are as if it had never been there."""
    path = write_rows(tmp_path)
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").write_bytes(whole[: len(whole) // 2])
    made = steps(processor, open_source(FileSource(path=str(path))), batch=8)
    found = list(make_loader(made, 0, workers))
    assert len(found) == 6
    for step, loaded in enumerate(found):
        (bad,) = loaded.bad
        assert bad.id == "row-0" and step * 8 <= bad.position < step * 8 + 8
        assert bad.reason == 'image "0.png" is truncated or damaged'
        assert bad.source.endswith("rows.json:1") or "rows.json" in bad.source
        ids = [name for batch in loaded.batches for name in batch.sample_ids]
        assert sorted(ids) == [f"row-{i}" for i in range(1, 8)]


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_conversation_that_the_template_refuses_is_left_out_and_named(
    make_processor: Callable[..., Any],
    make_tokenizer: Callable[..., Any],
    ranks: int,
    separate: bool,
) -> None:
    tokenizer = make_tokenizer()
    refusal = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    tokenizer.chat_template = refusal + tokenizer.chat_template
    told = mixture()[0]
    messages = (Message("system", ("Be brief.",)), *told.messages)
    source = [replace(told, id="told", messages=messages, separate=separate), *mixture()[1:]]
    made = steps(make_processor(tokenizer), source, batch=6, ranks=ranks)
    loaded = made.load(0)
    (bad,) = loaded.bad
    assert (bad.id, bad.source) == ("told", "made:one") and "no system" in bad.reason
    assert all("told" not in part.sample_ids for part in loaded.batches)


def test_a_step_may_be_bad_altogether(processor: Any) -> None:
    silent = [replace(one, messages=one.messages[:1]) for one in mixture()]
    loaded = steps(processor, silent).load(0)
    assert loaded.batches == []
    assert [bad.position for bad in loaded.bad] == list(range(5))


def test_a_bug_is_no_mistake_in_the_input(processor: Any) -> None:
    class Broken(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        list(make_loader(steps(processor, Broken(mixture())), 0, workers=0))


def test_nor_is_one_in_the_encoding(processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken for a bad sample, it would leave out every row, and name the row for it."""

    def broken(text: str) -> list[int]:
        raise ValueError("a bug")

    monkeypatch.setattr(processor.chat, "encode_text", broken)
    made = steps(processor, mixture())
    for work in (made.load, lambda step: encode_sample(mixture()[0], processor)):
        with pytest.raises(ValueError, match="a bug"):
            work(0)
