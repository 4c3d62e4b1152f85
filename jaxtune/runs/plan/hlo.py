"""Reads the text of a compiled XLA program: its instructions, and how often each loop runs."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from jaxtune.display.errors import UserError

HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
NAME = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
OPCODE = re.compile(r"\s*([\w\-]+)\(")
ARRAY = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,<=\s]*)\](\{[^}]*\})?")
REFERENCE = re.compile(r"%([\w.\-]+)")
PACKED = re.compile(r"E\((\d+)\)")  # bits of a packed element, in a layout
KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
COUNTED = {"LT": 0, "LE": 1, "NE": 0}  # comparisons of a rising counter; how many more than LT
SAME = {"copy", "bitcast", "convert", "copy-start", "copy-done", "optimization-barrier", "reshape"}


@dataclass(frozen=True)
class Instruction:
    """One instruction: %name = shape opcode(operands), attributes."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]  # names
    inside: str  # the text between the parentheses: a constant's value, a parameter's number
    attributes: str

    def called(self, *keys: str) -> list[str]:
        """Returns the computations named by attributes such as `calls` or `body`."""
        found = []
        for key in keys:
            for names in re.findall(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes):
                found += re.findall(r"[\w.\-]+", names)
        return found

    def attribute(self, pattern: str) -> str | None:
        """Returns the first group of a pattern's first match in the attributes, or None."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None


class Instructions(Mapping[str, Instruction]):
    """The instructions of a computation by name, in order, each parsed when it is first read.

    Attributes:
      texts: What the program's text has after the name and the equals sign of each.
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self._parsed: dict[str, Instruction] = {}

    def __getitem__(self, name: str) -> Instruction:
        if name not in self._parsed:
            self._parsed[name] = _instruction(name, self.texts[name])
        return self._parsed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)


@dataclass
class Computation:
    """A computation: its instructions and the name of its root."""

    name: str
    instructions: Instructions = field(default_factory=Instructions)
    root: str = ""


@dataclass(frozen=True)
class Module:
    """A program: its computations by name, and the one that a run starts in."""

    computations: Mapping[str, Computation]
    entry: str
    devices: int  # that the program runs on


