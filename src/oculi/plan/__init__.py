"""What a recipe costs before anything is spent: parameters, products, memory and the least time.

Everything is computed from configurations: the modules that training builds are built on the meta
device, and one pass over them is watched. No weights, no network, no GPU.
"""

from __future__ import annotations

from oculi.plan.report import Plan, plan
from oculi.plan.sample import picture_size

__all__ = ["Plan", "picture_size", "plan"]
