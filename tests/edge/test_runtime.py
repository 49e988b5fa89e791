"""An exported model beside the torch model: the same logits, the same answers, without torch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import HOSTILE
from oculi.edge import Decoding, load
from oculi.edge.measure import measure
from oculi.edge.runtime import Runner
from oculi.errors import CheckpointError, DataError

pytestmark = pytest.mark.usefixtures("no_grad")
SIZES = ((8, 8), (16, 12), (5, 40), (13, 9))


@pytest.fixture
def runner(exported: Any) -> Runner:
    return load(exported.folder, threads=1)


def talks(make_picture: Any) -> list[list[tuple[str, list[Any]]]]:
    """One picture of several sizes, two pictures, none, a conversation, hostile text."""
    one = [[("user", [make_picture(*size, seed=i), "\nred?"])] for i, size in enumerate(SIZES)]
    two = [("user", ["a ", make_picture(8, 12), make_picture(12, 4, seed=2), " differ?"])]
    text = [("user", [HOSTILE])]
    later = [
        ("user", [make_picture(12, 12, seed=5), "what"]), ("assistant", ["a circle"]),
        ("user", ["and its colour"]),
    ]  # fmt: skip
    return [*one, two, text, later]


def greedy(exported: Any, talk: Any, count: int) -> list[int]:
    """Ids that ``generate`` of the torch model gives, without the one that ends them."""
    encoded = exported.processor.encode(talk, add_generation_prompt=True)
    batch = exported.processor.collate([encoded])
    end = exported.processor.tokenizer.eos_token_id
    output = exported.model.generate(
        **batch, do_sample=False, max_new_tokens=count, eos_token_id=end, pad_token_id=0,
        suppress_tokens=exported.model.generation_config.suppress_tokens,
    )  # fmt: skip
    ids: list[int] = output[0, batch["input_ids"].shape[1] :].tolist()
    return ids[: ids.index(end)] if end in ids else ids


def test_prompts_and_greedy_answers_are_those_of_torch(
    exported: Any, runner: Runner, make_picture: Any
) -> None:
    for talk in talks(make_picture):
        encoded = exported.processor.encode(talk, add_generation_prompt=True)
        prompt = runner.prompt(talk)
        assert prompt.ids == encoded.input_ids and prompt.spans == encoded.image_spans
        assert prompt.length == encoded.prompt_length
        found = list(runner.stream(prompt, Decoding(max_new_tokens=12)))
        assert found == greedy(exported, talk, 12)


def test_logits_of_the_prompt_are_those_of_torch(
    exported: Any, runner: Runner, make_picture: Any
) -> None:
    for talk in talks(make_picture):
        prompt = runner.prompt(talk)
        state = runner._begin(prompt)
        logits = runner._run(runner._decoder, ["logits"], state)[0]
        batch = exported.processor.collate([exported.processor.encode(talk, True)])
        wanted = exported.model(**batch).logits[:, -1].numpy()
        assert logits.shape == wanted.shape  # of the last position alone
        assert np.abs(logits - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_the_mask_of_pictures_travels(patches: Any, make_picture: Any) -> None:
    """With pictures taken for text, the logits are other ones: the policy is in the graph."""
    runner = load(patches.folder, threads=1)
    state = runner._begin(runner.prompt([("user", [make_picture(16, 16), "red?"])]))
    seen = runner._run(runner._decoder, ["logits"], state)[0]
    state["image_ids"][:] = -1
    blind = runner._run(runner._decoder, ["logits"], state)[0]
    assert np.abs(seen - blind).max() > 1e-2


def test_text_reads_the_uncompressed_tokens(fused: Any, make_picture: Any) -> None:
    """Fusion is in the graph: other patches and the same compressed tokens give other logits."""
    runner = load(fused.folder, threads=1)
    prompt = runner.prompt([("user", ["a", make_picture(8, 16), "red?"])])
    assert [len(prompt.seen[name][0]) for name in ("tokens", "whole")] == [4, 8]
    state = runner._begin(prompt)
    read = runner._run(runner._decoder, ["logits"], state)[0]
    state["whole"] = state["whole"][::-1]
    other = runner._run(runner._decoder, ["logits"], state)[0]
    assert np.abs(read - other).max() > 1e-2


def test_sampling_follows_its_seed(runner: Runner, make_picture: Any) -> None:
    prompt = runner.prompt([("user", [make_picture(8, 8), "what?"])])
    drawn = [
        list(runner.stream(prompt, Decoding(16, temperature=2.0, top_p=0.95, seed=seed)))
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    likeliest = list(runner.stream(prompt, Decoding(16)))
    assert list(runner.stream(prompt, Decoding(16, temperature=1.0, top_p=1e-9))) == likeliest


def test_text_in_pieces_is_the_answer(runner: Runner, make_picture: Any) -> None:
    for seed in range(6):  # random bytes of a byte-level vocabulary: many halves of characters
        talk = [("user", [make_picture(8, 8, seed=seed), "what?"])]
        decoding = Decoding(24, temperature=3.0, seed=seed)
        pieces = list(runner.texts(runner.prompt(talk), decoding))
        assert "".join(pieces) == runner.answer(talk, decoding)


def test_suppressed_tokens_never_come(exported: Any, runner: Runner) -> None:
    (banned,) = runner.settings.suppressed_ids
    prompt = runner.prompt([("user", ["what?"])])
    hot = Decoding(200, temperature=50.0, min_new_tokens=200)
    ids = list(runner.stream(prompt, hot))
    assert banned not in ids and exported.processor.tokenizer.eos_token_id not in ids
    assert len(set(ids)) > 50


def test_an_answer_ends_where_the_positions_do(patches: Any) -> None:
    runner = load(patches.folder, threads=1)
    room = runner.settings.positions
    prompt = runner.prompt([("user", ["what " * 60])])
    ids = list(runner.stream(prompt, Decoding(10**6, temperature=50.0, min_new_tokens=10**6)))
    assert len(prompt.ids) + len(ids) == room
    with pytest.raises(DataError, match="of this model must hold the answer"):
        runner.prompt([("user", ["what " * room])])


def test_times_are_taken(runner: Runner, make_picture: Any) -> None:
    measured = measure(runner, [("user", [make_picture(8, 8), "what?"])], 5, 3)
    assert measured.new_tokens == 5 and measured.repeats == 3
    assert 0 < measured.vision < measured.first_p50 <= measured.first_p95 < measured.answer * 10
    assert measured.step > 0 and json.dumps(measured.to_json())


# Runs where neither torch nor transformers can be imported.
ALONE = """
import sys
for name in ("torch", "transformers", "jinja2", "safetensors", "typer", "pydantic", "onnx"):
    sys.modules[name] = None
