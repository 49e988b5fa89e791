"""Weights of matrices as int8: onnxruntime's MatMulNBits, whose kernels read them as they are.

A column of a weight is cut into blocks of ``BLOCK`` inputs, each with a scale of its own, and rounded to
-127..127. Activations are quantised on the fly, in blocks as well (``accuracy_level`` 4). Against
``quantize_dynamic``, which has a scale a column and one for all activations: docs/edge.md.

Shapes: K inputs, N outputs of a matrix, G = K / BLOCK blocks, rounded up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
DOMAIN = "com.microsoft"
ZERO = 128  # what MatMulNBits takes for nought where no zero points are given
INT8_ACTIVATIONS = 4


def quantise(weight_KN: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A weight to its codes [N, G, BLOCK] uint8 and scales [N, G] float32, as MatMulNBits takes them."""
    inputs, outputs = weight_KN.shape
    blocks = -(-inputs // BLOCK)
    padded = np.zeros((outputs, blocks * BLOCK), np.float32)
    padded[:, :inputs] = weight_KN.T
    cut_NGB = padded.reshape(outputs, blocks, BLOCK)
    scales_NG = np.abs(cut_NGB).max(-1) / 127
    safe = np.where(scales_NG > 0, scales_NG, 1)
    codes = np.rint(cut_NGB / safe[..., None]) + ZERO
    return codes.astype(np.uint8), scales_NG.astype(np.float32)


def dequantise(
    codes_NGB: NDArray[np.uint8], scales_NG: NDArray[np.float32], inputs: int
) -> NDArray[np.float32]:
    """The weight [K, N] that codes and scales stand for."""
    values = (codes_NGB.astype(np.float32) - ZERO) * scales_NG[..., None]
    return values.reshape(len(codes_NGB), -1)[:, :inputs].T


def quantise_graph(model: Any) -> int:
    """Replace every product with a constant matrix of a graph, in place.

    Args:
        model: an ``onnx_ir.Model``.

    Returns:
        how many were replaced.
    """
    import onnx_ir as ir

    graph = model.graph
    done: dict[str, tuple[Any, Any]] = {}
    count = 0
    for node in list(graph):
        found = _matrix(node)
        if found is None:
            continue
        value, transposed = found
        if value.name not in done:
            weight = value.const_value.numpy().astype(np.float32)
            codes, scales = quantise(weight.T if transposed else weight)
            done[value.name] = tuple(
                _initializer(graph, f"{value.name}.{suffix}", array)
                for suffix, array in (("codes", codes), ("scales", scales))
            )
        outputs, inputs = done[value.name][0].shape[0], value.shape[0 if not transposed else 1]
        new = ir.Node(
            DOMAIN,
            "MatMulNBits",
            [node.inputs[0], *done[value.name]],
            [
                ir.AttrInt64("K", int(inputs)),
                ir.AttrInt64("N", int(outputs)),
                ir.AttrInt64("bits", 8),
                ir.AttrInt64("block_size", BLOCK),
                ir.AttrInt64("accuracy_level", INT8_ACTIVATIONS),
            ],
        )
        graph.insert_before(node, new)
        result = new.outputs[0]
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            added = ir.Node("", "Add", [result, node.inputs[2]])
            graph.insert_before(node, added)
            result = added.outputs[0]
        _replace(graph, node, result)
        count += 1
    for name in done:
        if not graph.initializers[name].uses():
            del graph.initializers[name]
    model.opset_imports[DOMAIN] = 1
    return count


def _matrix(node: Any) -> tuple[Any, bool] | None:
    """The constant [K, N] of a product, and whether it is stored transposed; None for other nodes."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm"):
        return None
    value = node.inputs[1]
    if value is None or value.const_value is None or len(value.shape) != 2:
        return None
    attributes = {name: one.value for name, one in node.attributes.items()}
    plain = attributes.get("alpha", 1) == attributes.get("beta", 1) == 1
    if not plain or attributes.get("transA", 0):
        return None
    return value, bool(attributes.get("transB", 0))


def _initializer(graph: Any, name: str, array: NDArray[Any]) -> Any:
    import onnx_ir as ir

    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _replace(graph: Any, node: Any, result: Any) -> None:
    old = node.outputs[0]
    result.type, result.shape = old.type, old.shape
    for user, index in list(old.uses()):
        user.replace_input_with(index, result)
    for i, output in enumerate(graph.outputs):
        if output is old:
            result.name, old.name = old.name, None
            graph.outputs[i] = result
    graph.remove(node, safe=True)
