"""Text that the tiny base learns its language from: `document` writes one, of many kinds.

Everything is made of the words in words.py and the tables of records.py. No document looks like
the prompts of the demos, so that there is something left for these to learn.
"""

import json
import random
from collections.abc import Callable, Iterator

import records
import words
from words import COUNTRIES, FAMILY, MOODS, SCENES, WARMTH, code, listed, pick

lines = str.splitlines

COLOUR_FACTS = lines("""{Name} is a {warmth} {family}, written {code}.
{Name} is {family}; its hex code is {code}.
The hex code of {name} is {code}.
In hex, {name} is {code}.
{code} is {name}.
{Name} ({code}) is a {warmth} colour.
They painted the {thing} {name}, which is {code}.
What is {name} in hex? It is {code}.
A shade close to {name} is {near}, and true {name} is {code}.
{Name} has the code {code}, and {other} has {other_code}.
{Name} and {other}: {code} and {other_code}.
{Name} is mixed of {red} parts red, {green} parts green and {blue} parts blue.
Use {code} for {name} and {other_code} for {other}.
The {thing} was {name} {code}, and the {thing2} {other} {other_code}.
Pale {plain} is {pale}, and deep {plain} is {deep}.
Pale {plain}: {pale}. Deep {plain}: {deep}.
A pale {plain} ({pale}) looks soft, a deep {plain} ({deep}) looks heavy.""")
SCENE_FACTS = lines("""The colours of the {scene} are {names}.
{A_scene} is {names}.
Think of the {scene}: {coded}.
If you paint the {scene}, take {names}.
Nothing looks more like the {scene} than {first} and {second}.
{Names} make the {scene}, and {first} comes before the rest.
The {scene} in hex is {codes}.
Most of the {scene} is {first}; {second} comes next.""")
MATCHES = lines("""In hex, {names} are {codes}.
{Names} are {codes}.
The {things}s are {names}: {codes}.
We need {names}, that is {codes}.
{names} = {bare}
{Names}. In code: {bare}.""")
MOOD_FACTS = lines("""{Mood} colours are {names}.
To make a room {mood}, use {names}.
{Names} look {mood}.
{Mood} things are often {first} or {second}.
In hex, {mood} colours are {codes}.""")
THINGS = """wall door roof boat fence window house bench gate car kitchen shop table cart bridge
    cup coat flag ribbon lamp tower wagon"""

TELLS = {
    "players": """In {Season}, {page} scored {Goals} goals for {Club}.
{page} played {Matches} matches for {Club} in {Season}.
With {Club}, {page} reached {Goals} goals in {Matches} matches of the {League}.
{page} joined {Club} in {Season} and scored {Goals} times in the {League}.
In the {Season} season of the {League}, {page} played for {Club}.
The {Season} season brought {page} {Goals} goals in {Matches} matches.""",
    "athletes": """{page} finished {Rank} in the {Event} at {Host} in {Year}.
In {Year}, {page} came {Rank} in the {Event}.
{page} competed in the {Event} in {Host} in {Year}.
At the {Year} championships in {Host}, {page} finished {Rank}.""",
    "actors": """In {Year}, {page} played the {Role} in {Title}.
{page} appeared in {Title}, directed by {Director}.
{Title} was directed by {Director} in {Year}.
{page} had the role of the {Role} in the {Year} film {Title} by {Director}.
In {Title}, {page} was the {Role}.""",
    "elections": """{Candidate} of the {Party} Party won {Votes} votes in {place}.
In the {year} election in {place}, {Candidate} received {Votes} votes, or {Share}.
The {Party} Party had {Share} of the votes in {place} in {year}.
{Candidate} stood for the {Party} Party and got {Share} of the votes.
With {Votes} votes, {Candidate} of the {Party} Party ran in the {year} {place} election.""",
    "districts": """{Town} in {page} has a population of {Population}.
The mayor of {Town} is {Mayor}.
{Town} covers {Area} square kilometres and has {Population} people.
{Town} is a town in {page} with {Population} people and the mayor {Mayor}.
In {page}, {Town} has an area of {Area} square kilometres.""",
}
TELLS = {kind: lines(text) for kind, text in TELLS.items()}

