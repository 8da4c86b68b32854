"""A traced function as data, and what runs it, in NumPy without torch.

A program is a list of nodes over registers: each names one of the `OPERATIONS` and its arguments, where `{"r": i}` is register i. Constants come
first, then inputs. Nothing else in it is ever called, so that a program from a file is data."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dtrl.acting.engines.base import Part, picker
from dtrl.acting.engines.folding import STANDARDIZE, Node, fold_norms, registers_in
from dtrl.acting.engines.operations import ALIASES, OPERATIONS
from dtrl.errors import InputError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Array = npt.NDArray[Any]


def known_document(program: "ExportedProgram", engine: str, remedy: str) -> Part:
    """A traced program as data (`exporting.as_document`). Raises InputError for an operation that is not among `OPERATIONS`; `remedy` says what to do."""
    from dtrl.acting.engines.exporting import as_document

    document, arrays = as_document(program)
    if unknown := {name for name, *_ in document["nodes"]} - OPERATIONS.keys():
        raise InputError(
            f"the {engine} engine cannot express {', '.join(sorted(unknown))}, which this model uses; {remedy}."
        )
    return document, arrays


class Program:
    """Runs a program by `operations`. Nodes that no input reaches are computed once, here, and norms are folded (`folding`) where that is one of them."""

    def __init__(
        self,
        document: Mapping[str, Any],
        tensors: Mapping[str, Any],
        operations: Mapping[str, Callable[..., Any]] = OPERATIONS,
    ) -> None:
        self.inputs: list[str] = document["inputs"]
        self.outputs = document["outputs"]
        self.fill = picker(self.outputs)
        constants: list[str] = document["constants"]
        first, known = len(constants), set(range(len(constants)))
        size = first + len(self.inputs) + len(document["nodes"])
        registers: list[Any] = [tensors[name] for name in constants] + [None] * (size - first)
        nodes: list[Node] = []
        for i, (name, arguments, keywords) in enumerate(document["nodes"], first + len(self.inputs)):
            if name not in operations:
                raise InputError(f"this engine does not know the operation {name}; export for another engine.")
            node = Node(name, arguments, keywords, i)
            if known.issuperset(node.reads):
                step_of(node, operations).run(registers)
                known.add(i)
            else:
                nodes.append(node)
        if STANDARDIZE in operations:
            fold_norms(nodes, registers, known, registers_in(self.outputs))
        self.steps = [step_of(node, operations) for node in nodes]
        self.registers, self.known = registers, known
        self.slots = {name: first + i for i, name in enumerate(self.inputs)}

    def run(self, **inputs: Any) -> Any:
        """A nest of dicts and lists of what the program computes."""
        registers = self.registers.copy()
        for name, value in inputs.items():
            registers[self.slots[name]] = value
        for step in self.steps:
            step.run(registers)
        return self.fill(registers)

    def bind(self, **inputs: Array) -> Callable[[], Any]:
        """Of NumPy's operations: what runs the program on what the arrays hold at each call, and gives a nest of dicts and lists of new arrays.

        Views of the inputs are taken once, here."""
        registers, rest, fixed = self.registers.copy(), [], self.known | set(self.slots.values())
        for name, value in inputs.items():
            registers[self.slots[name]] = value
        for step in self.steps:
            if fixed.issuperset(step.reads) and step.name.removeprefix("aten.") in ALIASES:
                step.run(registers)
                if is_view(registers[step.out], [registers[r] for r in step.reads]):
                    fixed.add(step.out)
                    continue
            rest.append(step.run)

        fill = self.fill

        def run() -> Any:
            for step in rest:
                step(registers)
            return fill(registers)

        return run


@dataclass(frozen=True)
class Step:
    """A node: what runs it, its operation, and the registers that it reads and writes."""

    run: Callable[[list[Any]], None]
    name: str
    reads: list[int]
    out: int


def step_of(node: Node, operations: Mapping[str, Callable[..., Any]]) -> Step:
    run = bound(operations[node.name], node.arguments, node.keywords, node.out)
    return Step(run, node.name, node.reads, node.out)


def is_view(value: Any, sources: list[Any]) -> bool:
    """Whether a value stays true when its sources' numbers change: it is a number, or lies in their memory."""
    if isinstance(value, list):
        return all(is_view(part, sources) for part in value)
    if not isinstance(value, np.ndarray):
        return isinstance(value, int)
    flat = [a for source in sources for a in (source if isinstance(source, list) else [source])]
    return any(isinstance(a, np.ndarray) and np.shares_memory(value, a) for a in flat)


def bound(
    function: Callable[..., Any], arguments: list[Any], keywords: dict[str, Any], out: int
) -> Callable[[list[Any]], None]:
    """The call that reads registers and writes register `out`. Most have one or two registers and then plain values: no work is done for the rest."""
    lead: list[int] = []
    for argument in arguments:
        if not isinstance(argument, dict):
            break
        lead.append(argument["r"])
    rest = arguments[len(lead) :]
    if lead and not registers_in([rest, keywords]):
        call = partial_after(function, rest, keywords)
        if len(lead) == 1:
            (a,) = lead

            def one(registers: list[Any]) -> None:
                registers[out] = call(registers[a])

            return one
        if len(lead) == 2:
            a, b = lead

            def two(registers: list[Any]) -> None:
                registers[out] = call(registers[a], registers[b])

            return two

        def several(registers: list[Any]) -> None:
            registers[out] = call(*[registers[r] for r in lead])

        return several
    getters = [getter(argument) for argument in arguments]

    def general(registers: list[Any]) -> None:
        registers[out] = function(*[get(registers) for get in getters], **keywords)

    return general


def partial_after(function: Callable[..., Any], rest: list[Any], keywords: dict[str, Any]) -> Callable[..., Any]:
    """The function of its leading arguments."""
    if not rest and not keywords:
        return function
    return lambda *lead: function(*lead, *rest, **keywords)


def getter(argument: Any) -> Callable[[list[Any]], Any]:
    """What reads an argument, which may be a list with registers in it."""
    if isinstance(argument, dict):
        return operator.itemgetter(argument["r"])
    if isinstance(argument, list) and registers_in(argument):
        parts = [getter(part) for part in argument]
        return lambda registers: [part(registers) for part in parts]
    return lambda registers: argument
