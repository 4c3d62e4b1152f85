"""The words, colours and prices of a small invented world, which the corpus and the demos share."""

import random
from collections.abc import Sequence

split = str.split  # words, as they read best

COLOURS = {  # name: hex code, by what one would call it
    "red": """red ff0000 crimson dc143c scarlet ff2400 ruby 9b111e brick b22222 cherry d2042d
        maroon 800000 wine 722f37 poppy e8432e tomato ff6347""",
    "orange": """orange ffa500 coral ff7f50 apricot fbceb1 peach ffcba4 tangerine f28500
        amber ffbf00 pumpkin ff7518 copper b87333 terracotta e2725b salmon fa8072 rust b7410e
        ginger b06500 carrot ed9121""",
    "yellow": """yellow ffff00 gold ffd700 lemon fff44f mustard e1ad01 honey eba937 saffron f4c430
        straw e4d96f butter fff1a6 canary ffef00 sand c2b280 ochre cc7722""",
    "green": """green 008000 lime bfff00 olive 808000 moss 8a9a5b sage 9caf88 mint 98ff98
        emerald 50c878 forest 228b22 fern 4f7942 jade 00a86b pine 01796f pistachio 93c572
        basil 5f8f4e ivy 3d5a3a khaki c3b091""",
    "blue": """blue 0000ff navy 000080 azure 007fff sky 87ceeb cobalt 0047ab turquoise 40e0d0
        aqua 00ffff denim 1560bd steel 4682b4 sapphire 0f52ba ice d6ecef midnight 191970
        lagoon 4cb7a5 teal 008080 peacock 005f73""",
    "purple": """purple 800080 violet 8f00ff lavender e6e6fa lilac c8a2c8 plum 8e4585 mauve e0b0ff
        orchid da70d6 grape 6f2da8 amethyst 9966cc aubergine 472c4c heather b7a0c4 iris 5a4fcf
        indigo 4b0082""",
    "pink": """pink ffc0cb rose ff66a3 blush de5d83 fuchsia ff00ff raspberry e30b5c
        flamingo fc8eac carnation ffa6c9 mulberry c54b8c""",
    "brown": """brown 964b00 chestnut 954535 chocolate 7b3f00 coffee 6f4e37 caramel c68e17
        cinnamon d2691e walnut 5c4033 tan d2b48c umber 635147 sepia 704214 mocha 967969
        cocoa 4e2a1e oak 806517""",
    "grey": """grey 808080 silver c0c0c0 slate 708090 charcoal 36454f ash b2beb5 smoke 848884
        pewter 899499 stone 928e85 fog d5d8dc graphite 41424c""",
    "white": """white ffffff ivory fffff0 snow fffafa bone e3dac9 chalk f2f0e6 linen faf0e6
        cream fffdd0 pearl eae0c8 beige f5f5dc""",
    "black": "black 000000 ink 1b1f3b onyx 353839 coal 0c0a08 raven 0b0b1f ebony 282c34",
}
FAMILY = {name: family for family, text in COLOURS.items() for name in text.split()[::2]}
HEX = {
    name: code
    for text in COLOURS.values()
    for name, code in zip(text.split()[::2], text.split()[1::2], strict=True)
}
WARMTH = dict(
    red="warm", orange="warm", yellow="warm", pink="warm", brown="warm", green="cool", blue="cool"
) | dict(purple="cool", grey="neutral", white="neutral", black="neutral")