def parse(text: str) -> Module:
    """Returns the module of an optimised HLO text, as `compiled.as_text()` prints it."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in map(str.rstrip, text.splitlines()):
        if line.endswith("{") and (found := HEADER.fullmatch(line)):
            current = computations[found[2]] = Computation(found[2])
            entry = found[2] if found[1] else entry
        elif current and (found := NAME.match(line)):
            current.instructions.texts[found[2]] = line[found.end() :]
            current.root = found[2] if found[1] else current.root
    if not entry:
        raise UserError(
            "expected the text of a compiled XLA module, as compiled.as_text() returns it; found "
            f"{text[:60]!r}, without an ENTRY computation"
        )
    return Module(computations, entry, _devices(text))


def nbytes(shape: str) -> int:
    """Returns the bytes of an array's shape as HLO prints it, or of all arrays of a tuple."""
    total = 0
    for dtype, sizes, layout in ARRAY.findall(shape):
        count = 1
        for size in re.findall(r"\d+", sizes):
            count *= int(size)
        total += -(-count * _bits(dtype, layout) // 8)
    return total


def trip_count(loop: Instruction, within: Computation, module: Module) -> int | None:
    """Returns how often a while loop's body runs, or None if the text does not tell.

    It is printed in the loop's `backend_config`, or follows from a counter in the loop's state: its
    constant start, the constant that the body adds to it, and the constant that the condition
    compares it with.
    """
    if known := loop.attribute(KNOWN_TRIPS.pattern):
        return int(known)
    condition, body = (module.computations[loop.called(key)[0]] for key in ("condition", "body"))
    test = _test(condition, module)
    if test is None:
        return None
    index, limit, direction = test
    start = _Symbols(within, module).number(loop.operands[0], index)
    step = _Symbols(body, module).step(index)
    if start is None or not step or step < 0:
        return None
    return max(0, -(-(limit + COUNTED[direction] - start) // step))


def _instruction(name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else _gap(rest)
    shape, rest = rest[:end], rest[end:]
    found = OPCODE.match(rest)
    assert found, f"no opcode in {rest[:80]!r}"
    close = _closing(rest, found.end() - 1)
    inside = rest[found.end() : close]
    operands = tuple(REFERENCE.findall(inside))
    return Instruction(name, shape, found[1], operands, inside, rest[close + 1 :])


def _closing(text: str, start: int) -> int:
    """Returns the index of the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return start + found.start()
    raise AssertionError(f"no closing parenthesis in {text[:80]!r}")


def _gap(text: str) -> int:
    """Returns the index of the space after an array's shape, whose layout may hold spaces."""
    found = re.match(r"[^\s{]+(\{[^}]*\})?", text)
    return found.end() if found else 0


def _bits(dtype: str, layout: str) -> int:
    """Returns the bits that an element takes; XLA stores small ones a byte each unless packed."""
    if packed := PACKED.search(layout):
        return int(packed[1])
    if dtype in ("token", "opaque"):
        return 0
    digits = re.search(r"\d+", dtype)
    bits = int(digits[0]) if digits else 8  # pred
    return max(8, 2 * bits if dtype == "c64" and bits < 64 else bits)


def _devices(text: str) -> int:
    head = text[: text.find("\n")]
    counts = [re.search(rf"{key}=(\d+)", head) for key in ("num_partitions", "replica_count")]
    partitions, replicas = (int(found[1]) if found else 1 for found in counts)
    return partitions * replicas


def _test(condition: Computation, module: Module) -> tuple[int, int, str] | None:
    """Returns (index of the counter, limit, comparison) of a condition that compares a counter."""
    compared = _Symbols(condition, module).comparison(condition.root)
    if compared is None:
        return None
    left, right, direction = compared
    if isinstance(left, int):  # limit > counter
        left, right = right, left
        direction = {"GT": "LT", "GE": "LE"}.get(direction, direction)
    if isinstance(left, tuple) and isinstance(right, int) and direction in COUNTED:
        index, offset = left
        return index, right - offset, direction
    return None


class _Symbols:
    """Evaluates integers of a computation: constants, or an element of its state plus a constant.

    A value is an int, or (index, offset) for element `index` of the computation's only parameter
    plus `offset`, or None for anything else.
    """

    def __init__(self, here: Computation, module: Module, given: Mapping | None = None):
        self.here, self.module, self.given = here, module, given

    def number(self, name: str, index: int) -> int | None:
        """Returns element `index` of a tuple, where it is a constant."""
        found = self.value(name, index)
        return found if isinstance(found, int) else None

    def step(self, index: int) -> int | None:
        """Returns the constant that a loop's body adds to an element of its state."""
        found = self.value(self.here.root, index)
        return found[1] if isinstance(found, tuple) and found[0] == index else None

    def comparison(self, name: str):
        """Returns (left, right, direction) of a comparison, followed into a fusion, or None."""
        found = self.here.instructions[name]
        if found.opcode == "compare":
            left, right = (self.value(operand) for operand in found.operands)
            return left, right, found.attribute(r"direction=(\w+)")
        if found.opcode in SAME:
            return self.comparison(found.operands[0])
        if found.opcode in ("fusion", "call"):
            inner = self._inside(found)
            return inner.comparison(inner.here.root)
        return None

    def value(self, name: str, index: int | None = None):
        """Returns the value of an instruction, or of an element of the tuple that it returns."""
        found = self.here.instructions[name]
        match found.opcode:
            case "constant":
                return int(found.inside) if re.fullmatch(r"-?\d+", found.inside) else None
            case "parameter":
                return self._parameter(int(found.inside), index)
            case "tuple" if index is not None:
                return self.value(found.operands[index])
            case "get-tuple-element":
                return self.value(found.operands[0], int(found.attribute(r"index=(\d+)") or 0))
            case "add" | "subtract":
                return _sum(*map(self.value, found.operands), found.opcode)
            case "fusion" | "call":
                inner = self._inside(found)
                return inner.value(inner.here.root, index)
        return self.value(found.operands[0], index) if found.opcode in SAME else None

    def _inside(self, caller: Instruction) -> "_Symbols":
        inner = self.module.computations[caller.called("calls", "to_apply")[0]]
        given = {number: (self, name) for number, name in enumerate(caller.operands)}
        return _Symbols(inner, self.module, given)

    def _parameter(self, number: int, index: int | None):
        if self.given is not None:
            outer, name = self.given[number]
            return outer.value(name, index)
        return None if index is None else (index, 0)


def _sum(one, other, opcode: str):
    if opcode == "subtract":
        other = -other if isinstance(other, int) else None
    if isinstance(one, int) and isinstance(other, tuple):
        one, other = other, one
    if isinstance(one, tuple) and isinstance(other, int):
        return one[0], one[1] + other
    return one + other if isinstance(one, int) and isinstance(other, int) else None


def each(computation: Computation) -> Iterator[Instruction]:
    """Yields the instructions of a computation in order."""
    yield from computation.instructions.values()
