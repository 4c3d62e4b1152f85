"""Memory that XLA's runtime on CPUs takes for products, beside the buffers of a program.

Before it multiplies matrices, the runtime copies the left factor into an order of its own, and
keeps the copy until the thread has also run what follows on the product. So several copies of one
loop body are alive at a time. How many depends on the threads; half of them is what runs take in
`benchmarks/plan_accuracy.py`.
"""

from jaxtune.runs.plan.hlo import Computation, Module, nbytes, parse

ALIVE = 0.5  # share of a loop body's copies that are alive at the peak


def copied_bytes(text: str) -> int:
    """Returns the bytes of copies that are alive at the peak of a program compiled for a CPU.

    Args:
      text: The program, as `compiled.as_text()` prints it.
    """
    module = parse(text)
    return int(ALIVE * max(_left_factors(each, module) for each in module.computations.values()))


def _left_factors(computation: Computation, module: Module) -> int:
    """Returns the bytes of the left factors of matrix products, also in what is called."""
    total = 0
    for each in computation.instructions.values():
        # The products of a batch are many small ones, each of which is copied for itself.
        if each.opcode == "dot" and "batch_dims" not in each.attributes:
            total += nbytes(computation.instructions[each.operands[0]].shape)
        for name in each.called("calls", "to_apply"):
            total += _left_factors(module.computations[name], module)
    return total
