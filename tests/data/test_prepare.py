"""Prepared data: the same samples with exact lengths, whoever does it and however often it is killed."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datafiles import CAPTIONS, ROWS, TALKS, write_csv, write_folder, write_json, write_parquet
from helpers import HOSTILE, Drawn, write_rows
from oculi.data import measuring
from oculi.data.formats import FileSource
from oculi.data.index import check_lengths, processor_fingerprint, sample_length
from oculi.data.prepare import prepare
from oculi.data.prepared import PreparedRows, read_manifest
from oculi.data.sample import Sample
from oculi.data.source import open_source, sizes
from oculi.errors import DataError
from oculi.model import OculiProcessor
from oculi.recipe import FileSource as FileSpec


@pytest.fixture
def processor(make_processor: Callable[..., Any]) -> OculiProcessor:
    return make_processor()


def content(folder: Path) -> dict[str, bytes]:
    """Every file that a preparation leaves, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def shown(sample: Sample) -> tuple[object, ...]:
    return sample.id, sample.messages, [image.load().tobytes() for image in sample.images]


def quarantine(folder: Path) -> list[tuple[str, int, str]]:
    lines = (folder / "quarantine.jsonl").read_text().splitlines()
    return [(row["id"], row["line"], row["reason"]) for row in map(json.loads, lines)]


def report(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text())


def text_rows(path: Path, count: int, mark: str = "") -> Path:
    """JSON Lines of ``count`` rows of growing length."""
    rows = [
        {"id": f"{mark}{i}", "prompt": f"how {'very ' * (i % 7)}{mark}{i}", "response": "so"}
        for i in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


# What comes out


@pytest.mark.parametrize("name", [*TALKS, *CAPTIONS])
def test_samples_are_those_of_the_file_and_lengths_are_exact(
    name: str, processor: OculiProcessor, tmp_path: Path
) -> None:
    path = (TALKS | CAPTIONS)[name](tmp_path / "data")
    assert prepare([path], tmp_path / "out", processor) == tmp_path / "out" / "report.md"
    found, plain = open_source(FileSpec(path=str(tmp_path / "out"))), FileSource(path)
    assert isinstance(found, PreparedRows)
    assert list(map(shown, found)) == list(map(shown, plain))  # type: ignore[arg-type]
    lengths = found.lengths(processor_fingerprint(processor))
    assert lengths.tolist() == [sample_length(sample, processor) for sample in plain]
    again = pickle.loads(pickle.dumps(found))
    assert shown(again[len(plain) - 1]) == shown(plain[len(plain) - 1])
    assert quarantine(tmp_path / "out") == []
    arrays = {
        part: np.load(tmp_path / "out" / f"{part}.npy") for part in ("image_counts", "image_sizes")
    }
    assert arrays["image_counts"].tolist() == [len(sample.images) for sample in plain]
    wanted = [size for sample in plain for size in sizes(sample.images)]
    assert arrays["image_sizes"].tolist() == wanted


def test_several_files_and_a_limit(processor: OculiProcessor, tmp_path: Path) -> None:
    one, two = write_json(tmp_path / "a"), write_parquet(tmp_path / "b")
    prepare([one, two], tmp_path / "out", processor)
    ids = [row["id"] for row in ROWS]
    assert [sample.id for sample in PreparedRows(tmp_path / "out")] == ids * 2
    for limit in (1, 5, 7, 99):
        rows = open_source(FileSpec(path=str(tmp_path / "out"), limit=limit))
        assert [rows[i].id for i in range(len(rows))] == (ids * 2)[:limit]
        assert len(rows.lengths(processor_fingerprint(processor))) == len(rows)  # type: ignore[union-attr]
    with pytest.raises(IndexError):
        rows[10]


def test_bad_rows_are_named_and_left_out(processor: OculiProcessor, tmp_path: Path) -> None:
    """Bad in the row, in its picture's header, in its picture's absence, and too long."""
    path = write_rows(tmp_path, 8)
    rows = json.loads(path.read_text())
    rows[1]["conversations"][1]["value"] = ""
    rows[7]["conversations"][0]["value"] += " very" * 200
    path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]")
    (tmp_path / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "5.png").unlink()
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{]\n")
    prepare([path, broken], tmp_path / "out", processor, max_length=300)
    assert [sample.id for sample in PreparedRows(tmp_path / "out")] == [
        "row-0",
        "row-2",
        "row-3",
        "row-6",
    ]
    found = quarantine(tmp_path / "out")
    assert [(id, line) for id, line, _ in found[:4]] == [
        ("row-1", 3),
        ("row-4", 6),
        ("row-5", 7),
        ("row-7", 9),
    ]
    reasons = " | ".join(reason for _, _, reason in found)
    for part in (
        "(assistant) is empty",
        '"4.png" is truncated',
        '"5.png" does not exist',
        "more than 300",
    ):
        assert part in reasons
    assert found[4][:2] == ("", 1) and "not valid JSON" in found[4][2]
    said = report(tmp_path / "out")
    assert (said["good"], said["bad"]) == (4, 5)
    assert said["reasons"]["image ... does not exist"] == 1


