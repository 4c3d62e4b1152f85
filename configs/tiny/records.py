"""Records of the invented world as tables: players, athletes, actors, elections, districts."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import words


@dataclass(frozen=True)
class Table:
    """Rows about one thing; the first column tells them apart."""

    kind: str
    page: str  # what all rows are about
    section: str
    rows: list[dict[str, str]]


def players(rng: random.Random, count: int) -> Table:
    """A footballer's seasons."""
    rows = [
        {
            "Season": str(year),
            "Club": f"{words.town(rng)} {rng.choice(words.CLUBS)}",
            "League": rng.choice(words.LEAGUES),
            "Matches": str(rng.randint(8, 46)),
            "Goals": str(rng.randint(0, 31)),
        }
        for year in _years(rng, count)
    ]
    section = rng.choice(["Career statistics", "Club career", "Seasons"])
    return Table("players", words.person(rng), section, rows)


def athletes(rng: random.Random, count: int) -> Table:
    """An athlete's championships."""
    rows = [
        {
            "Year": str(year),
            "Host": words.town(rng),
            "Event": rng.choice(words.EVENTS),
            "Rank": rng.choice(words.RANKS),
        }
        for year in _years(rng, count)
    ]
    section = rng.choice(["Achievements", "Championships", "International competitions"])
    return Table("athletes", words.person(rng), section, rows)


def actors(rng: random.Random, count: int) -> Table:
    """What an actor played in."""
    rows = [
        {
            "Year": str(year),
            "Title": words.film(rng),
            "Role": rng.choice(words.ROLES).capitalize(),
            "Director": words.person(rng),
        }
        for year in _years(rng, count)
    ]
    return Table("actors", words.person(rng), rng.choice(["Filmography", "Film", "Films"]), rows)


def elections(rng: random.Random, count: int) -> Table:
    """Who stood for mayor, and how many votes they got."""
    parties = rng.sample(words.PARTIES, count)
    votes = sorted((rng.randint(400, 48_000) for _ in parties), reverse=True)
    total = sum(votes) * rng.uniform(1, 1.3)  # there were others too
    rows = [
        {
            "Candidate": words.person(rng),
            "Party": party,
            "Votes": f"{number:,}",
            "Share": f"{100 * number / total:.1f}%",
        }
        for party, number in zip(parties, votes, strict=True)
    ]
    place, year = words.town(rng), rng.randint(1948, 2025)
    return Table("elections", f"{year} {place} mayoral election", "Results", rows)


def districts(rng: random.Random, count: int) -> Table:
    """Towns of a country."""
    rows = [
        {
            "Town": words.town(rng),
            "Population": f"{rng.randint(900, 940_000):,}",
            "Area": str(rng.randint(4, 780)),
            "Mayor": words.person(rng),
        }
        for _ in range(count)
    ]
    section = rng.choice(["Towns", "Municipalities", "Largest towns"])
    return Table("districts", f"Towns of {rng.choice(words.COUNTRIES)}", section, rows)


KINDS: Sequence[Callable[[random.Random, int], Table]] = (
    players,
    athletes,
    actors,
    elections,
    districts,
)


def make(rng: random.Random, count: int) -> Table:
    """A table of any kind with so many rows."""
    return rng.choice(KINDS)(rng, count)


def subject(table: Table) -> dict[str, str]:
    """What sentences about a table may name besides its cells."""
    page = table.page.removesuffix(" mayoral election").removeprefix("Towns of ")
    found = {"page": page}
    if table.kind == "elections":
        found["year"], found["place"] = page.split(" ", 1)
    return found


def _years(rng: random.Random, count: int) -> list[int]:
    start = rng.randint(1950, 2025 - 2 * count)
    return sorted(rng.sample(range(start, start + 2 * count), count))
