"""Formats the report on quantisation as text."""

from collections.abc import Iterator

from jaxtune.cli.inspect.quant_report import REST, Leaf, Measured, QuantReport
from jaxtune.display.columns import few, grid, labelled, size_text
from jaxtune.export.distance import Distance

NUMBERS = (
    *("linear maps", "bits per weight", "whole model", "bits per parameter"),
    *("bits", "mean |error|", "relative", "KL alone", "cost to keep"),
)


def quant_sections(found: QuantReport) -> Iterator[list[str]]:
    """Yields paragraphs as lists of lines: the sizes, then the measurements of each kind."""
    scope = (
        f"the linear maps of layers, {found.linear:,} of {found.parameters:,} parameters, can be "
        f"quantised; everything else is then in {REST}"
    )
    yield [*labelled({"quantised": scope}), *grid(*_size_rows(found), NUMBERS)]
    for measured in found.measured:
        yield _measured_lines(measured, found.text)


def _size_rows(found: QuantReport) -> tuple[list[str], list[dict[str, str]]]:
    rows = [
        {
            "kind": size.kind,
            "linear maps": size_text(size.linear_bytes),
            "bits per weight": f"{size.linear_bits:.2f}",
            "whole model": size_text(size.bytes),
            "bits per parameter": f"{size.bits:.2f}",
        }
        for size in found.sizes
    ]
    return list(rows[0]), rows


def _measured_lines(measured: Measured, text: str) -> list[str]:
    mean, relative = f"{measured.mean_absolute:.3g}", f"{measured.relative:.2%}"
    errors = f"mean |error| {mean}; norm of the error {relative} of that of the weights"
    cells = [_leaf_cells(leaf) for leaf in measured.leaves]
    after = {
        "worst": _worst_layers(measured),
        "predictions": _predictions_text(measured.predictions, text),
    }
    table = grid(list(cells[0]), cells, NUMBERS)
    return [*labelled({measured.kind: errors}), *table, *labelled(after), *_advice_lines(measured)]


def _worst_layers(measured: Measured) -> str:
    layers = [
        (relative, f"{leaf.path} layer {number} ({relative:.2%})")
        for leaf in measured.leaves
        for number, relative in enumerate(leaf.layers)
    ]
    return few([text for _, text in sorted(layers, reverse=True)], 0)


def _leaf_cells(leaf: Leaf) -> dict[str, str]:
    worst = max(range(len(leaf.layers)), key=leaf.layers.__getitem__)
    cells = {
        "leaf": leaf.path,
        "bits": f"{leaf.bits:.2f}",
        "mean |error|": f"{leaf.mean_absolute:.3g}",
        "relative": f"{leaf.relative:.2%}",
        "worst layer": f"{worst} ({leaf.layers[worst]:.2%})",
    }
    if leaf.kl is None:
        return cells
    return cells | {"KL alone": f"{leaf.kl:.3g}", "cost to keep": size_text(leaf.to_keep)}


def _predictions_text(found: Distance | None, text: str) -> str:
    if found is None:
        return text
    return (
        f"on {text}: mean KL divergence from full precision {found.kl:.3g} nats, same likeliest "
        f"token at {found.agreement:.1%} of positions, logits at most {found.logits:.2g} standard "
        "deviations apart"
    )


def _advice_lines(measured: Measured) -> list[str]:
    advice = measured.advice
    if advice is None:
        text = "quantise every leaf: none alone changes predictions" if measured.predictions else ""
        return labelled({"suggestion": text})
    text = (
        f"keep {' and '.join(advice.keep)} in {REST}: {size_text(advice.bytes)} more, and the KL "
        f"is {advice.predictions.kl:.3g}; set `quant` to:"
    )
    # Each rule is on a line of its own, so that it can be copied.
    rules = ",\n".join(f"{'':13}{rule!r}" for rule in advice.quant).splitlines()
    rules[0] = f"{'':12}[{rules[0].lstrip()}"
    return [*labelled({"suggestion": text}), *rules[:-1], f"{rules[-1]}]"]
