"""What a stage minimises, against computations by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import HOSTILE, Drawn, make_tower, mixture, sample
from oculi.batch import Batch
from oculi.data.loader import collate, encode_sample
from oculi.errors import RecipeError
from oculi.objectives import Distill, LanguageModelling, build_objectives
from oculi.objectives.distill import _reducer
from oculi.objectives.teacher import Teacher
from oculi.recipe import DistillSpec, LmSpec
from oculi.training.module import TrainModule, canonical_parameters

CHANNELS = 3 * 4**2


def pack(processor: Any, *rows: Any) -> Batch:
    encoded = [[(s.id, encode_sample(s, processor)) for s in row] for row in rows]
    return collate(encoded, CHANNELS)


@pytest.fixture
def batch(make_processor: Callable[..., Any]) -> Batch:
    made = mixture()
    return pack(make_processor(), made[:3], made[3:])


def distill(model: Any, teacher: Any = None, **spec: Any) -> Distill:
    torch.manual_seed(5)
    made = Distill(
        DistillSpec(teacher="x", **spec),
        teacher or Teacher(make_tower("aimv2")),
        model.width,
        len(model.blocks),
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return made


def losses(model: Any, objective: Any, batch: Batch) -> Tensor:
    module = TrainModule(model, [objective])
    return module(batch, module.counts([batch]))[objective.name]


@torch.no_grad()
def llm_states(model: Any, batch: Batch) -> list[Tensor]:
    """The LLM's states on vision tokens: the input of block 0, then each block's output."""
    found: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handles = [block.register_forward_hook(keep) for block in model.blocks]
    handles.append(
        model.blocks[0].register_forward_pre_hook(
            lambda _, args, kwargs: found.append((*args, kwargs.get("hidden_states"))[0]),
            with_kwargs=True,
        )
    )
    # With label rows the last block would compute those alone.
    model(**{**batch.model_inputs(), "label_rows": None})
    for handle in handles:
        handle.remove()
    rows = batch.images_BT.flatten() >= 0
    return [state.flatten(0, 1)[rows] for state in found]


# ------------------------------------------------------------------------------------------- lm


def test_lm_is_the_mean_over_answer_tokens(make_model: Any, batch: Batch) -> None:
    model = make_model()
    logits = model(**{**batch.model_inputs(), "label_rows": None}).logits
    labels = torch.full(batch.tokens_BT.shape, -100).flatten()
    labels[batch.label_rows_R] = batch.targets_R
    wanted = F.cross_entropy(logits.flatten(0, 1), labels)
    found = losses(model, LanguageModelling(LmSpec()), batch)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32 and found > 1


def test_lm_teaches_hostile_text_as_text(make_model: Any, make_processor: Any) -> None:
    made = sample("x", ("#", HOSTILE), HOSTILE, images=(Drawn(8, 8),))
    batch = pack(make_processor(), [made])
    assert LanguageModelling(LmSpec()).count(batch) == len(batch.targets_R) > 40
    assert torch.isfinite(losses(make_model(), LanguageModelling(LmSpec()), batch))


# -------------------------------------------------------------------------------------- distill


def test_the_modes_choose_blocks(make_model: Any) -> None:
    model = make_model()
    assert list(distill(model, mode="block").heads) == ["0", "1"]
    assert list(distill(model, mode="last").heads) == ["1"]
    (only,) = build_objectives([DistillSpec(teacher="nowhere", mode="none"), LmSpec()], model)
    assert only.name == "lm"


def test_specs_become_objectives(make_model: Any, tiny: Any) -> None:
    model = make_model()
    specs = [LmSpec(weight=0.5), DistillSpec(teacher=str(tiny.teacher), weight=2, mode="last")]
    lm, other = build_objectives(specs, model)
    assert isinstance(lm, LanguageModelling) and isinstance(other, Distill)
    assert (lm.weight, other.weight, list(other.heads)) == (0.5, 2.0, ["1"])
    assert other.heads["1"][1].weight.shape == (24, 32)


ALIGNED = {  # LLM state and teacher state for ViT block i, entry 0 being the input of block 0
    "output": (1, 1),
    "released": (0, 1),
    "input": (0, 0),
}


@pytest.mark.parametrize("align", ALIGNED)
@pytest.mark.parametrize("mode", ["block", "last"])
def test_the_distance_is_that_of_the_states_the_option_names(
    make_model: Any, batch: Batch, align: str, mode: str
) -> None:
    """Equations 1 and 2 of VoRA by hand: cosine per token, mean over tokens and over blocks."""
    model = make_model()
    objective = distill(model, mode=mode, align=align)
    student = llm_states(model, batch)
    teacher = objective.teacher.features(batch.patches_PC, batch.grids_N2)
    student_shift, teacher_shift = ALIGNED[align]
    parts = []
    for i in (0, 1) if mode == "block" else (1,):
        norm, linear = objective.heads[str(i)]
        x = student[i + student_shift]
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * norm.weight
        y, t = x @ linear.weight.T, teacher[i + teacher_shift]
        cosine = (y * t).sum(-1) / (y.norm(dim=-1) * t.norm(dim=-1))
        parts.append((1 - cosine).mean())
    found = losses(model, objective, batch)
    torch.testing.assert_close(found, torch.stack(parts).mean(), rtol=1e-5, atol=1e-6)


def test_the_options_differ(make_model: Any, batch: Batch) -> None:
    found = [
        losses(make_model(), distill(make_model(), align=a), batch).detach().item() for a in ALIGNED
    ]
    assert len({round(value, 4) for value in found}) == 3


def test_cosine_distance_is_zero_for_the_same_direction() -> None:
    states = torch.randn(7, 5)
    reduce = _reducer(nn.Identity(), states)
    assert abs(float(reduce(states))) < 1e-5
    assert abs(float(reduce(3 * states))) < 1e-5
    assert abs(float(reduce(-states)) - 14) < 1e-5


def test_a_student_that_has_the_teachers_states_has_no_loss(make_model: Any, batch: Batch) -> None:
    """Through the whole path: the order of tokens on both sides is the same, ragged grids included."""
    model = make_model(hidden_size=24, num_hidden_layers=2)
    objective = distill(model)
    states = objective.prepare(batch)
    assert states is not None
    for head in objective.heads.values():
        head[0] = nn.Identity()
        head[1] = nn.Identity()
    rows = (batch.images_BT.flatten() >= 0).nonzero().squeeze(1)

    def replace_output(i: int) -> Callable[..., Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden.view(-1, 24)[rows] = states[i + 1]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    for i, block in enumerate(model.blocks):
        block.register_forward_hook(replace_output(i))
    assert abs(float(losses(model, objective, batch).detach())) < 1e-6


@pytest.mark.parametrize("align", ALIGNED)
def test_merged_tokens_answer_for_each_of_their_patches(
    make_model: Any, make_processor: Any, align: str
) -> None:
    """S of equation 1 stays the ViT's output length: each patch's target against its token's state."""
    setting = {"kind": "merge", "factor": 2}
    model, made = make_model(compress=setting), mixture()
    batch = pack(make_processor(compress=setting), made[:3], made[3:])
    objective = distill(model, align=align)
    assert objective.count(batch) == len(batch.patches_PC) > batch.vision_tokens
    student = llm_states(model, batch)
    teacher = objective.teacher.features(batch.patches_PC, batch.grids_N2)
    tokens = model.vision(batch.patches_PC, batch.grids_N2)
    _, owners = model.compress(tokens, batch.grids_N2)
    student_shift, teacher_shift = ALIGNED[align]
    total = torch.zeros(2)
    for i in (0, 1):
        states = objective.heads[str(i)](student[i + student_shift])
        for patch, token in enumerate(owners.tolist()):
            target = teacher[i + teacher_shift][patch]
            total[i] += 1 - F.cosine_similarity(states[token], target, dim=0).detach()
    wanted = total.mean() / len(owners)
    torch.testing.assert_close(losses(model, objective, batch), wanted, rtol=1e-5, atol=1e-6)


