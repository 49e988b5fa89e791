"""Reconstructive training, against computations by hand; runs are in `training/`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion import SIZE, make_sd3, make_vae, save_pipeline
from helpers import Tiny, mixture
from oculi.batch import Batch, empty_batch
from oculi.data.loader import collate, encode_sample
from oculi.errors import CheckpointError, RecipeError
from oculi.model import OculiOutput
from oculi.model.taps_oculi import Seen
from oculi.objectives import LanguageModelling, Reconstruct, build_objectives
from oculi.objectives.exhibit import Exhibit
from oculi.objectives.latents import DENOISER, VAE, Autoencoder, load_part, pictures
from oculi.objectives.reconstruct import Noised
from oculi.recipe import LmSpec, ReconstructSpec
from oculi.training.module import TrainModule, canonical_parameters

CHANNELS = 3 * 4**2
WIDTH = 32


def pack(processor: Any, *rows: Any) -> Batch:
    encoded = [[(s.id, encode_sample(s, processor)) for s in row] for row in rows]
    return collate(encoded, CHANNELS)


@pytest.fixture
def batch(make_processor: Callable[..., Any]) -> Batch:
    made = mixture()
    return pack(make_processor(), made[:3], made[3:])


def objective(**settings: Any) -> Reconstruct:
    torch.manual_seed(5)
    spec = ReconstructSpec(denoiser="d", vae="v", **{"size": SIZE, "rank": 6, **settings})
    return Reconstruct(spec, make_sd3(), Autoencoder(make_vae()), WIDTH)


def seen(counts: tuple[int, ...], pooled: bool = True) -> Seen:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(sum(counts), WIDTH, generator=generator)
    whole = torch.randn(len(counts), WIDTH, generator=generator) if pooled else None
    return Seen(tokens, counts, whole)


def noised(count: int, seed: int = 4) -> Noised:
    generator = torch.Generator().manual_seed(seed)
    latents, noise = (torch.randn(count, 4, 8, 8, generator=generator) for _ in range(2))
    return Noised(latents, noise, torch.rand(count, generator=generator))


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------ the loss


@torch.no_grad()
def test_the_loss_by_hand() -> None:
    """Equation 3 through SD3's own prediction, and SD3's flow matching."""
    made, data, view = objective(), noised(1), seen((5,))
    z, e, t = data.latents, data.noise, float(data.times)
    low = view.tokens_SD @ made.epigone.down.weight.T + made.epigone.down.bias
    prompt = F.silu(low) @ made.epigone.prompt.weight.T + made.epigone.prompt.bias
    assert view.pooled_ND is not None
    low = view.pooled_ND @ made.epigone.down.weight.T + made.epigone.down.bias
    pooled = F.silu(low) @ made.epigone.pooled.weight.T + made.epigone.pooled.bias
    mixed = (1 - t) * z + t * e
    v = make_sd3()(mixed, prompt[None], pooled, torch.tensor([1000 * t]), return_dict=False)[0]
    close(made.errors(view, data), ((z - (mixed - t * v)) ** 2).mean().reshape(1))
    flow = objective(target="flow").errors(view, data)
    close(flow, ((v - (e - z)) ** 2).mean().reshape(1))
    close(made.errors(view, data), t**2 * flow)  # the paper's is SD3's, weighted by the level


@torch.no_grad()
def test_images_do_not_see_each_other() -> None:
    """Whatever the number of their tokens; and each has its own condition."""
    made, counts = objective(), (5, 3, 5, 1)
    view, data = seen(counts), noised(4)
    together = made.errors(view, data)
    for i, (tokens, whole) in enumerate(view.of_each()):
        alone = Seen(tokens, (len(tokens),), whole[None])
        one = Noised(data.latents[i : i + 1], data.noise[i : i + 1], data.times[i : i + 1])
        close(made.errors(alone, one), together[i : i + 1])
    other = Seen(view.tokens_SD.flip(0), counts, view.pooled_ND)
    # At a low level little is left to the condition.
    assert ((made.errors(other, data) - together).abs() > 1e-4 * together).all()


def test_without_a_global_embedding_the_mean_takes_its_place() -> None:
    view = seen((4, 2), pooled=False)
    wanted = torch.stack([part.mean(0) for part in view.tokens_SD.split((4, 2))])
    full = Seen(view.tokens_SD, (4, 2), wanted)
    data = noised(2)
    assert torch.equal(objective().errors(view, data), objective().errors(full, data))


@torch.no_grad()
def test_noise_comes_from_torchs_dice(batch: Batch) -> None:
    made = objective()
    torch.manual_seed(1)
    first, second = made.prepare(batch), made.prepare(batch)
    torch.manual_seed(1)
    again = made.prepare(batch)
    assert first is not None and second is not None and again is not None
    assert torch.equal(first.noise, again.noise) and torch.equal(first.times, again.times)
    assert not torch.equal(first.noise, second.noise)
    assert torch.equal(first.latents, second.latents)  # the target is no draw
    images = len(batch.grids_N2)
    assert first.latents.shape == (images, 4, 8, 8) and first.times.shape == (images,)


@torch.no_grad()
def test_times(monkeypatch: pytest.MonkeyPatch) -> None:
    many = torch.zeros(20_000, 1)
    torch.manual_seed(0)
    uniform = objective()._times(many)
    assert (uniform.mean() - 0.5).abs() < 0.01 and (uniform.var() - 1 / 12).abs() < 0.002
    normal = objective(times="logit-normal")._times(many).logit()
    assert normal.mean().abs() < 0.03 and (normal.std() - 1).abs() < 0.03


@torch.no_grad()
def test_a_shift_of_noise_levels() -> None:
    """Half of the noise becomes three quarters by 3, the odds of noise thrice theirs; 1 is none."""
    few = torch.zeros(1000, 1)

    def times(**settings: Any) -> Tensor:
        built = objective(**settings)
        torch.manual_seed(0)
        return built._times(few)

    plain, shifted = times(), times(shift=3.0)
    odds = shifted.double() / (1 - shifted.double())
    torch.testing.assert_close(odds, 3 * plain.double() / (1 - plain.double()), rtol=0.01, atol=0)
    assert torch.equal(times(shift=1.0), plain)
    assert abs(float(times(shift=3.0, times="logit-normal").median()) - 0.75) < 0.02


@torch.no_grad()
def test_latents_are_scaled_and_back_again() -> None:
    vae, image = make_vae(), torch.rand(2, 3, SIZE, SIZE) * 255
    mean = vae.encode(image / 127.5 - 1).latent_dist.mean
    own = Autoencoder(vae)
    close(own.encode(image), (mean - 0.1) * 1.5)
    close(own.decode(own.encode(image)), ((vae.decode(mean).sample + 1) * 127.5).clamp(0, 255))


def test_pictures_of_any_shape_become_squares() -> None:
    patches = torch.randint(0, 256, (16 + 3, CHANNELS), dtype=torch.uint8)
    found = pictures(patches, torch.tensor([[4, 4], [1, 3]]), SIZE)
    assert found.shape == (2, 3, SIZE, SIZE) and found.min() >= 0 and found.max() <= 255
    block = patches[0].view(3, 4, 4).float()
    assert torch.equal(found[0, :, :4, :4], block)  # as it was cut: no scaling, no shift


# ---------------------------------------------------------------------------------- as an objective


def test_the_sum_is_over_images(make_model: Any, batch: Batch) -> None:
    model, made = make_model(), objective()
    assert made.count(batch) == len(batch.grids_N2) == 6
    module = TrainModule(model, [made])
    torch.manual_seed(2)
    found = module(batch, {"reconstruct": 1})["reconstruct"]
    torch.manual_seed(2)
    data = made.prepare(batch)
    assert data is not None
    tokens = model.vision(batch.patches_PC, batch.grids_N2)
    view = Seen(tokens, tuple(batch.grids_N2.prod(-1).tolist()))
    close(found, made.errors(view, data).sum())
    torch.manual_seed(2)
    close(module(batch, module.counts([batch]))["reconstruct"], found / 6)


def test_text_alone_has_no_loss_and_zero_gradients(make_model: Any, make_processor: Any) -> None:
    made = objective()
    made.denoiser.requires_grad_(False)
    batch = pack(make_processor(), [s for s in mixture() if not s.images])
    module = TrainModule(make_model(), [LanguageModelling(LmSpec()), made])
    parts = module(batch, module.counts([batch]))
    assert parts["reconstruct"].item() == 0.0 and parts["lm"].item() > 0
    module.loss(parts).backward()
    for parameter in made.epigone.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
    assert all(parameter.grad is None for parameter in made.denoiser.parameters())


@pytest.mark.parametrize("trained", [True, False])
def test_text_alone_has_its_loss_where_the_objective_lies(trained: bool) -> None:
    """Where nothing of it is trained too: a GPU adds no number that lies in main memory."""
    made = objective().requires_grad_(trained).to("meta")
    part = made.total(OculiOutput(), empty_batch(), None)
    assert part.device.type == "meta" and part.dtype == torch.float32
    assert part.requires_grad == trained


def test_the_autoencoder_is_no_part_of_what_is_trained_or_saved(
    make_model: Any, batch: Batch
) -> None:
    made = objective()
    module = TrainModule(make_model(), [made])
    tops = {name.split(".")[0] for name, _ in made.named_parameters()}
    assert tops == {"denoiser", "epigone"} and made.frozen is made.autoencoder.model
    names = canonical_parameters(module)
    assert {"objectives.reconstruct.epigone.down.weight"} <= names.keys()
    assert any(name.startswith("objectives.reconstruct.denoiser.") for name in names)
    module.train()
    assert not made.autoencoder.model.training
    module(batch, {"reconstruct": 1})["reconstruct"].backward()
    assert all(p.grad is None for p in made.autoencoder.model.parameters())
    missing = [n for n, p in made.epigone.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_gradients_reach_the_vision_part_and_no_block(make_model: Any, batch: Batch) -> None:
    model = make_model()
    TrainModule(model, [objective()])(batch, {"reconstruct": 1})["reconstruct"].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.vision.parameters())
    assert all(p.grad is None for p in model.blocks.parameters())


def test_recomputed_activations_change_nothing(make_model: Any, batch: Batch) -> None:
    gradients = []
    for again in (False, True):
        model, made = make_model(), objective(checkpointing=again)
        torch.manual_seed(3)
        TrainModule(model, [made]).train()(batch, {"reconstruct": 1})["reconstruct"].backward()
        assert made.denoiser.gradient_checkpointing is again
        gradients.append(model.vision.patch.weight.grad)
    close(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 18}, "size 18 must be a multiple of 4 and at most 32"),
        ({"size": 64}, "size 64 must be a multiple of 4 and at most 32"),
    ],
)
def test_a_size_that_does_not_fit(change: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        objective(**change)


def test_parts_that_do_not_fit() -> None:
    spec = ReconstructSpec(denoiser="d", vae="v", size=SIZE)
    with pytest.raises(RecipeError, match="d takes latents of 4 channels, v makes 6"):
        Reconstruct(spec, make_sd3(), Autoencoder(make_vae(latent_channels=6)), WIDTH)


# -------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("pipeline"))


def test_parts_of_a_pipeline_or_alone(pipeline: Path) -> None:
    for name in (pipeline, pipeline / "vae"):
        found = load_part(str(name), VAE).state_dict()
        assert all(torch.equal(found[key], value) for key, value in make_vae().state_dict().items())
    assert load_part(str(pipeline), DENOISER).config.joint_attention_dim == 12


def test_what_is_not_a_part_is_one_line(pipeline: Path, tiny: Tiny, tmp_path: Path) -> None:
    cases = [
        (str(pipeline / "vae"), DENOISER, "is a AutoencoderKL, not diffusers' SD3Transformer2DModel"),
        (str(tiny.teacher), VAE, "is a aimv2_vision_model, not diffusers' AutoencoderKL"),
        (str(tmp_path / "none"), VAE, "is no folder"),
        (str(tmp_path), VAE, "no folder"),
    ]  # fmt: skip
    for name, part, said in cases:
        with pytest.raises(CheckpointError, match=said) as caught:
            load_part(name, part)
        assert "\n" not in str(caught.value)


def test_specs_become_objectives(make_model: Any, pipeline: Path) -> None:
    parts = {"denoiser": str(pipeline), "vae": str(pipeline)}
    spec = ReconstructSpec(**parts, size=SIZE, rank=6, weight=0.5)
    (made,) = build_objectives([spec], make_model())
    assert isinstance(made, Reconstruct) and made.weight == 0.5
    assert made.epigone.down.out_features == 6


# ------------------------------------------------------------------------------------------- showing


@torch.no_grad()
def test_shown_are_own_tokens_beside_those_of_the_next(batch: Batch, tiny: Tiny) -> None:
    """By hand: z_t - t v from what is given of the image, and of the one after it."""
    made, found = objective(), list[Exhibit]()
    with made.showing(found):
        prepared = made.prepare(batch)
        assert prepared is not None
        count = len(batch.grids_N2)
        view = seen((3, 2, 4)[:count] if count <= 3 else (3, 2, 4, 2, 2, 3)[:count])
        made.taps(prepared)["vision"](view)
    (shown,) = found
    z, e = prepared.latents, prepared.noise
    mixed = 0.1 * z + 0.9 * e
    each = view.of_each()
    for name, order in (("own", list(range(count))), ("shuffled", [*range(1, count), 0])):
        given = [each[i] for i in order]
        other = Seen(
            torch.cat([tokens for tokens, _ in given]), tuple(len(tokens) for tokens, _ in given),
            torch.stack([whole for _, whole in given]),
        )  # fmt: skip
        v = made.velocity(other, mixed, torch.full((count,), 0.9))
        wanted = made.autoencoder.decode(mixed - 0.9 * v).round().to(torch.uint8)
        found_pixels = torch.from_numpy(shown.rows[f"{name} tokens"]).permute(0, 3, 1, 2)
        assert (found_pixels.int() - wanted.int()).abs().max() <= 1
    originals = pictures(batch.patches_PC, batch.grids_N2, SIZE).round().to(torch.uint8)
    assert torch.equal(torch.from_numpy(shown.rows["picture"]).permute(0, 3, 1, 2), originals)
    assert all(len(values) == count for values in shown.scores.values())


@torch.no_grad()
def test_what_is_shown_is_the_same_each_time_and_the_loss_as_before(batch: Batch) -> None:
    made = objective()
    torch.manual_seed(1)
    before = made.prepare(batch)
    noises = []
    for seed in (2, 3):
        torch.manual_seed(seed)
        with made.showing([]):
            prepared = made.prepare(batch)
            assert prepared is not None and prepared.images is not None
            noises.append(prepared.noise)
            dice = torch.get_rng_state()
        assert torch.equal(dice, torch.Generator().manual_seed(seed).get_state())  # none was drawn
    assert torch.equal(*noises)
    torch.manual_seed(1)
    after = made.prepare(batch)
    assert before is not None and after is not None and after.images is None
    assert torch.equal(before.noise, after.noise)


def test_one_image_has_no_other_to_compare_with(make_processor: Callable[..., Any]) -> None:
    made, found = objective(), list[Exhibit]()
    (one,) = [sample for sample in mixture() if len(sample.images) == 1][:1]
    batch = pack(make_processor(), [one])
    with made.showing(found):
        assert float(made.taps(made.prepare(batch))["vision"](seen((3,)))) == 0
        assert made.prepare(empty_batch()) is None
    assert found == []
