"""A world of sounds, drawn by the program: two sounds in a row, their picture, and questions about it.

    python examples/audio/sounds.py --out sounds

writes ``train.jsonl`` (conversations), ``test.jsonl`` (one question a row), a PNG for each clip and the
first clips as WAV, to be listened to. Clip number i of a split is a pure function of both.

A clip is 1.68 s at 8 kHz. Its picture is a log-mel spectrogram of 84 bands by 84 frames of 20 ms, high
pitches on top, so patches of 14 pixels are 6 bands of pitch by 6 stretches of 0.28 s: what follows sees
a picture like any other.
"""

from __future__ import annotations

import argparse
import json
import sys
import wave
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]

RATE, FRAME, SIDE = 8000, 160, 84  # Hz; samples of 20 ms; bands, and frames of a clip
SAMPLES = FRAME * SIDE
WINDOW = 512  # samples of a spectrum
LOWEST, HIGHEST = 80.0, 4000.0  # Hz
RANGE = 60.0  # decibels from black to white
PITCHES = {"low": 200.0, "middle": 490.0, "high": 1200.0}  # Hz; overtones stay below half of RATE
KINDS = ("tone", "rise", "fall", "pulse", "noise")
SPLITS = {"train": 0, "test": 1}
TRAIN, TEST = 4000, 600  # clips of a whole data set; test questions
QUICK_TRAIN, QUICK_TEST = 24, 6


@dataclass(frozen=True)
class Sound:
    """One of the two sounds of a clip.

    Attributes:
        kind, pitch: of ``KINDS`` and ``PITCHES``.
        start, length: in seconds. frequency: in Hz. loudness: of 1.
    """

    kind: str
    pitch: str
    start: float
    length: float
    frequency: float
    loudness: float


@dataclass(frozen=True)
class Clip:
    """What is heard: two sounds, one after the other, over a hiss that ``seed`` draws."""

    sounds: tuple[Sound, Sound]
    hiss: float
    seed: tuple[int, int]


def clip(split: str, index: int) -> Clip:
    """Clip number ``index`` of ``train`` or ``test``: kinds and pitches are uniform and independent."""
    seed = (SPLITS[split], index)
    draw = np.random.default_rng(seed)
    half = SAMPLES / RATE / 2
    sounds = []
    for place in range(2):
        pitch = str(draw.choice(list(PITCHES)))
        length = draw.uniform(0.55, 0.78)
        sounds.append(
            Sound(
                kind=str(draw.choice(KINDS)), pitch=pitch,
                start=place * half + draw.uniform(0.02, half - length - 0.02),
                length=length, frequency=PITCHES[pitch] * 2 ** draw.uniform(-0.2, 0.2),
                loudness=draw.uniform(0.4, 1.0),
            )
        )  # fmt: skip
    return Clip((sounds[0], sounds[1]), draw.uniform(0.001, 0.01), seed)


def waveform(made: Clip) -> Floats:
    """The clip as it is heard: [SAMPLES] between -1 and 1."""
    draw = np.random.default_rng((*made.seed, 1))
    wave_T = made.hiss * draw.standard_normal(SAMPLES)
    for sound in made.sounds:
        first, count = int(sound.start * RATE), int(sound.length * RATE)
        wave_T[first : first + count] += 0.4 * sound.loudness * _heard(sound, count, draw)
    return wave_T.clip(-1, 1)


def _heard(sound: Sound, count: int, draw: np.random.Generator) -> Floats:
    part = np.arange(count) / count
    fade = np.minimum(1, np.minimum(part, 1 - part) * 20)
    if sound.kind == "noise":  # a band of half an octave
        spectrum = np.fft.rfft(draw.standard_normal(count))
        away = np.log2(np.fft.rfftfreq(count, 1 / RATE).clip(1) / sound.frequency)
        band = np.fft.irfft(spectrum * (np.abs(away) < 0.25), count)
        return fade * band / (np.abs(band).max() + 1e-9)
    octaves = {"rise": part - 0.5, "fall": 0.5 - part}.get(sound.kind, np.zeros(count))
    phase = 2 * np.pi * np.cumsum(sound.frequency * 2**octaves) / RATE
    tone = np.sin(phase) + 0.2 * np.sin(2 * phase)
    gate = (part * 4 % 1 < 0.5) if sound.kind == "pulse" else 1.0
    return fade * gate * tone / 1.2


