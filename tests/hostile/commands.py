"""Command lines: every command and option, misspelt, empty, huge, or with control characters."""

from hypothesis import strategies as st

from jaxtune.cli.commands import COMMANDS
from tests.hostile.explore import Probe
from tests.hostile.outcomes import command
from tests.hostile.strategies import ODD, texts
from tests.hostile.world import World

OPTIONS = {
    "train": ("--accept-changes", "--no-plan", "--take-over", "--verbose"),
    "plan": ("--target", "--fit", "--rows", "--verbose"),
    "preview": ("--rows",),
    "eval": ("--base", "--both", "--adapter"),
    "generate": ("--base", "--adapter", "--prompt", "--file", "--image"),
    "inspect": ("--workdir", "--mesh", "--dtype", "--names", "--text", "--json"),
    "tokens": ("--text", "--up-to", "--workdir", "--json"),
    "export": ("--merged", "--into", "--to", "--step", "--adapter", "--verify", "--overwrite"),
    "push": ("--public", "--message"),
    "prepare": ("--split", "--revision", "--subset", "--rows", "--overwrite"),
    "config": ("--config",),
    "sweep": ("--sweep", "--storage", "--study", "--dry-run", "--extend", "--patience"),
    "devices": ("--expect", "--json", "--process-count", "--process-index"),
}
VALUES = [
    *("1", "0", "-1", "1e9", "99999999999", "nan", "best", "last", "float16", "original", "here"),
    *("fsdp=8", "fsdp=3,tensor=0", "data=1000000000", "fsdp=,", "=", "totto", "optim", "optim.lr"),
    *("v5e:2x4", "v5p:0x2", "rtx4050", "h100:2"),
    *("{base}", "{rows}", "{config}", "{run}", "{adapter}", "{none}", "{file}", "owner/name@x"),
    *("memory://none/x", "s4://bucket/x", "memory://me:secret@none", "memory://"),
]


def probes(world: World) -> list[Probe]:
    """Returns the classes of command lines."""
    value = st.one_of(st.sampled_from(VALUES), texts, st.sampled_from(ODD))
    line = st.sampled_from(list(COMMANDS)).flatmap(
        lambda name: st.tuples(st.just(name), st.lists(argument(name, value), max_size=5))
    )
    free = st.lists(st.one_of(st.sampled_from(list(COMMANDS)), value), max_size=4)
    return [
        Probe("commands: options", 3_000, line, of_line(world), chunk=100),
        Probe(
            "commands: free",
            300,
            free.map(lambda words: ("", [("", each) for each in words])),
            of_line(world),
            chunk=100,
        ),
    ]


def argument(name: str, value: st.SearchStrategy) -> st.SearchStrategy:
    """Returns a strategy of one argument, (option or "", value or None)."""
    known = [*OPTIONS[name], "--config", "--workdir", "--debug", "--help"]
    misspelt = st.sampled_from(known).map(lambda option: option[:-1] + "x")
    options = st.one_of(st.sampled_from(known), misspelt, st.just(""), st.just(""))
    return st.tuples(options, st.one_of(value, value, st.none()))


def of_line(world: World):
    def check(given):
        name, arguments = given
        with world.scratch() as place:
            (place / "none.py").write_text(
                "def get_config():\n    return dict(model=dict(path='/none'), "
                f"data=dict(source={str(world.rows)!r}))\n"
            )
            where = {
                "base": world.base,
                "rows": world.rows,
                "config": place / "none.py",
                "run": place / "run",
                "adapter": world.adapter,
                "none": place / "nothing",
                "file": place / "none.py",
            }
            words = [name] if name else []
            for option, value in arguments:
                words += [option] if option else []
                words += [filled(value, where)] if value is not None else []
            command(*words)

    return check


def filled(value: str, where: dict) -> str:
    """Puts the paths of this input into a value."""
    for name, path in where.items():
        if value == f"{{{name}}}":
            return str(path)
    return value
