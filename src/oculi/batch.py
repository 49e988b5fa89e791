"""What flows from the data to the model and the objectives.

Legend: B rows, T tokens of a row, P patches, C = 3 * patch_size**2, N images, R label rows.

One row holds several samples (packing). For a row with samples ``A`` (text, a 2-token image, text)
and ``B`` (text)::

    tokens      a1  #   #   a2  a3  b1  b2  pad
    segments     0  0   0   0   0   1   1   -1
    images      -1  0   0  -1  -1  -1  -1   -1
    positions    0  1   2   3   4   0   1    0

A sample of which the turns stand side by side (``separate_turns``) has branches: ``p`` and an image that
both see, then ``e f`` and ``g h``::

    tokens       p  #   #   e   f   g   h
    branches     0  0   0   1   1   2   2
    positions    0  1   2   3   4   3   4
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

_LIKE_TOKENS = (
    "positions_BT", "segments_BT", "images_BT", "prompt_BT", "branches_BT", "modality_BT",
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """One micro-batch, checked when it is made.

    Attributes:
        tokens_BT: int64; image positions hold the image token's id.
        positions_BT: int64, restarting in every sample, and where a sample branches.
        segments_BT: int64, the sample of a token within its row, -1 for padding.
        images_BT: int64, the image of a token, -1 for text; ids count up over the whole batch.
        prompt_BT: bool, tokens before the first answer of their sample.
        label_rows_R: int64 into B * T, positions whose next token is an answer's.
        targets_R: int64, that next token.
        patches_PC: uint8, patches of all images in order.
        grids_N2: int64, rows and columns of each image.
        sample_ids: the samples in it, for messages.
        branches_BT: int64, the branch of a token within its sample, 0 for what all of them see; None
            where no sample branches.
        modality_BT: int64, whose routed LoRA a token goes through, 0 for none; None: image tokens go
            through that of images, if the model has any.
        labels_per_row: the most label rows that one row has. Counted where the batch is made, so that
            a device need not be waited for; None: it was made on one.
    """

    tokens_BT: Tensor
    positions_BT: Tensor
    segments_BT: Tensor
    images_BT: Tensor
    prompt_BT: Tensor
    label_rows_R: Tensor
    targets_R: Tensor
    patches_PC: Tensor
    grids_N2: Tensor
    sample_ids: tuple[str, ...] = ()
    branches_BT: Tensor | None = None
    modality_BT: Tensor | None = None
    labels_per_row: int | None = None

    def __post_init__(self) -> None:
        shape = self.tokens_BT.shape
        for name in _LIKE_TOKENS:
            found = getattr(self, name)
            if found is not None and found.shape != shape:
                raise ValueError(f"{name} is {tuple(found.shape)}, tokens {tuple(shape)}")
        if self.label_rows_R.shape != self.targets_R.shape:
            raise ValueError("label_rows_R and targets_R differ in length")
        if self.patches_PC.device.type != "cpu":
            return  # checked where it was made; here it would stop the device
        self._check_images()
        rows = self.label_rows_R.numpy() // shape[1]
        object.__setattr__(self, "labels_per_row", int(np.bincount(rows, minlength=1).max()))

    def _check_images(self) -> None:
        images = int(self.images_BT.numpy().max()) + 1 if self.images_BT.numel() else 0
        if images != len(self.grids_N2):
            raise ValueError(f"{images} images in the tokens, {len(self.grids_N2)} grids")
        patches = int(self.grids_N2.numpy().prod(-1).sum()) if images else 0
        if patches != len(self.patches_PC):
            raise ValueError(f"the grids hold {patches} patches, patches_PC {len(self.patches_PC)}")

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.sample_ids)

    @property
    def tokens(self) -> int:
        """Number of tokens that are not padding."""
        return _not_negative(self.segments_BT)

    @property
    def vision_tokens(self) -> int:
        """Number of image positions."""
        return _not_negative(self.images_BT)

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device; grids stay on the CPU, where they are read."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor) and field.name != "grids_N2"
        }
        return replace(self, **moved)

    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments of the model's ``forward``."""
        has_images = len(self.grids_N2) > 0
        return {
            "input_ids": self.tokens_BT,
            "position_ids": self.positions_BT,
            "segment_ids": self.segments_BT,
            "branch_ids": self.branches_BT,
            "modality_ids": self.modality_BT,
            "image_ids": self.images_BT,
            "prompt_mask": self.prompt_BT,
            "pixel_values": self.patches_PC if has_images else None,
            "image_grids": self.grids_N2 if has_images else None,
            "label_rows": self.label_rows_R,
            "labels_per_row": self.labels_per_row,
            "use_cache": False,
        }


def empty_batch() -> Batch:
    """One token without a label, for a rank that has nothing while others take a micro-batch."""
    one = torch.zeros((1, 1), dtype=torch.int64)
    none = torch.zeros(0, dtype=torch.int64)
    return Batch(
        tokens_BT=one,
        positions_BT=one,
        segments_BT=one,
        images_BT=one - 1,
        prompt_BT=one.bool(),
        label_rows_R=none,
        targets_R=none,
        patches_PC=torch.zeros((0, 0), dtype=torch.uint8),
        grids_N2=none.reshape(0, 2),
    )


def _not_negative(ids: Tensor) -> int:
    # By numpy: counted where the loader made the batch, and no operation of torch waits for it.
    return int((ids.cpu().numpy() >= 0).sum())
