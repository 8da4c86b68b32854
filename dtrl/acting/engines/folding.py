"""A program with fewer nodes and the same function up to rounding: what a norm multiplies and adds goes into the weights of the products that follow.

W (γ ∘ z · √n + β) + b = (√n · W γ) z + (W β + b), where z are the centred n entries divided by the root of their sum of squares."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
STANDARDIZE = "dtrl.standardize"
"""What is left of a norm: an operation of the numpy engine alone, which no traced program has."""


@dataclass
class Node:
    """An operation of a program, its arguments, in which `{"r": i}` is register i, and the register of its result."""

    name: str
    arguments: list[Any]
    keywords: dict[str, Any]
    out: int

    @property
    def reads(self) -> list[int]:
        return registers_in([self.arguments, self.keywords])


def registers_in(value: Any) -> list[int]:
    if isinstance(value, dict):
        return [value["r"]] if "r" in value else [r for part in value.values() for r in registers_in(part)]
    return [r for part in value for r in registers_in(part)] if isinstance(value, list) else []


def fold_norms(nodes: list[Node], registers: list[Any], known: set[int], outputs: list[int]) -> None:
    """Rewrite in place the norms of the last axis that only products by `known` weights read; the new weights are registers at the end.

    Where a slice has cut the last axis itself, the weights of the product are fewer than the norm's, and it stays as it is."""
    readers: dict[int, list[Node]] = {}
    for node in nodes:
        for register in node.reads:
            readers.setdefault(register, []).append(node)
    for node in nodes:
        if node.name != "aten.layer_norm.default" or not known.issuperset(node.reads[1:]) or len(node.reads) != 3:
            continue
        x, _, weight, bias, *eps = node.arguments
        scale, shift = registers[weight["r"]], registers[bias["r"]]
        products = products_of(node.out, readers, known, outputs)
        if not products or any(registers[p.arguments[1]["r"]].shape[-1:] != scale.shape for p in products):
            continue
        for product in products:
            fold(product, scale, shift, registers, known)
        node.name, node.arguments = STANDARDIZE, [x, *eps]


def products_of(
    register: int, readers: dict[int, list[Node]], known: set[int], outputs: list[int]
) -> list[Node] | None:
    """The products by known weights through which alone a register is read, whole or in a slice; None where it is read otherwise."""
    if register in outputs:
        return None
    found: list[Node] = []
    for node in readers.get(register, []):
        if node.name == "aten.linear.default" and known.issuperset(node.reads[1:]) and node.reads[0] == register:
            found.append(node)
        elif node.name == "aten.slice.Tensor":
            further = products_of(node.out, readers, known, outputs)
            if further is None:
                return None
            found += further
        else:
            return None
    return found


def fold(product: Node, scale: Array, shift: Array, registers: list[Any], known: set[int]) -> None:
    """Have a product take entries that are neither scaled nor shifted. The sums are made in float64."""
    x, *parameters = product.arguments
    weight = registers[parameters[0]["r"]]
    bias = registers[parameters[1]["r"]] if len(parameters) > 1 and parameters[1] is not None else 0.0
    wide = weight.astype(np.float64)
    folded = wide * (math.sqrt(len(scale)) * scale.astype(np.float64)), wide @ shift.astype(np.float64) + bias
    product.arguments = [x, *({"r": len(registers) + i} for i in range(2))]
    known.update(range(len(registers), len(registers) + 2))
    registers += [part.astype(weight.dtype) for part in folded]
