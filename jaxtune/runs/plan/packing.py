"""Memory that XLA's runtime on CPUs takes for products, beside the buffers of a program.

Before it multiplies matrices, the runtime copies the left factor into an order of its own, and
keeps the copy until the thread has also run what follows on the product. So several copies of one
loop body are alive at a time. How many depends on the threads; half of them is what runs take in
`benchmarks/plan_accuracy.py`.
"""

import re

from jaxtune.runs.plan.hlo import Module, nbytes, parse

ALIVE = 0.5  # share of a loop body's copies that are alive at the peak
READ = re.compile(r" dot\(|calls=|to_apply=").search  # all that other instructions lack


def copied_bytes(text: str) -> int:
    """Returns the bytes of copies that are alive at the peak of a program compiled for a CPU.

    Args:
      text: The program, as `compiled.as_text()` prints it.
    """
    module, known = parse(text), {}
    return int(ALIVE * max(_left_factors(name, module, known) for name in module.computations))


def _left_factors(name: str, module: Module, known: dict[str, int]) -> int:
    """Returns the bytes of the left factors of a computation's products, also in what it calls.

    `known` keeps those of the computations that were read before.
    """
    if name not in known:
        known[name] = 0
        instructions = module.computations[name].instructions
        for each in (instructions[it] for it, text in instructions.texts.items() if READ(text)):
            # The products of a batch are many small ones, each of which is copied for itself.
            if each.opcode == "dot" and "batch_dims" not in each.attributes:
                known[name] += nbytes(instructions[each.operands[0]].shape)
            for called in each.called("calls", "to_apply"):
                known[name] += _left_factors(called, module, known)
    return known[name]