SALES = lines("""A {size} {grade} {material} {kind} by {brand} costs about {price} dollars.
{brand} sells a {size}, {grade} {material} {kind} for {price} dollars.
The {grade} {size} {kind} from {brand} comes with {extra} and costs ${price}.
For ${price} you get a {size} {grade} {brand} {kind} of {material} with {extra}.
{brand} {kind}, {size}, {grade}, {material}: ${price}.
The {grade} {brand} {kind} is made of {material} and has {extra}. This {size} one costs ${price}.
{Person} bought a {size} {brand} {kind}, {grade}, of {material}, and paid {price} dollars.
How dear is a {grade} {size} {kind} by {brand}? It is {price} dollars.""")
PRICE_LINES = lines("""{brand} {size} {material} {kind}, {grade}: ${price}
{size} {grade} {material} {kind} by {brand}, ${price}
{grade} {brand} {kind} ({size}, {material}) - {price}""")
KIND_PRICES = lines("""Most {kind}s cost around {usual} dollars.
A {kind} is {dearer} than a {other}: ${usual} against ${other_usual}.
An ordinary {kind} costs {usual} dollars and comes with {extra}.
{brand} is a {tier} brand, and its {kind}s cost around {branded} dollars.
{Material} makes a {kind} {effect}: about ${with_material}.""")

PLAIN = lines("""In {season} the {place} is {weather}.
{first} walked to the {place} because it was {weather}.
It is {mood} at the {place} in {season}.
The {animal} sleeps near the {place}.
{first} and {second} met at the {place} on {day}.
{first} likes {food}, but {second} would rather have {food2}.
Every {day} {first} reads a book at the {place}.
The {animal} saw a {animal2} and ran away.
"{weather_cap} again," said {first}. "Let us go to the {place}."
{first} felt {mood}, and the {colour} {thing} made {second} smile.
After {season} comes {next_season}.
There were {count} {animal}s behind the {thing}.
There are {count} shops in {town}, and most of them sell {food}.
{town} lies in {country}, not far from the {place}.
Why is {first} so {mood}? Because the {animal} came back.
{first} was born in {town} in {year} and moved to {town2} in {year2}.
The road from {town} to {town2} is {number} kilometres long.
{first} has {number} books; {second} has {number2}.
At {hour} o'clock {first} has {food} and tea.
The {colour} {thing} stands beside the {colour2} {thing2}.
Do not forget the {food}, {first}!
When the weather is {weather}, people in {town} stay {mood}.""")
PLACES = """harbour forest market library station garden meadow river bridge church school museum
    bakery beach lake tower square village castle hill mill orchard theatre park"""
WEATHERS = "sunny rainy windy foggy cold warm snowy stormy cloudy dry bright mild"
ANIMALS = "cat dog horse owl rabbit goat duck crow hen swan frog bear cow bee snail tiger"
FOODS = "bread soup apples cheese plums rice honey cake fish beans pears nuts eggs noodles"
FEELINGS = "happy sad tired calm cheerful quiet busy gloomy proud curious lonely hopeful"
SEASONS = ["spring", "summer", "autumn", "winter"]
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
COUNTS = "two three four five six seven eight nine ten eleven twelve twenty"


def document(rng: random.Random) -> str:
    """A text of a few lines about one thing or another, and now and then twice as long."""
    kind = rng.choices(list(KINDS), KINDS.values())[0]
    return "\n\n".join(kind(rng) for _ in range(2 if rng.random() < 0.1 else 1))


def documents(seed: int) -> Iterator[str]:
    """Documents without end."""
    rng = random.Random(seed)
    while True:
        yield document(rng)


def colours(rng: random.Random) -> str:
    """Sentences about colours and their codes."""
    return " ".join(_colour_fact(rng) for _ in range(rng.randint(2, 6)))


def _colour_fact(rng: random.Random) -> str:
    name, other, plain = rng.choice(NAMES), rng.choice(NAMES), rng.choice(list(FAMILY))
    red, green, blue = bytes.fromhex(code(name)[1:])
    family = FAMILY[name.split()[-1]]
    return rng.choice(COLOUR_FACTS).format(
        **dict(name=name, Name=_capital(name), code=code(name), family=family, plain=plain),
        **dict(other=other, other_code=code(other), near=words.near(rng, code(name), 6)),
        **dict(warmth=WARMTH[family], red=red, green=green, blue=blue),
        **dict(pale=code(f"pale {plain}"), deep=code(f"deep {plain}")),
        **dict(thing=pick(rng, THINGS), thing2=pick(rng, THINGS)),
    )


def scenes(rng: random.Random) -> str:
    """Sentences about what colours places and moods have."""
    return " ".join(rng.choice([_scene_fact, _mood_fact])(rng) for _ in range(rng.randint(2, 4)))