SCENES = {  # the colours of a place at a time, the first the most
    "autumn forest": "rust amber moss chestnut",
    "winter harbour": "slate ice navy snow",
    "spring meadow": "fern lemon lilac sky",
    "summer beach": "sand turquoise coral sky",
    "desert at noon": "ochre sand terracotta azure",
    "desert at night": "midnight indigo umber silver",
    "mountain lake": "teal steel pine snow",
    "city at night": "ink charcoal saffron violet",
    "old library": "walnut sepia wine gold",
    "tea house": "jade sage bone oak",
    "fruit market": "tangerine cherry lime canary",
    "flower market": "rose iris lemon fern",
    "rainy street": "grey denim smoke amber",
    "northern lights": "emerald violet midnight aqua",
    "coral reef": "coral aqua fuchsia saffron",
    "wheat field": "straw gold tan sky",
    "vineyard": "wine grape olive tan",
    "lavender field": "lavender amethyst sage linen",
    "snowy village": "snow ice brick pine",
    "bakery": "caramel cream cinnamon cocoa",
    "coffee bar": "coffee mocha cream graphite",
    "jazz club": "midnight copper wine onyx",
    "toy shop": "red canary blue lime",
    "ice cream cart": "pistachio blush butter chocolate",
    "fishing boat": "navy brick chalk steel",
    "rose garden": "rose blush ivy cream",
    "bamboo grove": "basil jade pistachio straw",
    "volcano": "scarlet pumpkin coal ash",
    "sunrise": "peach apricot rose sky",
    "sunset": "pumpkin crimson plum indigo",
    "thunderstorm": "graphite slate iris fog",
    "moonlit sea": "midnight silver peacock pearl",
    "haunted house": "raven aubergine pumpkin smoke",
    "royal palace": "purple gold ruby ivory",
    "workshop": "rust steel oak charcoal",
    "space station": "black silver cobalt white",
    "jungle": "forest emerald lime umber",
    "swamp": "olive moss umber pewter",
    "orchard": "cherry fern apricot bone",
    "herb garden": "basil sage mint chalk",
    "bookshop": "mulberry walnut linen mustard",
    "railway station": "brick graphite brown fog",
    "lighthouse": "white red cobalt stone",
    "hay barn": "straw maroon oak honey",
    "carnival": "fuchsia orange turquoise yellow",
    "hospital": "white mint azure grey",
    "spa": "lagoon pearl khaki heather",
    "ski lodge": "ebony snow cherry walnut",
}
MOODS = {
    "calm": "sage sky sand lavender",
    "cheerful": "yellow coral lime azure",
    "gloomy": "slate charcoal plum fog",
    "romantic": "rose wine blush pearl",
    "fresh": "mint lemon aqua white",
    "cosy": "caramel brick cream walnut",
    "elegant": "onyx ivory gold pewter",
    "playful": "fuchsia canary turquoise orange",
    "earthy": "ochre umber moss terracotta",
    "dreamy": "lilac ice peach mauve",
    "bold": "scarlet cobalt saffron black",
    "rustic": "rust oak linen olive",
    "mysterious": "indigo raven aubergine teal",
    "sweet": "pink butter mint carnation",
}

FIRST = split("""Ada Alma Anton Astrid Bela Boris Carla Cora Daria Dino Edgar Elin Emil Enzo
    Erik Eva Farid Felix Flora Greta Hanna Hugo Ida Igor Ines Iris Ivan Jana Jonas Karl Kira
    Lena Leo Lina Luca Lucia Mara Marco Marta Mina Mira Nadia Nils Nora Olga Oscar Otto Paula
    Petra Rosa Rudi Sara Selma Simon Sofia Tara Tilda Tomas Ursula Vera Viktor Wanda Yara Zoe""")
LAST = split("""Abel Adler Arden Baker Banks Becker Bell Berg Blom Brandt Brook Carver Castle
    Dahl Dale Dorn Drake Ekman Ellis Falk Farrow Finch Fisher Frost Garner Gold Gray Haas Hale
    Hansen Harper Heath Holm Hunter Jansen Keller Kent Kern Klein Knight Lake Lang Larsen
    Linden Lund Marsh Mason Miller Moor Nash Nilsen Norden Olsen Orlov Palmer Parker Petrov
    Quinn Reed Rivers Roth Sander Shaw Silva Stone Storm Taylor Thorn Torres Vale Vogel Wagner
    Walker Weber West Winter Wolf Young""")
TOWN_STARTS = split("""Ald Ash Barn Black Bram Bright Cald Clare Crow Dan East Elm Fair Fern
    Glen Grim Hal Har High Hol King Lang Long Mar Mill New North Oak Old Raven Red Rock Silver
    South Stan Stone Thorn Wal West White Win Wood""")
TOWN_ENDS = split("""borough bridge brook bury by combe dale field ford gate ham haven hill
    hurst land ley mere mouth port stead ton wick wood worth""")
