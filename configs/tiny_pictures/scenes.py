"""What is in a picture, drawn by chance, and what may be asked and said of it.

The base learns `SAYINGS`: plain captions, descriptions sentence by sentence, questions. `caption`
says all of it in one, which is left to the demo to teach.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import shapes
from shapes import COLOURS, PATTERNS, SHAPES, Ground, Thing

Saying = tuple[str, str]  # what is asked, and the answer

NUMBERS = {2: "two", 3: "three", 4: "four"}
SIZES = {"small": (0.11, 0.13), "large": (0.19, 0.22)}  # of the radius
EDGE, GAP = 0.02, 0.03
OPPOSITE = {"to the left of": "to the right of", "above": "below"}
OPPOSITE |= {there: here for here, there in OPPOSITE.items()}
COLUMNS, LINES = ("left", "", "right"), ("top", "", "bottom")


@dataclass(frozen=True)
class Scene:
    """One thing, two that differ, or several alike; the first is leftmost, or highest."""

    things: tuple[Thing, ...]
    sizes: tuple[str, ...]
    ground: Ground

    @property
    def alike(self) -> bool:
        """Whether its things are several of one kind."""
        return len({(thing.shape, thing.colour) for thing in self.things}) < len(self.things)

    @property
    def relation(self) -> str:
        """Where the first of two is, seen from the second."""
        first, second = self.things
        across = abs(first.x - second.x) > abs(first.y - second.y)
        return "to the left of" if across else "above"

    def pixels(self, side: int) -> np.ndarray:  # uint8[S, S, 3]
        """Its picture."""
        return shapes.drawn(list(self.things), self.ground, side)


def scene(rng: random.Random) -> Scene:
    """Any scene."""
    ground = _ground(rng)
    kind = rng.choices(["one", "two", "alike"], [3, 5, 2])[0]
    count = {"one": 1, "two": 2, "alike": rng.randint(2, 4)}[kind]
    size = rng.choice(list(SIZES)) if count < 3 else "small"
    if kind == "two":
        sizes = [rng.choice(list(SIZES)) for _ in range(2)]
        looks = zip(rng.sample(list(SHAPES), 2), rng.sample(list(COLOURS), 2), sizes, strict=True)
    else:
        looks = [(rng.choice(list(SHAPES)), rng.choice(list(COLOURS)), size)] * count
    return Scene(*_placed(rng, list(looks), kind == "two"), ground)


def _placed(
    rng: random.Random, looks: list[tuple[str, str, str]], ordered: bool
) -> tuple[tuple[Thing, ...], tuple[str, ...]]:
    """Things where none touches another, and their sizes; of two, one is first without doubt."""
    while True:
        radii = [rng.uniform(*SIZES[size]) for _, _, size in looks]
        things = [
            Thing(shape, colour, radius, _within(rng, radius), _within(rng, radius))
            for (shape, colour, _), radius in zip(looks, radii, strict=True)
        ]
        if _apart(things) and (not ordered or _clear(things)):
            break
    sizes = {thing: size for thing, (_, _, size) in zip(things, looks, strict=True)}
    if ordered:
        across = abs(things[0].x - things[1].x) > abs(things[0].y - things[1].y)
        things.sort(key=lambda thing: thing.x if across else thing.y)
    return tuple(things), tuple(sizes[thing] for thing in things)


def _ground(rng: random.Random) -> Ground:
    light = tuple(rng.randint(176, 222) for _ in range(3))
    return Ground(rng.choice(list(PATTERNS)), light, tuple(each - 34 for each in light))


def _within(rng: random.Random, radius: float) -> float:
    return rng.uniform(radius + EDGE, 1 - radius - EDGE)


def _apart(things: list[Thing]) -> bool:
    """Whether none touches another."""
    return all(
        np.hypot(one.x - other.x, one.y - other.y) > one.radius + other.radius + GAP
        for number, one in enumerate(things)
        for other in things[:number]
    )


def _clear(things: list[Thing]) -> bool:
    """Whether there is no doubt if one is beside or above the other."""
    across, down = abs(things[0].x - things[1].x), abs(things[0].y - things[1].y)
    return max(across, down) > 1.6 * min(across, down)


# What the base learns to say


def plain(rng: random.Random, scene: Scene) -> Saying:
    """A short caption: colours and shapes."""
    first = scene.things[0]
    said = f"{NUMBERS.get(len(scene.things))} {first.colour} {_plural(first.shape)}"
    if not scene.alike:
        said = " and ".join(_named(thing.colour, thing.shape) for thing in scene.things)
    return "caption en", said


def described(rng: random.Random, scene: Scene) -> Saying:
    """Everything, one sentence after the other."""
    ground = f"the background is {scene.ground.pattern}."
    sizes = zip(scene.things, scene.sizes, strict=True)
    said = [f"the {thing.shape} is {thing.colour} and {size}." for thing, size in sizes]
    if scene.alike:
        shape, colour = _plural(scene.things[0].shape), scene.things[0].colour
        count = NUMBERS[len(scene.things)]
        said = [f"there are {count} {shape}.", f"the {shape} are {colour} and {scene.sizes[0]}."]
    elif len(scene.things) == 2:
        one, other = (thing.shape for thing in scene.things)
        said.append(f"the {one} is {scene.relation} the {other}.")
    else:
        said.append(f"it is {place(scene.things[0])}.")
    return "describe en", " ".join([*said, ground])


def asked(rng: random.Random, scene: Scene) -> Saying:
    """A question that has one answer."""
    at = rng.randrange(len(scene.things))
    thing = scene.things[at]
    count = len(scene.things) if scene.alike else 0
    questions = [
        ("what is the background?", scene.ground.pattern),
        (f"what colour {_is(thing, count)}?", thing.colour),
        (f"how large {_is(thing, count)}?", scene.sizes[at]),
        (f"what is {thing.colour}?", f"the {_plural(thing.shape) if count else thing.shape}"),
    ]
    if count:
        number = (f"how many {_plural(thing.shape)} are there?", NUMBERS[count])
        questions += [number, number]
    elif len(scene.things) == 2:
        other = scene.things[1 - at]
        relation = scene.relation if at == 0 else OPPOSITE[scene.relation]
        questions += [
            (f"where is the {thing.shape}?", f"{relation} the {other.shape}"),
            (f"what is {relation} the {other.shape}?", f"the {thing.shape}"),
        ]
    else:
        questions.append((f"where is the {thing.shape}?", place(thing)))
    question, answer = rng.choice(questions)
    return f"answer en {question}", answer


SAYINGS: dict[Callable[[random.Random, Scene], Saying], float] = {
    plain: 0.2,
    described: 0.4,
    asked: 0.4,
}


def saying(rng: random.Random, scene: Scene) -> Saying:
    """One of the things that the base learns to say of a scene."""
    return rng.choices(list(SAYINGS), SAYINGS.values())[0](rng, scene)


def place(thing: Thing) -> str:
    """Where a thing is in its picture: `at the top left`, or `in the middle`."""
    where = f"{LINES[int(thing.y * 3)]} {COLUMNS[int(thing.x * 3)]}".strip()
    return f"at the {where}" if where else "in the middle"


def _is(thing: Thing, count: int) -> str:
    return f"are the {_plural(thing.shape)}" if count else f"is the {thing.shape}"


def _plural(shape: str) -> str:
    return f"{shape}es" if shape == "cross" else f"{shape}s"


def _named(*words: str) -> str:
    """Words with their article."""
    text = " ".join(words)
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


# What the demo teaches


def caption(scene: Scene) -> str:
    """All of a scene in one."""
    return captions(scene)[0]


def captions(scene: Scene) -> list[str]:
    """Ways to say all of a scene; the first is that of `caption`."""
    ground = f"{_named(scene.ground.pattern)} background"
    if scene.alike:
        thing, size = scene.things[0], scene.sizes[0]
        count, shown = NUMBERS[len(scene.things)], f"{thing.colour} {_plural(thing.shape)}"
        told = [f"{count} {size} {shown}", f"{size} {shown}, {count} of them,"]
    elif len(scene.things) == 2:
        one, other = (
            _named(size, thing.colour, thing.shape)
            for thing, size in zip(scene.things, scene.sizes, strict=True)
        )
        told = [f"{one} {scene.relation} {other}", f"{other} {OPPOSITE[scene.relation]} {one}"]
    else:
        thing, size = scene.things[0], scene.sizes[0]
        shown, where = _named(size, thing.colour, thing.shape), place(thing)
        told = [f"{shown} {where}", f"{where} {shown}"]
    return [f"{each} on {ground}" for each in told]
