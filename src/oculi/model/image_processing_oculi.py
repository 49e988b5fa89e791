"""From a picture to flat uint8 patches at its own resolution and aspect ratio.

Pixels stay uint8 until the device: a quarter of the bytes through the loader, and one place (the
patch embedding) that knows mean and deviation.
"""

from typing import Any, ClassVar

import numpy as np
from PIL import ExifTags, Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .compress_oculi import token_count
from .grids_oculi import token_grid

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as training saw it: upright by EXIF, alpha over white, 16-bit grey scaled.

    ``oculi.data.images`` does the same when it reads a file, and needs neither torch nor transformers;
    this file travels without it. A test holds the two together.
    """
    turn = _TRANSPOSE.get(_orientation(image))
    rgb = _colours(image)
    if turn is None:
        return rgb
    rgb = rgb.transpose(turn)
    rgb.info.clear()  # with the EXIF left in, the next reader would rotate once more
    return rgb


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:
        return 1  # a damaged note about the picture does not make the picture unusable


def _colours(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion clamps, which makes most of 0..65535 white.
        values = np.asarray(image).astype(np.int32)
        scaled = ((values.clip(0, 65535) + 128) // 257).astype(np.uint8)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            scaled[values == transparent] = 255
        return Image.fromarray(scaled).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


class OculiImageProcessor(BaseImageProcessor):
    """Resizes to whole patches and cuts.

    Args:
        patch_size: side of a patch in pixels.
        mode: ``native`` keeps the aspect ratio and the resolution as far as the limits allow;
            ``square`` pads to a square with the mean colour and resizes to ``size``, as VoRA's fixed
            resolution does.
        size: side in pixels for ``square``; a multiple of ``patch_size``.
        min_patches, max_patches: limits of patches per image for ``native``.
        vision_tokens: the grid of tokens that the model's vision part makes of patches, where it is not
            a token a patch (``grids_oculi.py``).
        compress: the model's ``compress_config``, which says how many tokens are left of those.
        modalities: those for which the model has LoRA of its own (``routed_oculi.py``), in its order.

    Raises:
        ValueError: a setting is out of range.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values", "image_grids"]

    def __init__(
        self,
        patch_size: int = 14,
        mode: str = "native",
        size: int = 448,
        min_patches: int = 4,
        max_patches: int = 1024,
        image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073),
        compress: dict[str, Any] | None = None,
        vision_tokens: dict[str, Any] | None = None,
        modalities: list[str] | None = None,
        **kwargs: Any,  # transformers passes its own keys (auto_map, ...) this way
    ) -> None:
        super().__init__(**kwargs)
        if mode not in ("native", "square"):
            raise ValueError(f'image mode "{mode}" is neither native nor square')
        if mode == "square" and size % patch_size:
            raise ValueError(f"image size {size} is not a multiple of the patch size {patch_size}")
        if not 1 <= min_patches <= max_patches:
            raise ValueError(
                f"need 1 <= min_patches ({min_patches}) <= max_patches ({max_patches})"
            )
        self.patch_size, self.mode, self.size = patch_size, mode, size
        self.min_patches, self.max_patches = min_patches, max_patches
        self.image_mean = list(image_mean)
        self.vision_tokens, self.compress, self.modalities = vision_tokens, compress, modalities
        self.tokens((1, 1))  # an unknown kind is said here

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of patches for a picture of this size in pixels, without reading it."""
        if self.mode == "square":
            side = self.size // self.patch_size
            return side, side
        rows, columns = height / self.patch_size, width / self.patch_size
        area = rows * columns
        if area > self.max_patches:
            rows, columns = (v * (self.max_patches / area) ** 0.5 for v in (rows, columns))
        elif area < self.min_patches:
            rows, columns = (v * (self.min_patches / area) ** 0.5 for v in (rows, columns))
        rows = min(max(1, round(rows)), self.max_patches)
        columns = min(max(1, round(columns)), self.max_patches)
        # Rounding may miss a limit by a row; the longer side gives way. Where no grid of this shape
        # meets both (limits of 7 and 7), the upper one holds.
        while rows * columns < self.min_patches:
            rows, columns = (rows + 1, columns) if rows > columns else (rows, columns + 1)
        while rows * columns > self.max_patches:
            rows, columns = (rows - 1, columns) if rows > columns else (rows, columns - 1)
        return rows, columns

    def tokens(self, grid: tuple[int, int]) -> int:
        """Tokens in the LLM of a picture of so many rows and columns of patches."""
        return token_count(self.compress, *token_grid(self.vision_tokens, *grid))

    def patches(self, image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        """One picture to patches [rows * columns, 3 * p * p] uint8 and its (rows, columns)."""
        image = to_rgb(image)
        rows, columns = self.grid(*image.size)
        if self.mode == "square" and image.width != image.height:
            image = self._pad_to_square(image)
        target = (columns * self.patch_size, rows * self.patch_size)
        if image.size != target:
            image = image.resize(target, Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
        cut = pixels.reshape(rows, self.patch_size, columns, self.patch_size, 3)
        flat = cut.transpose(0, 2, 4, 1, 3).reshape(rows * columns, -1)
        return np.ascontiguousarray(flat), (rows, columns)

    def _pad_to_square(self, image: Image.Image) -> Image.Image:
        side = max(image.size)
        colour = tuple(round(255 * mean) for mean in self.image_mean)
        square = Image.new("RGB", (side, side), colour)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square

    def __call__(
        self, images: Image.Image | list[Image.Image], return_tensors: str | None = None
    ) -> BatchFeature:
        """``pixel_values`` [P, 3 * p * p] uint8 and ``image_grids`` [N, 2] int64 of all pictures."""
        images = [images] if isinstance(images, Image.Image) else list(images)
        cut = [self.patches(image) for image in images]
        data = {
            "pixel_values": np.concatenate([patches for patches, _ in cut]),
            "image_grids": np.array([grid for _, grid in cut], dtype=np.int64),
        }
        return BatchFeature(data=data, tensor_type=return_tensors)

    preprocess = __call__