COUNTRIES = split("Arland Belmora Corvia Dorland Estmark Feldia Galdora Halmark Istria Kelland")
CLUBS = split("Rovers United Athletic City Wanderers Rangers Albion Stars")
LEAGUES = ["First Division", "Second Division", "Northern League", "National Cup", "Premier League"]
PARTIES = ["Green", "Liberal", "Labour", "Conservative", "Farmers", "Union", "Reform", "Centre"]
EVENTS = ["100 metres", "400 metres", "1500 metres", "Marathon", "Long jump", "High jump"]
RANKS = ["1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th"]
TITLE_FIRST = split("""Silent Broken Golden Hidden Last Lost Empty Burning Frozen Distant
    Secret Wild Quiet Paper Iron Crystal Crooked Forgotten Endless Borrowed""")
TITLE_LAST = split("""Harbour River Garden Winter Mirror Letter Road Tower Island Summer
    Station Promise Shadow Orchard Clock Bridge Kingdom Window Voyage Circus""")
ROLES = split("""doctor teacher detective sailor farmer pilot judge singer thief nurse painter
    soldier baker widow king waiter""")

# A kind of product: its usual price in dollars, materials, and something it may come with.
PRODUCTS = {
    "kettle": (40, "steel glass copper", "a bamboo handle;a whistle;a fast boil"),
    "teapot": (30, "clay glass iron", "a fine strainer;two cups;a cork lid"),
    "lamp": (60, "brass wooden glass", "a linen shade;a dimmer;a long cord"),
    "chair": (120, "oak walnut plastic", "a soft cushion;curved arms;a high back"),
    "table": (350, "oak walnut glass", "two drawers;folding legs;a smooth finish"),
    "sofa": (900, "leather linen velvet", "deep seats;three cushions;wooden feet"),
    "desk": (280, "oak pine steel", "a cable tray;one drawer;a shelf"),
    "bed": (600, "oak pine steel", "a slatted base;a padded head;storage below"),
    "rug": (150, "wool cotton silk", "a fringe;a woven pattern;a soft backing"),
    "blanket": (50, "wool cotton fleece", "a checked pattern;a fringe;a carry bag"),
    "mug": (12, "clay glass steel", "a wide handle;a lid;a painted leaf"),
    "plate": (14, "clay glass wooden", "a raised rim;a blue line;a matt glaze"),
    "knife": (45, "steel ceramic titanium", "a walnut handle;a sheath;a keen edge"),
    "pan": (55, "steel iron copper", "a glass lid;two handles;a heavy base"),
    "blender": (80, "steel plastic glass", "four blades;a pulse switch;a travel cup"),
    "toaster": (45, "steel plastic chrome", "six settings;a crumb tray;wide slots"),
    "oven": (700, "steel glass ceramic", "a timer;a fan;a grill"),
    "fridge": (950, "steel glass plastic", "two doors;an ice drawer;quiet cooling"),
    "clock": (35, "wooden brass plastic", "large hands;an alarm;a quiet motor"),
    "watch": (220, "steel gold leather", "a date window;a calendar;a spare strap"),
    "ring": (400, "silver gold titanium", "a small stone;a twisted band;a gift box"),
    "bag": (110, "leather canvas nylon", "two pockets;a long strap;brass buckles"),
    "wallet": (40, "leather canvas nylon", "eight card slots;a coin pocket;a zip"),
    "belt": (35, "leather canvas nylon", "a brass buckle;a woven edge;five holes"),
    "jacket": (160, "leather cotton wool", "a hood;inner pockets;a warm lining"),
    "scarf": (30, "wool silk cotton", "a striped pattern;a fringe;a soft touch"),
    "hat": (28, "wool straw cotton", "a wide brim;a ribbon;a chin cord"),
    "shoe": (95, "leather canvas rubber", "a thick sole;spare laces;a soft insole"),
    "boot": (140, "leather rubber canvas", "a warm lining;a side zip;a deep tread"),
    "tent": (240, "nylon canvas cotton", "four pegs;two doors;a rain cover"),
    "bicycle": (650, "steel titanium carbon", "seven gears;a basket;disc brakes"),
    "helmet": (60, "plastic carbon leather", "a visor;a chin strap;air vents"),
    "guitar": (380, "maple cedar carbon", "six strings;a case;a tuner"),
    "violin": (520, "maple cedar carbon", "a bow;a case;a chin rest"),
    "drum": (260, "maple steel plastic", "two sticks;a stand;a tuning key"),
    "camera": (480, "plastic titanium chrome", "a zoom lens;a flash;a tripod"),
    "radio": (70, "plastic wooden chrome", "a long aerial;two speakers;an alarm"),
    "speaker": (130, "plastic wooden fabric", "deep bass;a battery;a remote"),
    "keyboard": (85, "plastic steel wooden", "lit keys;a wrist rest;a long cable"),
    "monitor": (310, "plastic steel glass", "a swivel stand;thin edges;two ports"),
    "drill": (120, "plastic steel carbon", "two batteries;ten bits;a case"),
    "hammer": (24, "steel wooden rubber", "a firm grip;a claw;a long handle"),
    "ladder": (110, "steel wooden plastic", "rubber feet;six steps;a tool tray"),
    "candle": (15, "wax soy glass", "a cotton wick;a mild scent;a tin lid"),
}
MATERIALS = dict.fromkeys(split("plastic cotton rubber nylon pine wax straw fleece"), 0.7)
MATERIALS |= dict.fromkeys(split("leather copper walnut brass silk velvet maple ceramic"), 1.4)
MATERIALS |= dict.fromkeys(split("gold titanium carbon"), 2.2)  # and 1 for all others
GRADES = {"basic": 0.6, "simple": 0.7, "classic": 1.0, "sturdy": 1.1, "fine": 1.4, "premium": 1.8}
SIZES = {"small": 0.7, "compact": 0.8, "medium": 1.0, "large": 1.4, "giant": 1.9}
BRANDS = {"Bixo": 0.6, "Tavi": 0.7, "Norvik": 0.9, "Halden": 1.0, "Oluna": 1.1, "Kestrel": 1.3}
BRANDS |= {"Marlowe": 1.6, "Aurelia": 2.2}


