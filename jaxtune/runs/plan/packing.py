"""Memory that XLA's runtime on CPUs takes for products, beside the buffers of a program.

Before it multiplies matrices, the runtime copies the left factor into an order of its own, and
keeps the copy until the thread has also run what follows on the product. So several copies of one
loop body are alive at a time. How many depends on the threads; half of them is what runs take in
`benchmarks/plan_accuracy.py`.
"""

import re
from collections.abc import Mapping

from jaxtune.runs.plan.hlo import ARRAY, HEADER, nbytes

ALIVE = 0.5  # share of a loop body's copies that are alive at the peak
DOT = re.compile(r" dot\(%?([\w.\-]+),[^\n]*")
CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")


def copied_bytes(text: str) -> int:
    """Returns the bytes of copies that are alive at the peak of a program compiled for a CPU.

    Args:
      text: The program, as `compiled.as_text()` prints it.
    """
    bodies = _bodies(text)
    own = {name: _left_factors(body) for name, body in bodies.items()}
    return int(ALIVE * max((_within(name, bodies, own) for name in bodies), default=0))


def _bodies(text: str) -> dict[str, str]:
    """Returns the text of each computation of a program by its name."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line[:1] not in (" ", "}", "") and (heading := HEADER.fullmatch(line.rstrip())):
            lines = found[heading[2]] = []
        lines.append(line)
    return {name: "\n".join(lines) for name, lines in found.items()}


def _left_factors(body: str) -> int:
    """Returns the bytes of the left factors of a computation's matrix products."""
    total = 0
    for dot in DOT.finditer(body):
        if "batch_dims" in dot[0]:
            continue  # many small products, each copied for itself
        made = re.search(rf"%?{re.escape(dot[1])} = (\S+)", body)
        total += nbytes(made[1]) if made and ARRAY.match(made[1]) else 0
    return total


def _within(name: str, bodies: Mapping[str, str], own: Mapping[str, int]) -> int:
    """Returns the bytes of a computation's left factors, and of those that it calls."""
    called = [each for each in CALLED.findall(bodies[name]) if each in bodies]
    return own[name] + sum(_within(each, bodies, own) for each in called)