def test_nothing_good_is_an_error(processor: OculiProcessor, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows", 1)
    with pytest.raises(
        DataError, match=r"no row can be used; the first: .*0\.png.* does not exist"
    ):
        prepare([path], tmp_path / "out", processor, image_root=tmp_path)
    tagged = tmp_path / "tagged.jsonl"
    tagged.write_text(json.dumps({"prompt": "q", "response": "a", "stage": "y"}))
    with pytest.raises(DataError, match="no row has the stage tag x"):
        prepare([tagged], tmp_path / "tagged", processor, tag="x")


def test_the_report(processor: OculiProcessor, tmp_path: Path) -> None:
    path = write_rows(tmp_path, 8)
    rows = json.loads(path.read_text())
    rows += [{**rows[0], "id": "again"}, {**rows[0], "id": "third"}, {**rows[3], "id": "text"}]
    path.write_text(json.dumps(rows, indent=0))
    said = prepare([path], tmp_path / "out", processor).read_text()
    found = report(tmp_path / "out")
    lengths = [sample_length(sample, processor) for sample in FileSource(path)]
    assert (found["good"], found["tokens"], found["most"]) == (11, sum(lengths), max(lengths))
    assert (found["images"], found["with_images"], found["duplicates"]) == (8, 8, 3)
    assert sum(found["lengths"].values()) == 11 and found["sides"] == {"<= 32": 8}
    assert [row["tokens"] for row in found["longest"]] == sorted(lengths, reverse=True)[:10]
    pairs = found["duplicate_examples"]
    assert [[name.split()[-1] for name in pair] for pair in pairs] == [
        ['"row-0"', '"again"'], ['"row-3"', '"text"']
    ]  # fmt: skip
    assert "rows 11: 11 good, 0 bad" in said and f"- {max(lengths)}: " in said


def test_the_same_words_about_another_picture_are_no_duplicate(
    processor: OculiProcessor, tmp_path: Path
) -> None:
    prepare([write_csv(tmp_path / "csv", ["a", "a"])], tmp_path / "out", processor)
    assert report(tmp_path / "out")["duplicates"] == 0
    shown_twice = [{**ROWS[0], "id": str(i)} for i in range(3)]  # the bytes are the same
    prepare([write_parquet(tmp_path / "parquet", shown_twice)], tmp_path / "bytes", processor)
    assert report(tmp_path / "bytes")["duplicates"] == 2


# Doing it


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from oculi.data import prepare as module

    monkeypatch.setattr(module, "PART_ROWS", 7)


@pytest.mark.usefixtures("small_parts")
def test_the_result_does_not_depend_on_the_workers(
    processor: OculiProcessor, tmp_path: Path
) -> None:
    files = [
        text_rows(tmp_path / "a.jsonl", 50),
        write_rows(tmp_path / "b", 9),
        text_rows(tmp_path / "c.jsonl", 3),
    ]
    (tmp_path / "b" / "4.png").unlink()
    made = []
    before = set(multiprocessing.active_children())  # another test's may be ending still
    for workers in (1, 2, 5):
        out = tmp_path / f"out{workers}"
        seen: list[tuple[int, int]] = []
        prepare(
            files, out, processor, workers=workers, on_progress=lambda *n, seen=seen: seen.append(n)
        )
        assert seen[-1] == (62, 62) and seen == sorted(seen)
        made.append(content(out))
    assert made[0] == made[1] == made[2]
    for process in set(multiprocessing.active_children()) - before:
        process.join(10)  # asked to end already; a busy machine takes a moment
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("after", [0, 1, 4])
def test_it_goes_on_where_it_was_killed(
    after: int, processor: OculiProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [text_rows(tmp_path / "a.jsonl", 30), text_rows(tmp_path / "b.jsonl", 20, "b")]
    prepare(files, tmp_path / "whole", processor)
    measure, done = measuring.Job.measure, []

    def counted(job: Any, part: Any) -> None:
        if len(done) == after:
            raise KeyboardInterrupt
        measure(job, part)
        done.append(part)

    monkeypatch.setattr(measuring.Job, "measure", counted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare(files, out, processor)
    with pytest.raises(DataError, match="is being prepared; the same command again"):
        open_source(FileSpec(path=str(out)))
    for piece in list((out / "parts").iterdir())[:1]:
        piece.write_bytes(piece.read_bytes()[:40])  # and a disk was full
    monkeypatch.setattr(measuring.Job, "measure", measure)
    prepare(files, out, processor)
    assert content(out) == content(tmp_path / "whole")


KILLED = """
import pickle, sys, time
from pathlib import Path
from oculi.data import measuring, prepare as module
module.PART_ROWS = 7
measure = measuring.Job.measure
def slow(job, part):
    measure(job, part)
    time.sleep(0.2)
measuring.Job.measure = slow
processor = pickle.loads(Path(sys.argv[3]).read_bytes())
module.prepare([Path(sys.argv[1])], Path(sys.argv[2]), processor, workers=2)
"""


@pytest.mark.usefixtures("small_parts")
def test_a_killed_process_leaves_no_workers_and_can_be_gone_on_with(
    processor: OculiProcessor, tmp_path: Path
) -> None:
    path, out = text_rows(tmp_path / "a.jsonl", 200), tmp_path / "out"
    (tmp_path / "processor").write_bytes(pickle.dumps(processor))
    command = [sys.executable, "-c", KILLED, *map(str, (path, out, tmp_path / "processor"))]
    started = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while len(list(out.glob("parts/*.npz"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert len(workers) == 2
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert time.monotonic() < deadline
    prepare([path], tmp_path / "whole", processor)
    prepare([path], out, processor)
    assert content(out) == content(tmp_path / "whole")


def test_a_kill_just_before_the_end_leaves_nothing_behind(
    processor: OculiProcessor, tmp_path: Path
) -> None:
    path, out = text_rows(tmp_path / "a.jsonl", 20), tmp_path / "out"
    prepare([path], out, processor)
    before = content(out)
    (out / "oculi-preparing.json").write_text("{")
    (out / "parts").mkdir()
    seen: list[tuple[int, int]] = []
    prepare([path], out, processor, on_file=lambda *n: seen.append(n))
    assert content(out) == before and seen == []


def test_progress_is_told_of_files_and_rows(processor: OculiProcessor, tmp_path: Path) -> None:
    files = [text_rows(tmp_path / f"{name}.jsonl", 20, name) for name in "ab"]
    found: list[tuple[int, int]] = []
    rows: list[tuple[int, int]] = []
    prepare(
        files, tmp_path / "out", processor,
        on_file=lambda *n: found.append(n), on_progress=lambda *n: rows.append(n),
    )  # fmt: skip
    assert (found, rows) == ([(0, 2), (1, 2), (2, 2)], [(20, 40), (40, 40)])


def test_a_worker_that_dies_is_one_line(
    processor: OculiProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None
) -> None:
    monkeypatch.setattr(measuring.Job, "measure", lambda job, part: os._exit(9))
    with pytest.raises(DataError, match="a worker was killed, perhaps for want of memory"):
        prepare([text_rows(tmp_path / "a.jsonl", 20)], tmp_path / "out", processor, workers=2)


def test_small_pictures_are_left_out_by_their_longer_edge(
    processor: OculiProcessor, tmp_path: Path
) -> None:
    """Above 48 pixels as VoRA is above 448; a row without a picture has none that is too small."""
    sizes = [(48, 48), (49, 10), (10, 49), (20, 30), None]
    rows = []
    for i, size in enumerate(sizes):
        said = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "a thing"}]
        rows.append({"id": f"row-{i}", "conversations": said})
        if size is not None:
            Image.new("RGB", size).save(tmp_path / f"{i}.png")
            said[0]["value"] = "<image>\nWhat?"
            rows[-1]["image"] = f"{i}.png"
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    report = prepare([path], tmp_path / "out", processor, min_edge=49)
    kept = [sample.id for sample in PreparedRows(tmp_path / "out")]
    assert kept == ["row-1", "row-2", "row-4"]
    assert [(id, reason) for id, _, reason in quarantine(tmp_path / "out")] == [
        ("row-0", "has a picture of 48 x 48 pixels, its longer edge under 49"),
        ("row-3", "has a picture of 20 x 30 pixels, its longer edge under 49"),
    ]
    assert "rows 5: 3 good, 2 bad" in report.read_text()


def test_done_is_done_and_another_plan_is_refused(
    processor: OculiProcessor, make_processor: Callable[..., Any], tmp_path: Path
) -> None:
    path, out = write_rows(tmp_path / "rows"), tmp_path / "out"
    prepare([path], out, processor)
    before = content(out)
    times = {file: file.stat().st_mtime_ns for file in out.glob("*.npy")}
    prepare([path], out, processor)
    assert times == {file: file.stat().st_mtime_ns for file in out.glob("*.npy")}
    for settings, said in (
        ({"form": "llava"}, "another form"),
        ({"max_length": 99}, "another max_length"),
        ({"min_edge": 9}, "another min_edge"),
        ({"image_root": tmp_path}, "another image_root"),
    ):
        with pytest.raises(DataError, match=f"was begun with {said}; add --overwrite"):
            prepare([path], out, processor, **settings)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="was begun with another processor"):
        prepare([path], out, make_processor(max_patches=5))
    other = write_rows(tmp_path / "other", 3)
    with pytest.raises(DataError, match="files that have changed since, or other ones"):
        prepare([other], out, processor)
    assert content(out) == before
    prepare([other], out, processor, overwrite=True)
    assert len(PreparedRows(out)) == 3


@pytest.mark.parametrize("stop", range(1, 9))
def test_one_that_was_stopped_while_it_cleared_goes_on(
    processor: OculiProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    path, out = write_rows(tmp_path / "rows"), tmp_path / "out"
    prepare([path], out, processor)
    removed, real = 0, Path.unlink

    def unlink(self: Path, missing_ok: bool = False) -> None:
        nonlocal removed
        if self.parent == out:
            removed += 1
            if removed == stop:
                raise KeyboardInterrupt
        real(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            prepare([path], out, processor, max_length=500, overwrite=True)
    with pytest.raises(DataError, match="add --overwrite"):  # it is not what it was, either
        prepare([path], out, processor)
    prepare([path], out, processor, max_length=500, overwrite=True)
    assert read_manifest(out).plan.max_length == 500 and len(PreparedRows(out))


def test_a_kill_before_the_plan_has_its_name_is_gone_on_from(
    processor: OculiProcessor, tmp_path: Path
) -> None:
    path, out = write_rows(tmp_path / "rows"), tmp_path / "out"
    out.mkdir()
    (out / ".oculi-preparing.json.17").write_text("{")
    prepare([path], out, processor)
    assert len(PreparedRows(out))


def test_places_that_are_no_place_for_it(processor: OculiProcessor, tmp_path: Path) -> None:
    pictures = write_folder(tmp_path / "pictures")
    for out, said in (
        (pictures / "out", "whose files are read"),
        (pictures, "whose files are read"),
        (pictures / "0.txt", "is a file"),
    ):
        with pytest.raises(DataError, match=said):
            prepare([pictures], out, processor)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(DataError, match="is not empty"):
        prepare([pictures], tmp_path / "mine", processor, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


# Reading it


@pytest.fixture
def out(processor: OculiProcessor, tmp_path: Path) -> Path:
    prepare(
        [write_rows(tmp_path / "rows"), write_folder(tmp_path / "pictures")],
        tmp_path / "out",
        processor,
    )
    return tmp_path / "out"


def refusal(folder: Path) -> str:
    def use() -> None:
        rows = PreparedRows(folder)
        rows.lengths(rows.manifest.plan.processor)

    with pytest.raises(DataError) as caught:
        use()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_changed_file_is_refused(out: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows" / "rows.json"
    status, data = rows.stat(), rows.read_bytes()
    os.utime(rows, ns=(1, 1))
    assert "rows.json: changed since it was prepared; prepare again" in refusal(out)
    rows.write_bytes(data.replace(b"red", b"RED"))
    os.utime(rows, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "changed since it was prepared" in refusal(out)
    rows.write_bytes(data)
    os.utime(rows, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(PreparedRows(out)) == 11
    (tmp_path / "pictures" / "0.txt").write_text("another caption")
    assert "pictures: changed since it was prepared" in refusal(out)
    rows.unlink()
    assert "No such file" in refusal(out) and "prepare again" in refusal(out)


@pytest.mark.parametrize("name", ["oculi-prepared.json", "rows.npy", "tokens.npy"])
def test_a_damaged_folder_is_one_line(name: str, out: Path) -> None:
    file = out / name
    data = file.read_bytes()
    damages = [data[:-3], data[: len(data) // 2], b"", b"[1, 2]", b"\0" * 64]
    if name.endswith(".npy"):
        damages.append(data[:-5] + bytes([data[-5] ^ 4]) + data[-4:])
    for damage in damages:
        file.write_bytes(damage)
        assert "damaged" in refusal(out)
    file.unlink()
    refusal(out)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (("rows",), [-1, 12], "counts other rows"),
        (("rows",), [11], "is not whole"),
        (("rows",), [8, 4], "counts other rows"),
        (("arrays", "rows", "length"), 10**15, "another kind"),
        (("arrays",), {}, "is not whole"),
        (("plan", "version"), 2, "plan.version"),
        (("plan", "files"), [], "plan.files"),
        (("plan", "extra"), 1, "plan.extra"),
        (("plan", "form"), "lava", "unknown format"),
        (("plan", "files", 0, "path"), "\0", "NUL"),
        (("plan", "files", 0, "path"), "/dev/zero", "is not a regular file"),
    ],
)
def test_a_forged_manifest_is_one_line(key: Any, value: Any, said: str, out: Path) -> None:
    file = out / "oculi-prepared.json"
    manifest = json.loads(file.read_text())
    node = manifest
    for part in key[:-1]:
        node = node[part]
    node[key[-1]] = value
    file.write_text(json.dumps(manifest))
    assert said in refusal(out)


@pytest.mark.parametrize("place", [(-1, 5, 1), (10**6, 5, 1), (0, -5, 1)])
def test_forged_places_are_refused(place: tuple[int, int, int], out: Path) -> None:
    import hashlib

    rows = np.load(out / "rows.npy")
    rows[3] = place
    np.save(out / "rows.npy", rows)
    manifest = json.loads((out / "oculi-prepared.json").read_text())
    manifest["arrays"]["rows"]["sha256"] = hashlib.sha256(
        (out / "rows.npy").read_bytes()
    ).hexdigest()
    (out / "oculi-prepared.json").write_text(json.dumps(manifest))
    assert "names places outside of" in refusal(out)


def test_lengths_are_of_one_processor(
    out: Path, processor: OculiProcessor, make_processor: Callable[..., Any], tmp_path: Path
) -> None:
    spec, cache = FileSpec(path=str(out)), tmp_path / "cache"
    check_lengths([spec], processor, 999, cache)
    assert not cache.exists()
    with pytest.raises(
        DataError, match=r"are longer than 30 tokens; .*oculi data prepare --max-length"
    ):
        check_lengths([spec], processor, 30, cache)
    with pytest.raises(
        DataError, match="prepared for another tokenizer, chat template or image settings"
    ):
        check_lengths([spec], make_processor(max_patches=5), 999, cache)


def test_a_fingerprint_survives_saving_and_use(
    processor: OculiProcessor, make_processor: Callable[..., Any], tmp_path: Path
) -> None:
    known = processor_fingerprint(processor)
    processor.tokenizer(["one", "two words"], padding=True, truncation=True, max_length=5)
    processor.save_pretrained(tmp_path)
    assert known == processor_fingerprint(processor)
    assert known == processor_fingerprint(OculiProcessor.from_pretrained(tmp_path))
    tokenizer = make_processor().tokenizer
    tokenizer.add_tokens(["<more>"])
    assert known != processor_fingerprint(make_processor(tokenizer))


def test_settings_must_be_those_it_was_prepared_with(
    processor: OculiProcessor, tmp_path: Path
) -> None:
    path, out = write_rows(tmp_path / "rows"), tmp_path / "out"
    prepare([path], out, processor, image_root=tmp_path / "rows", form="llava")
    for same in ({}, {"format": "llava"}, {"image_root": str(tmp_path / "rows")}):
        assert len(open_source(FileSpec(path=str(out), **same))) == 8
    for other in ({"format": "vora"}, {"image_root": "elsewhere"}, {"tag": "x"}):
        with pytest.raises(DataError, match=f"was prepared with {next(iter(other))}"):
            open_source(FileSpec(path=str(out), **other))


def test_a_prepared_folder_is_no_data_file(out: Path) -> None:
    with pytest.raises(DataError, match="is prepared data; give the files that it was made from"):
        FileSource(out)


def test_no_picture_is_decoded(processor: OculiProcessor, tmp_path: Path) -> None:
    """A file cut behind its header still has a size; training or ``data check`` will name it."""
    path = write_rows(tmp_path / "rows", 1)
    picture = tmp_path / "rows" / "0.png"
    Drawn(64, 64).load().save(picture)
    picture.write_bytes(picture.read_bytes()[:6000])
    prepare([path], tmp_path / "out", processor)
    assert np.load(tmp_path / "out" / "image_sizes.npy").tolist() == [(64, 64)]


def test_no_array_of_rows_is_held(processor: OculiProcessor, tmp_path: Path) -> None:
    """Sixteen bytes a row, in pages of the file that workers share."""
    prepare([text_rows(tmp_path / "a.jsonl", 300)], tmp_path / "out", processor)
    source = PreparedRows(tmp_path / "out")
    (shard,) = source._shards
    base = shard._offsets.base
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap) and base.nbytes == 16 * 300


def test_hostile_text_stays_text(processor: OculiProcessor, tmp_path: Path) -> None:
    row = {"id": "\x1b[2J|x", "prompt": HOSTILE, "response": HOSTILE}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "response": ""}))
    said = prepare([tmp_path / "a.jsonl"], tmp_path / "out", processor).read_text()
    assert "\x1b" not in said
    shutil.rmtree(tmp_path / "out")
