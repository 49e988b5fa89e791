"""Planted effects give the verdict that they must, and noise gives none."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from oculi.ablate.judge import QUICK, judge
from oculi.ablate.runs import Measured
from oculi.ablate.spec import Claim, Contrast, Correlation, Direction, Shares, Term, difference
from oculi.errors import AblationError

SEEDS = range(3)


def run(
    answers: Mapping[str, tuple[float, ...]] | None = None, ended: str = "finished", **values: float
) -> Measured:
    return Measured(values, dict(answers or {}), {}, 1.0, ended)


def results(row: Callable[[str, int], Measured], *names: str) -> dict[tuple[str, int], Measured]:
    return {(name, seed): row(name, seed) for name in names for seed in SEEDS}


def planted(effect: float, noise: float) -> dict[tuple[str, int], Measured]:
    """Losses that differ by an effect, and by noise from seed to seed; seeds differ by far more."""
    wobble = {0: -noise, 1: 0.0, 2: noise}
    return results(
        lambda name, seed: run(loss=10.0 * seed + (effect + wobble[seed]) * (name == "a")), "a", "b"
    )


@pytest.mark.parametrize(
    ("effect", "noise", "direction", "wanted"),
    [  # three seeds: the interval is the effect ± 4.3027 / sqrt(3) = 2.484 times the noise
        (-0.016, 0.001, "below", "confirmed"),
        (+0.016, 0.001, "below", "not confirmed"),
        (0.0, 0.001, "below", "not confirmed"),
        (-0.016, 0.010, "below", "not decidable"),
        (+0.016, 0.001, "above", "confirmed"),
        (0.0, 0.001, "within", "confirmed"),
        (0.016, 0.001, "within", "not confirmed"),
        (0.0, 0.010, "within", "not decidable"),
    ],
)
def test_a_contrast(effect: float, noise: float, direction: Direction, wanted: str) -> None:
    claim = Claim("c", "p", difference("a", "b", "loss"), direction, 0.003)
    found = judge(claim, planted(effect, noise), SEEDS)
    assert found.verdict == wanted
    assert found.interval is not None
    assert found.interval.effect == pytest.approx(effect)
    assert found.interval.high - found.interval.effect == pytest.approx(2.4842 * noise, rel=1e-4)
    assert found.sample == "3 seeds, paired"


def test_a_difference_of_differences() -> None:
    def row(name: str, seed: int) -> Measured:
        return run(loss={"a": 4.0, "b": 1.0, "c": 2.5, "d": 2.0}[name] + 0.001 * seed)

    terms = tuple(Term(w, r, "loss") for w, r in ((1, "a"), (-1, "b"), (-1, "c"), (1, "d")))
    claim = Claim("c", "p", Contrast(terms), "above", 2.0)
    found = judge(claim, results(row, *"abcd"), SEEDS)
    assert found.verdict == "confirmed" and found.interval is not None
    assert found.interval.effect == pytest.approx(2.5)
    assert claim.effect.formula() == "loss[a] - loss[b] - loss[c] + loss[d]"


def asked(better: int, worse: int, of: int = 100) -> dict[tuple[str, int], Measured]:
    """Row a is right where b is wrong on some questions, and the other way round, in every seed."""
    a = np.array([True] * better + [False] * worse + [True] * (of - better - worse))
    b = np.array([False] * better + [True] * worse + [True] * (of - better - worse))

    def row(name: str, seed: int) -> Measured:
        answers = tuple((a if name == "a" else b).tolist())
        return run({"score": answers}, score=sum(answers) / of)

    return results(row, "a", "b")


@pytest.mark.parametrize(
    ("better", "worse", "wanted"),
    [(30, 2, "confirmed"), (2, 30, "not confirmed"), (12, 10, "not decidable")],
)
def test_exact_match_has_to_survive_other_questions(better: int, worse: int, wanted: str) -> None:
    """The seeds agree entirely, so that all of the interval comes from the questions."""
    claim = Claim("c", "p", difference("a", "b", "score"), "above", 0.01)
    found = judge(claim, asked(better, worse), SEEDS)
    assert found.verdict == wanted
    assert found.sample == "3 seeds, paired x 100 questions"
    assert found.interval is not None and found.interval.low < found.interval.effect


def test_a_change_of_one_row_has_to_survive_other_questions() -> None:
    """Of 100 questions each seed loses the same ten: the seeds have no spread."""
    lost = (-1,) * 10 + (0,) * 90

    def row(name: str, seed: int) -> Measured:
        return run({"text_change": lost}, text_change=sum(lost) / 100)

    effect = Contrast((Term(1, "a", "text_change"),))
    found = judge(Claim("c", "p", effect, "above", -0.12), results(row, "a"), SEEDS)
    assert found.verdict == "not decidable" and found.interval is not None
    assert found.interval.low == pytest.approx(-0.1 - 1.96 * 0.03, abs=0.01)
    assert found.sample == "3 seeds, paired x 100 questions"


def test_exact_match_has_to_survive_other_seeds() -> None:
    """On each seed every question says the same, but the seeds disagree."""
    good = {0: 60, 1: 50, 2: 90}

    def row(name: str, seed: int) -> Measured:
        answers = tuple([name == "a"] * good[seed] + [False] * (1000 - good[seed]))
        return run({"score": answers}, score=sum(answers) / 1000)

    claim = Claim("c", "p", difference("a", "b", "score"), "above", 0.02)
    found = judge(claim, results(row, "a", "b"), SEEDS)
    half = 4.3027 * float(np.std([0.06, 0.05, 0.09], ddof=1)) / 3**0.5
    assert found.interval is not None
    assert found.interval.high - found.interval.effect == pytest.approx(half, rel=1e-3)
    assert found.verdict == "not decidable"


def two_cells(seeds: int, lost: int) -> dict[tuple[str, int], Measured]:
    """Of 1,000 questions that are right in one cell, so many are wrong in the other."""
    square, wide = (True,) * 1000, (False,) * lost + (True,) * (1000 - lost)
    answers = {"score@1x1": square, "score@2x1": wide}
    scores = {name: sum(right) / 1000 for name, right in answers.items()}
    return {("a", seed): run(answers, **scores) for seed in range(seeds)}


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(
    ("lost", "wanted"), [(10, "confirmed"), (30, "not decidable"), (60, "not confirmed")]
)
def test_two_metrics_of_one_run_are_paired_by_question(seeds: int, lost: int, wanted: str) -> None:
    """One seed will do then; its interval is over questions, and no narrower with more that agree."""
    effect = Contrast((Term(1, "a", "score@1x1"), Term(-1, "a", "score@2x1")))
    claim = Claim("c", "p", effect, "below", -0.03)
    found = judge(claim, two_cells(seeds, lost), range(seeds))
    assert found.verdict == wanted and found.interval is not None
    share = lost / 1000
    error = (share * (1 - share) / 1000) ** 0.5
    assert found.interval.effect == pytest.approx(share)
    assert found.interval.high - share == pytest.approx(1.96 * error, rel=0.1, abs=0.001)
    assert found.sample.startswith("1 seed," if seeds == 1 else "3 seeds,")
    assert claim.where() == "below 3.0 points"


def test_one_seed_decides_nothing_that_is_not_asked() -> None:
    claim = Claim("c", "p", difference("a", "b", "loss"), "below", 0.0)
    found = judge(claim, planted(-0.5, 0.001), [0])
    assert (found.verdict, found.why) == ("not decidable", "one seed has no interval for loss")


@pytest.mark.parametrize(
    ("direction", "threshold", "said"),
    [
        ("above", 0.01, "above 1.0 points"),
        ("above", -0.02, "above -2.0 points"),
        ("below", 0.01, "below -1.0 points"),
        ("below", 0.0, "below 0.0 points"),
        ("within", 0.02, "within ±2.0 points"),
    ],
)
def test_where_a_claim_is_confirmed(direction: Direction, threshold: float, said: str) -> None:
    claim = Claim("c", "p", difference("a", "b", "score"), direction, threshold)
    assert claim.where() == said


def test_questions_must_be_the_same() -> None:
    runs = asked(30, 2)
    runs["b", 1] = run({"score": (True,)}, score=1.0)
    claim = Claim("c", "p", difference("a", "b", "score"), "above", 0.0)
    with pytest.raises(AblationError, match="different numbers of questions"):
        judge(claim, runs, SEEDS)


@pytest.mark.parametrize(
    ("full", "lora", "wanted"),
    [
        (4, 0, "confirmed"),
        (0, 0, "not confirmed"),  # 0 of 12 against 0 of 12 excludes one run in four more
        (1, 0, "not decidable"),
    ],
)
def test_shares_of_runs(full: int, lora: int, wanted: str) -> None:
    rows = [f"{what}{number}" for what in ("full", "lora") for number in range(4)]
    bad = {f"full{i}" for i in range(full)} | {f"lora{i}" for i in range(lora)}
    runs = results(lambda name, seed: run(collapsed=float(name in bad)), *rows)
    effect = Shares(tuple(rows[:4]), tuple(rows[4:]), "collapsed")
    found = judge(Claim("c", "p", effect, "above", 0.25), runs, SEEDS)
    assert (found.verdict, found.sample) == (wanted, "12 runs against 12")


def test_three_runs_that_went_well_decide_nothing() -> None:
    runs = results(lambda name, seed: run(unstable=0.0), "a", "b")
    claim = Claim("c", "p", Shares(("a",), ("b",), "unstable"), "above", 0.25)
    assert judge(claim, runs, SEEDS).verdict == "not decidable"


@pytest.mark.parametrize(("slope", "wanted"), [(-1, "confirmed"), (1, "not confirmed")])
def test_a_correlation(slope: int, wanted: str) -> None:
    rows = "abcde"
    runs = results(
        lambda name, seed: run(loss=float(rows.index(name)), score=slope * rows.index(name) / 9.0),
        *rows,
    )
    claim = Claim("c", "p", Correlation("loss", "score", tuple(rows)), "below", 0.0)
    assert judge(claim, runs, SEEDS).verdict == wanted


def test_a_run_without_the_number_decides_nothing_and_is_named() -> None:
    runs = planted(-0.5, 0.001)
    runs["a", 1] = run(ended="not finite")
    found = judge(Claim("c", "p", difference("a", "b", "loss"), "below", 0.0), runs, SEEDS)
    assert (found.verdict, found.interval) == ("not decidable", None)
    assert found.shown() == "a-seed1 has no loss (not finite)"


def test_a_quick_run_has_no_verdict() -> None:
    claim = Claim("c", "p", difference("a", "b", "loss"), "below", 0.0)
    found = judge(claim, planted(-0.5, 0.001), SEEDS)
    assert found.to_json(quick=False, seeds=3)["verdict"] == "confirmed"
    assert found.to_json(quick=True, seeds=3)["verdict"] == QUICK == "quick: not a result"