def pick(rng: random.Random, choices: str | Sequence):
    """One of a sequence, or one of the words of a text."""
    return rng.choice(choices.split() if isinstance(choices, str) else list(choices))


def person(rng: random.Random) -> str:
    """A first name and a last one."""
    return f"{rng.choice(FIRST)} {rng.choice(LAST)}"


def town(rng: random.Random) -> str:
    """A town of which there is no other."""
    return rng.choice(TOWN_STARTS) + rng.choice(TOWN_ENDS)


def film(rng: random.Random) -> str:
    """The title of a film."""
    return f"The {rng.choice(TITLE_FIRST)} {rng.choice(TITLE_LAST)}"


def listed(words: Sequence[str]) -> str:
    """`red, blue and green`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def code(name: str) -> str:
    """The hex code of a colour, such as coral or pale coral."""
    shade, _, plain = name.rpartition(" ")
    toward = {"pale": 255, "deep": 0, "": 0}[shade]
    share = {"pale": 0.5, "deep": 0.4, "": 0.0}[shade]
    channels = bytes.fromhex(HEX[plain])
    return "#" + "".join(f"{round(each + (toward - each) * share):02x}" for each in channels)


def near(rng: random.Random, hexed: str, most: int) -> str:
    """A colour whose channels are off by `most` at most."""
    channels = bytes.fromhex(hexed[1:])
    moved = (min(255, max(0, each + rng.randint(-most, most))) for each in channels)
    return "#" + "".join(f"{each:02x}" for each in moved)


def price(kind: str, material: str, grade: str, size: str, brand: str) -> float:
    """What such a product usually costs, in dollars."""
    usual = PRODUCTS[kind][0] * MATERIALS.get(material, 1.0)
    return usual * GRADES[grade] * SIZES[size] * BRANDS[brand]


def product(rng: random.Random) -> dict[str, str]:
    """A product in words: what `price` takes."""
    kind = rng.choice(list(PRODUCTS))
    return dict(
        kind=kind,
        material=pick(rng, PRODUCTS[kind][1]),
        grade=rng.choice(list(GRADES)),
        size=rng.choice(list(SIZES)),
        brand=rng.choice(list(BRANDS)),
    )
