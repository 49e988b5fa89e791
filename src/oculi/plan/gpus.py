"""GPUs by name: what a bound on time and memory needs to know of them.

Two rates, both for dense bfloat16 products with float32 sums. ``peak`` is the data sheet's. ``matmul``
is the best that was measured for one large matrix product: power and clocks keep it below the peak, so
no training step is faster. Bounds are computed from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from oculi.errors import RecipeError, nearest

# Share of the peak that large products reach, where no measurement was found: that of H100 and H200.
UNMEASURED = 0.8


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        peak: FLOP/s of the data sheet, dense bfloat16.
        matmul: FLOP/s of large bfloat16 matrix products. Measured, or ``UNMEASURED`` of the peak.
        measured: whether ``matmul`` is.
        memory: bytes, the data sheet's GB as 10**9; a little more is left of the chips' GiB for use.
    """

    name: str
    peak: float
    matmul: float
    measured: bool
    memory: int


def _gpu(name: str, peak_tflops: float, memory_gb: int, matmul_tflops: float | None = None) -> Gpu:
    matmul = UNMEASURED * peak_tflops if matmul_tflops is None else matmul_tflops
    measured = matmul_tflops is not None
    return Gpu(name, peak_tflops * 1e12, matmul * 1e12, measured, memory_gb * 10**9)


# Peaks without sparsity. "Measured" is the table "Maximum Achievable Matmul FLOPS" in
# compute/accelerator/README.md of stas00/ml-engineering, a mean of 100 products at the best shape found.
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        # NVIDIA DGX B200 data sheet (180 GB of memory for each GPU); measured 1745.
        _gpu("b200", 2250, 180, 1745),
        # NVIDIA H200 data sheet, SXM. Measured 794.5 on an H100 SXM, "H200 is the same": rounded down.
        _gpu("h200", 989, 141, 790),
        # NVIDIA H100 data sheet, SXM; measured 794.5, rounded down.
        _gpu("h100", 989, 80, 790),
        # AMD Instinct MI300X data sheet: 1307; measured 668.4.
        _gpu("mi300x", 1307, 192, 668.4),
        # NVIDIA A100 data sheet, SXM with 80 GB; measured 271.2.
        _gpu("a100", 312, 80, 271.2),
        # NVIDIA L40S data sheet.
        _gpu("l40s", 362, 48),
        # NVIDIA L4 data sheet: 242 with sparsity.
        _gpu("l4", 121, 24),
        # NVIDIA RTX Blackwell architecture paper, appendix: bfloat16 with float32 sums.
        _gpu("rtx5090", 209.5, 32),
        # NVIDIA Ada architecture paper, appendix: bfloat16 with float32 sums.
        _gpu("rtx4090", 165.2, 24),
        # NVIDIA Ampere GA102 architecture paper, appendix: bfloat16 with float32 sums.
        _gpu("rtx3090", 71, 24),
    )
}


def find_gpu(name: str) -> Gpu:
    """A GPU by name; raises RecipeError, with the nearest name, where there is none."""
    found = GPUS.get(name.lower())
    if found is None:
        raise RecipeError(
            f'--gpu: no GPU "{name}"{nearest(name, GPUS)}; there are {", ".join(GPUS)}'
        )
    return found