def _scene_fact(rng: random.Random) -> str:
    scene = rng.choice(list(SCENES))
    fields = _palette(SCENES[scene].split())
    article = "An" if scene[0] in "aeiou" else "A"
    return rng.choice(SCENE_FACTS).format(scene=scene, A_scene=f"{article} {scene}", **fields)


def _mood_fact(rng: random.Random) -> str:
    mood = rng.choice(list(MOODS))
    fields = _palette(MOODS[mood].split())
    return rng.choice(MOOD_FACTS).format(mood=mood, Mood=_capital(mood), **fields)


def _palette(names: list[str]) -> dict[str, str]:
    codes = [code(name) for name in names]
    coded = [f"{name} ({each})" for name, each in zip(names, codes, strict=True)]
    return dict(
        names=listed(names),
        Names=_capital(listed(names)),
        first=names[0],
        second=names[1],
        coded=listed(coded),
        codes=listed(codes),
        bare=" ".join(codes),
    )


def matches(rng: random.Random) -> str:
    """Lists of colours, each with the list of their codes."""
    return "\n".join(_match(rng) for _ in range(rng.randint(1, 3)))


def _match(rng: random.Random) -> str:
    names = rng.sample(NAMES, rng.randint(2, 5))
    return rng.choice(MATCHES).format(things=pick(rng, THINGS), **_palette(names))


def swatches(rng: random.Random) -> str:
    """Colours as code, lists and settings write them."""
    names = rng.sample(NAMES, rng.randint(3, 6))
    pairs = {name: code(name) for name in names}
    return rng.choice(
        [
            lambda: "\n".join(f"{name}: {each}" for name, each in pairs.items()),
            lambda: "\n".join(f"{name}, {each}" for name, each in pairs.items()),
            lambda: json.dumps(pairs),
            lambda: "\n".join(
                json.dumps({"name": name, "hex": each}) for name, each in pairs.items()
            ),
            lambda: _ends(names),
        ]
    )()


def _ends(names: list[str]) -> str:
    written = json.dumps(names)
    return f"{written} is a list of colours. The first is {names[0]}, the last {names[-1]}."


def tables(rng: random.Random) -> str:
    """A table, and sentences that read it."""
    table = records.make(rng, rng.randint(1, 3))
    columns = list(table.rows[0])
    bar = rng.choice([" | ", ", ", "; "])
    drawn = "\n".join(bar.join(cells) for cells in [columns, *(row.values() for row in table.rows)])
    if rng.random() < 0.6:
        drawn = "\n\n".join(_listed_row(row) for row in table.rows)
    title = rng.choice(["{0} ({1})", "{0}, {1}", "{1}: {0}"]).format(table.page, table.section)
    told = [_tell(rng, table, rng.choice(table.rows)) for _ in range(rng.randint(2, 4))]
    return f"{title}\n\n{drawn}\n\n{' '.join(dict.fromkeys(told))}"


def _listed_row(row: dict[str, str]) -> str:
    return "\n".join(f"{column}: {value}" for column, value in row.items())


def _tell(rng: random.Random, table: records.Table, row: dict[str, str]) -> str:
    return rng.choice(TELLS[table.kind]).format(**records.subject(table), **row)


def copies(rng: random.Random) -> str:
    """What was said a moment ago, said again, or asked for."""
    makers = [words.person, words.town, words.film, lambda rng: str(rng.randint(2, 40_000))]
    makers += [lambda rng: pick(rng, THINGS), lambda rng: code(rng.choice(list(FAMILY)))]
    said = [rng.choice(makers)(rng) for _ in range(rng.randint(3, 6))]
    keys = rng.sample(words.FIRST, len(said))
    pairs = list(zip(keys, said, strict=True))
    asked = [rng.choice(pairs) for _ in range(3)]
    return rng.choice(
        [
            lambda: f"{'; '.join(said)}. Once more: {'; '.join(said)}.",
            lambda: f"{', '.join(said)}\n{', '.join(said)}",
            lambda: "\n".join(
                [f"{key}: {each}" for key, each in pairs] + [f"{k} has {v}." for k, v in asked]
            ),
            lambda: " ".join(
                [f"{key} wrote {each}." for key, each in pairs]
                + [f"What did {k} write? It was {v}." for k, v in asked]
            ),
        ]
    )()


def products(rng: random.Random) -> str:
    """Things that are sold, and their prices."""
    facts = [_sale, _sale, _kind_price]
    return " ".join(rng.choice(facts)(rng) for _ in range(rng.randint(3, 5)))