@cache
def mel_filters() -> Floats:
    """Triangles over the bins of a spectrum, evenly spaced in mel: [SIDE, WINDOW // 2 + 1].

    One mel is 2595 log10(1 + Hz / 700), the usual formula.
    """
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (LOWEST, HIGHEST))
    centres = 700 * (10 ** (np.linspace(low, high, SIDE + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(WINDOW, 1 / RATE)
    left, middle, right = centres[:-2, None], centres[1:-1, None], centres[2:, None]
    triangles = np.minimum((bins - left) / (middle - left), (right - bins) / (right - middle))
    # Low bands are narrower than a bin, and would miss all: each takes the bin next to it as well.
    nearest = np.abs(bins - middle).argmin(1)
    triangles[np.arange(SIDE), nearest] = np.maximum(triangles[np.arange(SIDE), nearest], 0.5)
    return triangles.clip(0)


def picture(wave_T: Floats) -> Image.Image:
    """Any sound at ``RATE`` as a picture: SIDE pixels high, one wide for every 20 ms, grey."""
    frames = -(-len(wave_T) // FRAME)
    padded = np.pad(wave_T, (WINDOW // 2, WINDOW + frames * FRAME - len(wave_T)))
    starts = np.arange(frames)[:, None] * FRAME + np.arange(WINDOW)
    power = np.abs(np.fft.rfft(padded[starts] * np.hanning(WINDOW))) ** 2 / WINDOW
    decibels = 10 * np.log10(mel_filters() @ power.T + 1e-9)
    grey = ((decibels + RANGE - 10) / RANGE).clip(0, 1)[::-1] * 255
    return Image.fromarray(grey.round().astype(np.uint8))


def questions(made: Clip) -> list[tuple[str, str]]:
    """Five questions and answers; of each, all answers are equally frequent over the clips."""
    first, second = made.sounds
    order = list(PITCHES).index(first.pitch) - list(PITCHES).index(second.pitch)
    return [
        ("Which pitch comes first: low, middle or high?", first.pitch),
        ("Which pitch comes second: low, middle or high?", second.pitch),
        ("What kind of sound comes first?", first.kind),
        ("What kind of sound comes second?", second.kind),
        ("Which is higher?", "the first" if order > 0 else "the second" if order else "both same"),
    ]


def write(out: Path, train: int, test: int) -> None:
    """The data set: pictures, ``train.jsonl`` and ``test.jsonl`` as LLaVA's rows, a few WAV files."""
    for split, count in (("train", train), ("test", test)):
        (out / split).mkdir(parents=True, exist_ok=True)
        rows = []
        for index in range(count):
            made = clip(split, index)
            name = f"{split}/{index:05d}.png"
            heard = waveform(made)
            picture(heard).save(out / name)
            if split == "test" and index < 5:
                _write_wav(out / f"test-{index}.wav", heard)
            asked = questions(made)
            if split == "test":  # one a row, or an answer could be read off the one before
                asked = [asked[index % len(asked)]]
            else:
                order = np.random.default_rng((*made.seed, 2)).permutation(len(asked))
                asked = [asked[place] for place in order]
            turns = []
            for number, (question, answer) in enumerate(asked):
                start = "" if number else "<image>\n"
                turns += [
                    {"from": "human", "value": start + question},
                    {"from": "gpt", "value": answer},
                ]
            rows.append(
                json.dumps(
                    {
                        "id": f"{split}-{index}",
                        "image": name,
                        "modality": "audio",
                        "conversations": turns,
                    }
                )
            )
        (out / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _write_wav(path: Path, heard: Floats) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((heard * 32767).astype("<i2").tobytes())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Draw sounds as pictures with questions.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--quick", action="store_true", help="a few clips, to see that it works")
    given = parser.parse_args()
    train, test = (QUICK_TRAIN, QUICK_TEST) if given.quick else (TRAIN, TEST)
    write(given.out, train, test)
    print(f"{train} clips to learn from and {test} questions in {given.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