def test_states_that_are_not_of_the_patches_are_refused() -> None:
    reduce = _reducer(nn.Identity(), torch.randn(7, 5))
    with pytest.raises(ValueError, match="4 states of the student for 7 patches of the teacher"):
        reduce(torch.randn(4, 5))


def test_text_alone_has_no_loss_and_zero_gradients(make_model: Any, make_processor: Any) -> None:
    model = make_model()
    batch = pack(make_processor(), [s for s in mixture() if not s.images])
    objective = distill(model)
    assert objective.prepare(batch) is None and objective.count(batch) == 0
    module = TrainModule(model, [LanguageModelling(LmSpec()), objective])
    parts = module(batch, module.counts([batch]))
    assert parts["distill"].item() == 0.0 and parts["lm"].item() > 0
    module.loss(parts).backward()
    for parameter in objective.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


def test_text_beside_images_changes_nothing(make_model: Any, make_processor: Any) -> None:
    model, processor = make_model(), make_processor()
    objective, made = distill(model), mixture()
    alone = losses(model, objective, pack(processor, [made[0], made[3]]))
    beside = losses(model, objective, pack(processor, [made[0], made[1], made[3]], [made[4]]))
    torch.testing.assert_close(alone, beside, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["clip", "siglip2"])
def test_other_families_teach_too(make_model: Any, batch: Batch, family: str) -> None:
    model = make_model()
    found = losses(model, distill(model, Teacher(make_tower(family))), batch)
    assert 0.5 < float(found.detach()) < 1.5  # random directions
    found.backward()
    assert any(p.grad is not None and p.grad.any() for p in model.llm.parameters())