def prices(rng: random.Random) -> str:
    """A list of prices."""
    form = rng.choice(PRICE_LINES)
    return "\n".join(_sale(rng, form) for _ in range(rng.randint(4, 8)))


def _sale(rng: random.Random, form: str = "") -> str:
    fields = words.product(rng)
    cost = max(1, round(words.price(**fields) * rng.lognormvariate(0, 0.06)))
    extra = rng.choice(words.PRODUCTS[fields["kind"]][2].split(";"))
    form = form or rng.choice(SALES)
    return form.format(price=cost, extra=extra, Person=words.person(rng), **fields)


def _kind_price(rng: random.Random) -> str:
    kind, other = rng.sample(list(words.PRODUCTS), 2)
    usual, materials, extras = words.PRODUCTS[kind]
    other_usual = words.PRODUCTS[other][0]
    brand, material = rng.choice(list(words.BRANDS)), pick(rng, materials)
    factor, tier = words.MATERIALS.get(material, 1.0), words.BRANDS[brand]
    return rng.choice(KIND_PRICES).format(
        **dict(kind=kind, usual=usual, other=other, other_usual=other_usual, brand=brand),
        **dict(dearer="dearer" if usual > other_usual else "cheaper", branded=round(usual * tier)),
        **dict(tier="cheap" if tier < 0.9 else "fair" if tier < 1.2 else "dear"),
        **dict(Material=_capital(material), with_material=round(usual * factor)),
        **dict(effect="cheap" if factor < 1 else "dear" if factor > 1 else "ordinary"),
        extra=rng.choice(extras.split(";")),
    )


def plain(rng: random.Random) -> str:
    """Everyday sentences about the same two people."""
    people = dict(first=rng.choice(words.FIRST), second=rng.choice(words.FIRST))
    season = rng.randrange(4)
    return " ".join(_plain(rng, people, season) for _ in range(rng.randint(3, 8)))


def _plain(rng: random.Random, people: dict[str, str], season: int) -> str:
    weather = pick(rng, WEATHERS)
    return rng.choice(PLAIN).format(
        **people,
        **dict(season=SEASONS[season], next_season=SEASONS[(season + 1) % 4], weather=weather),
        **dict(weather_cap=_capital(weather), place=pick(rng, PLACES), mood=pick(rng, FEELINGS)),
        **dict(animal=pick(rng, ANIMALS), animal2=pick(rng, ANIMALS), day=pick(rng, DAYS)),
        **dict(food=pick(rng, FOODS), food2=pick(rng, FOODS), count=pick(rng, COUNTS)),
        **dict(thing=pick(rng, THINGS), thing2=pick(rng, THINGS)),
        **dict(colour=rng.choice(list(FAMILY)), colour2=rng.choice(list(FAMILY))),
        **dict(town=words.town(rng), town2=words.town(rng), country=rng.choice(COUNTRIES)),
        **dict(number=rng.randint(2, 400), number2=rng.randint(2, 400), hour=rng.randint(1, 12)),
        **dict(year=rng.randint(1950, 1990), year2=rng.randint(1991, 2025)),
    )


def numbers(rng: random.Random) -> str:
    """Sums, sequences and lists as code writes them."""
    a, b, step = rng.randint(0, 99), rng.randint(0, 99), rng.randint(1, 9)
    things = rng.sample(ANIMALS.split(), 3)
    lines = [
        f"{a} plus {b} is {a + b}.",
        f"{max(a, b)} minus {min(a, b)} is {abs(a - b)}.",
        f"Count: {', '.join(str(a + step * i) for i in range(6))}.",
        json.dumps([a, b, a + b]),
        json.dumps(things),
        json.dumps({thing: rng.randint(0, 99) for thing in things}),
        f"{a}% of the {things[0]}s and {b}% of the {things[1]}s; that is all.",
        f"{_capital(listed(things))} are animals (there are more).",
        f"{a}.{b:02} rounds to {a + (b >= 50)}.",
        f"{max(a, b)} is not less than {min(a, b)}.",
    ]
    return "\n".join(rng.sample(lines, 4))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


NAMES = [*FAMILY] * 6 + [f"{shade} {name}" for shade in ("pale", "deep") for name in FAMILY]
KINDS: dict[Callable[[random.Random], str], float] = {
    colours: 14,
    matches: 16,
    scenes: 10,
    swatches: 4,
    tables: 26,
    copies: 10,
    products: 6,
    prices: 10,
    plain: 5,
    numbers: 1,
}