from oculi.edge.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def alone(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m oculi.edge`` where only its own dependencies can be imported."""
    return subprocess.run(
        [sys.executable, "-c", ALONE, *arguments], capture_output=True, text=True, timeout=120,
        check=False, stdin=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_it_runs_without_torch(exported: Any, make_picture: Any, tmp_path: Path) -> None:
    picture = make_picture(16, 8, seed=9)
    picture.save(tmp_path / "a.png")
    settings = ["--image", str(tmp_path / "a.png"), "--threads", "1"]
    done = alone(
        "answer", str(exported.folder), *settings, "--max-new-tokens", "8", "what <|im_end|>?"
    )
    assert done.returncode == 0, done.stderr
    ids = greedy(exported, [("user", [picture, "\nwhat <|im_end|>?"])], 8)
    wanted = exported.processor.tokenizer.decode(ids, skip_special_tokens=True)
    assert done.stdout == wanted + "\n"
    done = alone("bench", str(exported.folder), *settings, "--repeats", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["new_tokens"] == 16


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--image", "none.png", "what?"], "does not exist"),
        (["--temperature", "-1", "what?"], "temperature = -1.0 is out of range"),
        (["--top-p", "0", "what?"], "top_p = 0.0 is out of range"),
        (["--threads", "0", "what?"], "--threads 0 is below one"),
    ],
)
def test_wrong_options_are_one_line(
    copied: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from oculi.edge.__main__ import main

    assert main(["answer", str(copied), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.startswith("oculi: ")


@pytest.mark.parametrize(
    "name", ["vision.onnx", "decoder.onnx", "embeddings.npy", "tokenizer.json"]
)
def test_damage_is_named(copied: Path, name: str) -> None:
    path = copied / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=f"{name} has .* bytes where"):
        load(copied)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(CheckpointError, match=f"{name} is not the file that was written"):
        load(copied)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load(copied)


def test_with_lengths_alone_rubbish_is_still_one_line(copied: Path) -> None:
    for name in ("vision.onnx", "embeddings.npy", "tokenizer.json"):
        path = copied / name
        whole = path.read_bytes()
        path.write_bytes(b"\x07" * len(whole))
        with pytest.raises(CheckpointError, match=name) as caught:
            load(copied, sums=False)
        assert "\n" not in str(caught.value)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "format"),
        ({"positions": "many"}, "positions is not as oculi writes it"),
        ({"eos_ids": [True]}, "eos_ids is not as oculi writes it"),
        ({"pictures": {}}, "pictures lacks"),
        ({"more": 1}, "settings lacks, or has too much"),
    ],
)
def test_strange_settings_are_refused(copied: Path, changes: dict[str, Any], said: str) -> None:
    from oculi.edge.folder import write_manifest

    path = copied / "edge.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    write_manifest(copied)
    with pytest.raises(CheckpointError, match=said) as caught:
        load(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eos_ids": [10**9]}, '"eos_ids" names the id 1000000000, and the model has'),
        ({"suppressed_ids": [-5]}, '"suppressed_ids" names the id -5'),
        ({"chat": {"generate": [10**9]}}, '"chat.generate" names the id'),
        ({"chat": {"begin": {}}}, 'chat.begin lacks "system"'),
        ({"chat": {"begin": {"system": []}}}, 'chat.begin lacks "user"'),
        ({"chat": {"between": {}}}, 'chat.between lacks "assistant user"'),
        ({"chat": {"begin": {"user": [-1], "system": []}}}, '"chat.begin user" names the id -1'),
        ({"chat": {"image_token_id": -1}}, "chat is not as oculi writes it"),
        ({"chat": {"turns": -1}}, "chat is not as oculi writes it"),
    ],
)
def test_ids_that_the_model_has_not_are_refused(
    copied: Path, changes: dict[str, Any], said: str
) -> None:
    from oculi.edge.folder import write_manifest

    path = copied / "edge.json"
    settings = json.loads(path.read_text())
    chat = {**settings["chat"], **changes.get("chat", {})}
    path.write_text(json.dumps({**settings, **changes, "chat": chat}))
    write_manifest(copied)
    with pytest.raises(CheckpointError, match=said) as caught:
        load(copied)
    assert "\n" not in str(caught.value)


def test_no_folder_and_no_edge_model(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="is no edge model"):
            load(folder)


def test_a_manifest_names_files_of_the_folder_alone(copied: Path) -> None:
    path = copied / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../secret"] = {"sha256": "", "bytes": 0}
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"\.\./secret"):
        load(copied)


# Two of the patch embedding, seven a block and the head. A tower has seven a block as well, and two of
# its connector; fusion six of a cross layer, and seven of a decoder layer although it runs in two steps.
@pytest.mark.parametrize(
    ("kind", "matrices", "attentions"),
    [
        ("patches", [2, 2 * 7 + 1], [0, 2]),
        ("fused", [2 * 7 + 2, 2 * 7 + 1 + 2 * 6 + 2 * 7], [2, 2 + 2 + 2]),
    ],
)
def test_int8_is_near_and_smaller(
    kind: str,
    matrices: list[int],
    attentions: list[int],
    request: Any,
    tmp_path: Path,
    make_picture: Any,
) -> None:
    """Of the same trace: its matrices as int8, all of them."""
    import onnx_ir as ir

    from oculi.edge.folder import write_manifest
    from oculi.export.onnx.quantise import quantise_graph

    whole = request.getfixturevalue(kind).folder
    copied = Path(shutil.copytree(whole, tmp_path / "copy"))
    counts, kept = [], []
    for name in ("vision.onnx", "decoder.onnx"):
        graph = ir.load(copied / name)
        counts.append(quantise_graph(graph))
        ir.save(graph, copied / name)
        kinds = [node.op_type for node in graph.graph]
        assert "Gemm" not in kinds
        kept.append(kinds.count("Attention"))
        assert (copied / name).stat().st_size < (whole / name).stat().st_size
    assert counts == matrices and kept == attentions
    write_manifest(copied)
    runner, exact = load(copied, threads=1), load(whole, threads=1)
    for talk in talks(make_picture):
        state = exact._begin(exact.prompt(talk))
        wanted = exact._run(exact._decoder, ["logits"], state)[0]
        state = runner._begin(runner.prompt(talk))
        found = runner._run(runner._decoder, ["logits"], state)[0]
        assert 0 < np.abs(found - wanted).max() < 0.35 * wanted.std()
        assert np.corrcoef(found[0], wanted[0])[0, 1] > 0.99


def test_int8_codes_stand_for_the_weight() -> None:
    from oculi.export.onnx.quantise import BLOCK, dequantise, quantise

    weight = torch.randn(75, 10, generator=torch.Generator().manual_seed(0)).numpy()
    weight[:BLOCK, 3] = 0  # a block of zeros has no scale
    codes, scales = quantise(weight)
    assert codes.shape == (10, 3, BLOCK) and scales.shape == (10, 3)
    error = np.abs(dequantise(codes, scales, 75) - weight)
    padded = np.pad(weight.T, ((0, 0), (0, 3 * BLOCK - 75))).reshape(10, 3, BLOCK)
    half = np.repeat(scales, BLOCK, 1)[:, :75] / 2
    assert (error.T - half).max() < 1e-6
    assert np.allclose(scales, np.abs(padded).max(-1) / 127)