def test_the_teacher_is_no_part_of_what_is_trained_or_saved(make_model: Any, batch: Batch) -> None:
    model = make_model()
    objective = distill(model)
    module = TrainModule(model, [objective])
    heads = {f"heads.{i}.{name}.weight" for i in (0, 1) for name in (0, 1)}
    assert set(dict(objective.named_parameters())) == set(objective.state_dict()) == heads
    ours = {id(p) for p in module.parameters()} | {id(b) for b in module.buffers()}
    assert not ours & {id(p) for p in objective.teacher.model.parameters()}
    module.train()
    assert not objective.teacher.model.training
    before = {k: v.clone() for k, v in objective.teacher.model.state_dict().items()}
    losses(model, objective, batch).backward()
    assert all(p.grad is None for p in objective.teacher.model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in objective.teacher.model.state_dict().items())
    assert "objectives.distill.heads.1.0.weight" in canonical_parameters(module)


def test_gradients_reach_blocks_up_to_the_aligned_one(make_model: Any, batch: Batch) -> None:
    model = make_model()
    losses(model, distill(model, mode="block"), batch).backward()
    reached = [
        any(p.grad is not None and bool(p.grad.any()) for p in block.parameters())
        for block in model.blocks
    ]
    assert reached == [True, True, False]


def test_a_teacher_deeper_than_the_llm_is_refused(make_model: Any) -> None:
    teacher = Teacher(make_tower("aimv2", num_hidden_layers=4))
    with pytest.raises(RecipeError, match="teacher has 4 blocks, the LLM 3") as caught:
        distill(make_model(), teacher)
    assert "\n" not in str(caught.value)


def test_two_objectives_cannot_tap_one_block(make_model: Any, batch: Batch) -> None:
    model = make_model()
    one, other = distill(model), distill(model)
    other.name = "another"
    module = TrainModule(model, [one, other])
    with pytest.raises(ValueError, match="two objectives tap block 0"):
        module(batch, module.counts([batch]))


def test_weights_weigh(make_model: Any, batch: Batch) -> None:
    model = make_model()
    lm, other = LanguageModelling(LmSpec(weight=0.25)), distill(model, weight=3.0)
    module = TrainModule(model, [lm, other])
    parts = module(batch, module.counts([batch]))
    wanted = 0.25 * parts["lm"] + 3 * parts["distill"]
    torch.testing.assert_close(module.loss(parts), wanted)
