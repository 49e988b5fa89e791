"""Reconstructive training (VLSA, section 3.1, equations 3 and 4).

    picture ── frozen VAE ── z ── noise of level t ── z_t ─┐
                                                          ▼
    V, P of the vision part ── Epigone ── prompt, pooled ── denoiser ── z again

What the LLM is given of a picture stands in for the prompt of a text-to-image model, which must restore
the picture from noise: what V and P do not hold, it cannot. Noise is SD3's: z_t = (1 - t) z + t e, and
the denoiser tells e - z (arXiv 2403.03206, sections 2 and 3), so the z that it stands for is z_t - t v.

Legend: N images, G of them with as many tokens each, s; D the LLM's width; E of a prompt, J of a pooled
embedding; C x h x w of a latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oculi.batch import Batch
from oculi.errors import RecipeError
from oculi.model import OculiForConditionalGeneration, OculiOutput
from oculi.model.taps_oculi import VISION, Reducer, Seen
from oculi.objectives.base import Objective
from oculi.objectives.exhibit import Exhibit
from oculi.objectives.latents import DENOISER, VAE, Autoencoder, load_part, pictures
from oculi.objectives.restoring import exhibit
from oculi.recipe import ReconstructSpec

TIMES = 1000  # SD3's scale of a noise level


class Epigone(nn.Module):
    """A low-rank MLP from visual embeddings to those of a prompt (section 4.1).

    The paper's has one output width; SD3's pooled embedding has another than its prompt's, so what is
    made of P leaves through a layer of its own.

    Args:
        width: D, of V and P. rank: between the two layers.
        prompt: E. pooled: J.
    """

    def __init__(self, width: int, rank: int, prompt: int, pooled: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank)
        self.prompt = nn.Linear(rank, prompt)
        self.pooled = nn.Linear(rank, pooled)

    def forward(self, tokens_GsD: Tensor, whole_GD: Tensor) -> tuple[Tensor, Tensor]:
        """V [G, s, D] and P [G, D] to prompt embeddings [G, s, E] and pooled ones [G, J]."""
        prompt: Tensor = self.prompt(F.silu(self.down(tokens_GsD)))
        pooled: Tensor = self.pooled(F.silu(self.down(whole_GD)))
        return prompt, pooled


@dataclass(frozen=True)
class Noised:
    """What is known of a batch's images before the model runs: z, e [N, C, h, w], and t [N].

    Attributes:
        images: the pictures themselves, [N, 3, H, W], where they are to be shown.
    """

    latents: Tensor
    noise: Tensor
    times: Tensor
    images: Tensor | None = None

    @property
    def mixed(self) -> Tensor:
        """z_t."""
        times = self.times[:, None, None, None]
        return (1 - times) * self.latents + times * self.noise


class Reconstruct(Objective):
    """Squared error of the restored latent, a mean over its elements, one unit an image.

    Args:
        spec: see there.
        denoiser: an ``SD3Transformer2DModel``. autoencoder: of its latents.
        width: D, the LLM's width.

    Raises:
        RecipeError: denoiser and autoencoder do not fit each other, or the size.
    """

    name = "reconstruct"

    def __init__(
        self, spec: ReconstructSpec, denoiser: nn.Module, autoencoder: Autoencoder, width: int
    ) -> None:
        super().__init__()
        self.weight, self.spec, self.shown = spec.weight, spec, spec.shown
        self._exhibits: list[Exhibit] | None = None  # while it shows
        self.denoiser: Any = denoiser
        config: Any = self.denoiser.config
        self._autoencoder = (autoencoder,)  # in a tuple: not a submodule
        _check_fit(spec, config, autoencoder)
        self.epigone = Epigone(
            width, spec.rank, config.joint_attention_dim, config.pooled_projection_dim
        )
        if spec.checkpointing:
            denoiser.enable_gradient_checkpointing()  # type: ignore[operator]

    @classmethod
    def from_spec(cls, spec: ReconstructSpec, model: OculiForConditionalGeneration) -> Reconstruct:
        """With the checkpoints that the spec names."""
        autoencoder = Autoencoder(load_part(spec.vae, VAE))
        return cls(spec, load_part(spec.denoiser, DENOISER), autoencoder, model.width)

    @property
    def autoencoder(self) -> Autoencoder:
        return self._autoencoder[0]

    @property
    def frozen(self) -> nn.Module:
        model: nn.Module = self.autoencoder.model
        return model

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        # float32 whatever the stage computes in: bfloat16 has too few digits for a target.
        self.autoencoder.model.to(device)

    def prepare(self, batch: Batch) -> Noised | None:
        """Latents, noise and noise levels of the batch's images, drawn with torch's dice."""
        if not len(batch.grids_N2):
            return None
        with torch.autocast(batch.patches_PC.device.type, enabled=False):
            images = pictures(batch.patches_PC, batch.grids_N2, self.spec.size)
            latents = self.autoencoder.encode(images)
        if self._exhibits is None:
            return Noised(latents, torch.randn_like(latents), self._times(latents))
        # The same at every checkpoint, and made in host memory: on any device.
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        return Noised(latents, noise.to(latents.device), latents.new_zeros(len(latents)), images)

    @contextmanager
    def showing(self, found: list[Exhibit]) -> Iterator[None]:
        """Restores the images of each batch that has two or more, instead of a loss."""
        self._exhibits = found
        try:
            yield
        finally:
            self._exhibits = None

    def _show(self, seen: Seen, noised: Noised) -> Tensor:
        assert self._exhibits is not None and noised.images is not None
        if len(noised.images) > 1:  # of one alone there is no other's to compare with
            found = exhibit(self, seen, noised.images, noised.latents, noised.noise)
            self._exhibits.append(found)
        return noised.times.sum()

    def _times(self, latents: Tensor) -> Tensor:
        """Noise levels in (0, 1), one an image; float32. Shifted as in arXiv 2403.03206, 5.3.2."""
        if self.spec.times == "uniform":
            drawn = torch.rand(len(latents), device=latents.device)
        else:
            drawn = torch.randn(len(latents), device=latents.device).sigmoid()
        return self.spec.shift * drawn / (1 + (self.spec.shift - 1) * drawn)

    def taps(self, prepared: Noised | None) -> Mapping[Any, Reducer]:
        if prepared is None:
            return {}
        if self._exhibits is not None:
            return {VISION: lambda seen: self._show(seen, prepared)}
        return {VISION: lambda seen: self.errors(seen, prepared).sum()}

    def count(self, batch: Batch) -> int:
        """Images."""
        return len(batch.grids_N2)

    def total(self, output: OculiOutput, batch: Batch, prepared: Noised | None) -> Tensor:
        if prepared is None:
            # Touch what is trained, so that a text-only batch has gradients (zeros) for all of it.
            zero = torch.zeros((), device=self.epigone.down.weight.device)
            return sum((p.sum().float() * 0.0 for p in self.parameters() if p.requires_grad), zero)
        assert output.taps is not None
        total: Tensor = output.taps[VISION]
        return total

    def errors(self, seen: Seen, noised: Noised) -> Tensor:
        """The loss of each image [N], float32; equation 3, or SD3's own."""
        velocity = self.velocity(seen, noised.mixed, noised.times).float()
        if self.spec.target == "flow":
            difference = velocity - (noised.noise - noised.latents)
        else:
            times = noised.times[:, None, None, None]
            difference = noised.mixed - times * velocity - noised.latents
        return difference.square().flatten(1).mean(1)

    def velocity(self, seen: Seen, mixed: Tensor, times: Tensor) -> Tensor:
        """What the denoiser makes of noisy latents [N, C, h, w] at levels [N]: an estimate of e - z.

        Images with as many tokens go through it together: SD3 knows no mask over a prompt.
        """
        images = seen.of_each()
        groups: dict[int, list[int]] = {}
        for i, (tokens, _) in enumerate(images):
            groups.setdefault(len(tokens), []).append(i)
        found: list[Tensor] = [mixed[:0]] * len(images)
        dtype = next(self.denoiser.parameters()).dtype
        for members in groups.values():
            chosen = torch.tensor(members, device=mixed.device)
            tokens_GsD = torch.stack([images[i][0] for i in members])
            whole_GD = torch.stack([images[i][1] for i in members])
            own = self.epigone.down.weight.dtype
            prompt, pooled = self.epigone(tokens_GsD.to(own), whole_GD.to(own))
            made = self.denoiser(
                hidden_states=mixed[chosen].to(dtype),
                encoder_hidden_states=prompt.to(dtype),
                pooled_projections=pooled.to(dtype),
                timestep=times[chosen] * TIMES,
                return_dict=False,
            )[0]
            for place, i in enumerate(members):
                found[i] = made[place]
        return torch.stack(found)


def _check_fit(spec: ReconstructSpec, config: Any, autoencoder: Autoencoder) -> None:
    """Raises RecipeError where denoiser, autoencoder and size do not fit."""
    if config.in_channels != autoencoder.channels:
        raise RecipeError(
            f"the denoiser {spec.denoiser} takes latents of {config.in_channels} channels, {spec.vae} "
            f"makes {autoencoder.channels}: choose the autoencoder that it was trained with"
        )
    step = autoencoder.factor * config.patch_size
    most = config.pos_embed_max_size * step
    if spec.size % step or spec.size > most:
        raise RecipeError(
            f"reconstruct: size {spec.size} must be a multiple of {step} and at most {most}, as "
            f"{spec.denoiser} has positions for"
        )
