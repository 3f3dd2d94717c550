"""Make data/assets/ once from its sources. For maintainers: users get the finished files with the repository.

    python -m tools.build_assets NotoColorEmoji.ttf us-atlas/package world-atlas/package

The font is fonts-noto-color-emoji 2.042 (Debian), the two folders are the unpacked npm packages us-atlas 3.0.1 and
world-atlas 2.0.2. Sources and licences: data/assets/LICENSES.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mmlora.paths import DATA

ASSETS = DATA / "assets"
ICON_SIZE = 96  # the largest an icon is drawn in a picture of 256 x 256
BITMAP_SIZE = 109  # the one size at which the font holds its bitmaps
#: Group -> "name codepoint" pairs. Only single code points: sequences would need a text shaper.
ICONS = {
    "mammal": """dog 1F415 cat 1F408 cow 1F404 horse 1F40E pig 1F416 sheep 1F411 goat 1F410 rabbit 1F407 mouse 1F401
        tiger 1F405 lion 1F981 elephant 1F418 giraffe 1F992 zebra 1F993 kangaroo 1F998 monkey 1F412 gorilla 1F98D
        bear 1F43B panda 1F43C fox 1F98A wolf 1F43A camel 1F42A whale 1F40B dolphin 1F42C bat 1F987 hedgehog 1F994
        squirrel 1F43F otter 1F9A6 rhinoceros 1F98F hippopotamus 1F99B koala 1F428 seal 1F9AD deer 1F98C""",
    "bird": """chicken 1F414 rooster 1F413 duck 1F986 owl 1F989 eagle 1F985 parrot 1F99C penguin 1F427 flamingo 1F9A9
        peacock 1F99A swan 1F9A2 turkey 1F983 dove 1F54A goose 1FABF""",
    "fish": "fish 1F41F tropical_fish 1F420 blowfish 1F421 shark 1F988",
    "reptile": "turtle 1F422 snake 1F40D lizard 1F98E crocodile 1F40A",
    "amphibian": "frog 1F438",
    "insect": """bee 1F41D butterfly 1F98B ladybug 1F41E ant 1F41C beetle 1FAB2 cricket 1F997 mosquito 1F99F
        caterpillar 1F41B""",
    "invertebrate": "spider 1F577 snail 1F40C worm 1FAB1 crab 1F980 octopus 1F419 shrimp 1F990 squid 1F991",
    "plant": """oak 1F333 pine 1F332 palm 1F334 cactus 1F335 sunflower 1F33B rose 1F339 tulip 1F337 herb 1F33F
        rice 1F33E clover 1F340 seedling 1F331 daisy 1F33C maple_leaf 1F341""",
    "fungus": "mushroom 1F344",
    "food": """apple 1F34E green_apple 1F34F banana 1F34C orange 1F34A lemon 1F34B grapes 1F347 strawberry 1F353
        watermelon 1F349 pear 1F350 peach 1F351 cherries 1F352 pineapple 1F34D carrot 1F955 corn 1F33D potato 1F954
        tomato 1F345 broccoli 1F966 eggplant 1F346 cucumber 1F952 pepper 1FAD1 chestnut 1F330 bread 1F35E cheese 1F9C0
        egg 1F95A cookie 1F36A ice_cream 1F366 honey 1F36F milk 1F95B butter 1F9C8 lollipop 1F36D""",
    "object": """soccer_ball 26BD basketball 1F3C0 baseball 26BE tennis_racket 1F3BE balloon 1F388 teddy_bear 1F9F8
        sock 1F9E6 scarf 1F9E3 glove 1F9E4 yarn 1F9F6 hammer 1F528 key 1F511 coin 1FA99 bell 1F514 gem 1F48E
        brick 1F9F1 rock 1FAA8 wood 1FAB5 feather 1FAB6 sponge 1F9FD bucket 1FAA3 magnifying_glass 1F50D window 1FA9F
        mirror 1FA9E bubbles 1FAE7 light_bulb 1F4A1 candle 1F56F pencil 270F scissors 2702 book 1F4D5 spoon 1F944
        chair 1FA91 umbrella 2614 backpack 1F392 shoe 1F45F top_hat 1F3A9 crown 1F451 ring 1F48D magnet 1F9F2 bolt 1F529
        soap 1F9FC glasses 1F453 clock 23F0 guitar 1F3B8 drum 1F941 trumpet 1F3BA gift 1F381 ice_cube 1F9CA
        test_tube 1F9EA battery 1F50B basket 1F9FA broom 1F9F9 kite 1FA81 dice 1F3B2 shirt 1F455""",
    "vehicle": """car 1F697 bus 1F68C truck 1F69A bicycle 1F6B2 train 1F682 sailboat 26F5 airplane 2708
        helicopter 1F681 rocket 1F680 tractor 1F69C sled 1F6F7 skateboard 1F6F9 fire_engine 1F692 ambulance 1F691
        shopping_cart 1F6D2 canoe 1F6F6""",
    "weather": """sun 2600 cloud 2601 rain_cloud 1F327 snow_cloud 1F328 lightning 1F329 tornado 1F32A rainbow 1F308
        snowflake 2744 snowman 26C4 moon 1F319 earth 1F30D star 2B50 fire 1F525 droplet 1F4A7 volcano 1F30B
        mountain 26F0 wave 1F30A desert 1F3DC beach 1F3D6""",
    "place": """school 1F3EB hospital 1F3E5 bank 1F3E6 house 1F3E0 hotel 1F3E8 store 1F3EA factory 1F3ED church 26EA
        castle 1F3F0 stadium 1F3DF tent 26FA park 1F3DE fountain 26F2 ferris_wheel 1F3A1 carousel 1F3A0 circus 1F3AA
        library 1F4DA gas_station 26FD museum 1F3DB slide 1F6DD""",
}
CONTINENTS = {
    "Africa": """Algeria|Angola|Benin|Botswana|Burkina Faso|Burundi|Cameroon|Central African Rep.|Chad|Congo|
        Côte d'Ivoire|Dem. Rep. Congo|Djibouti|Egypt|Eq. Guinea|Eritrea|eSwatini|Ethiopia|Gabon|Gambia|Ghana|Guinea|
        Guinea-Bissau|Kenya|Lesotho|Liberia|Libya|Madagascar|Malawi|Mali|Mauritania|Morocco|Mozambique|Namibia|Niger|
        Nigeria|Rwanda|S. Sudan|Senegal|Sierra Leone|Somalia|Somaliland|South Africa|Sudan|Tanzania|Togo|Tunisia|
        Uganda|W. Sahara|Zambia|Zimbabwe""",
    "Antarctica": "Antarctica",
    "Asia": """Afghanistan|Armenia|Azerbaijan|Bangladesh|Bhutan|Brunei|Cambodia|China|Cyprus|Georgia|India|Indonesia|
        Iran|Iraq|Israel|Japan|Jordan|Kazakhstan|Kuwait|Kyrgyzstan|Laos|Lebanon|Malaysia|Mongolia|Myanmar|N. Cyprus|
        Nepal|North Korea|Oman|Pakistan|Palestine|Philippines|Qatar|Saudi Arabia|South Korea|Sri Lanka|Syria|Taiwan|
        Tajikistan|Thailand|Timor-Leste|Turkey|Turkmenistan|United Arab Emirates|Uzbekistan|Vietnam|Yemen""",
    "Australia": "Australia",
    "Europe": """Albania|Austria|Belarus|Belgium|Bosnia and Herz.|Bulgaria|Croatia|Czechia|Denmark|Estonia|Finland|
        France|Germany|Greece|Hungary|Iceland|Ireland|Italy|Kosovo|Latvia|Lithuania|Luxembourg|Macedonia|Moldova|
        Montenegro|Netherlands|Norway|Poland|Portugal|Romania|Serbia|Slovakia|Slovenia|Spain|Sweden|Switzerland|
        Ukraine|United Kingdom""",
    "North America": """Bahamas|Belize|Canada|Costa Rica|Cuba|Dominican Rep.|El Salvador|Greenland|Guatemala|Haiti|
        Honduras|Jamaica|Mexico|Nicaragua|Panama|Puerto Rico|United States of America""",
    "South America": """Argentina|Bolivia|Brazil|Chile|Colombia|Ecuador|Falkland Is.|Guyana|Paraguay|Peru|Suriname|
        Trinidad and Tobago|Uruguay|Venezuela""",
    "": "Fiji|Fr. S. Antarctic Lands|New Caledonia|New Zealand|Papua New Guinea|Solomon Is.|Vanuatu",
}
URALS = 60  # degrees east: where Russia is cut into Europe and Asia
#: Rough areas in lon/lat, drawn under the land, whose coasts then bound them.
OCEANS = {
    "Arctic Ocean": [[(-180, 90), (180, 90), (180, 66), (-180, 66)]],
    "Atlantic Ocean": [
        [
            (-98, 66),
            (-98, 18),
            (-84, 13),
            (-82, 8.5),
            (-79.5, 9.1),
            (-77, 7),
            (-70, -10),
            (-70, -52),
            (-68, -60),
            (20, -60),
            (20, 10),
            (33, 30.5),
            (42, 38),
            (42, 48),
            (30, 60),
            (25, 66),
        ]
    ],
    "Indian Ocean": [
        [
            (20, -60),
            (20, 10),
            (33, 30.5),
            (60, 31),
            (95, 25),
            (99, 10),
            (102, 3),
            (104, 0),
            (105.5, -6.5),
            (120, -9),
            (131, -8.5),
            (142, -10),
            (143, -20),
            (147, -40),
            (147, -60),
        ]
    ],
    "Pacific Ocean": [
        [
            (180, 66),
            (110, 66),
            (95, 25),
            (99, 10),
            (102, 3),
            (104, 0),
            (105.5, -6.5),
            (120, -9),
            (131, -8.5),
            (142, -10),
            (143, -20),
            (147, -40),
            (147, -60),
            (180, -60),
        ],
        [
            (-180, 66),
            (-98, 66),
            (-98, 18),
            (-84, 13),
            (-82, 8.5),
            (-79.5, 9.1),
            (-77, 7),
            (-70, -10),
            (-70, -52),
            (-68, -60),
            (-180, -60),
        ],
    ],
    "Southern Ocean": [[(-180, -60), (180, -60), (180, -90), (-180, -90)]],
}


def build_icons(font_file: Path):
    font = ImageFont.truetype(str(font_file), BITMAP_SIZE)
    table = {}
    (ASSETS / "icons").mkdir(parents=True, exist_ok=True)
    for group, pairs in ICONS.items():
        words = pairs.split()
        for name, codepoint in zip(words[::2], words[1::2]):
            if name in table:
                raise SystemExit(f"two icons are called {name!r}; rename one in ICONS")
            table[name] = {"codepoint": codepoint, "group": group}
            picture = _glyph(font, chr(int(codepoint, 16))).resize((ICON_SIZE, ICON_SIZE), Image.LANCZOS)
            palette = picture.quantize(64, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            palette.save(ASSETS / "icons" / f"{name}.png", optimize=True)
    (ASSETS / "icons.json").write_text(json.dumps(table, indent=1) + "\n")
    print(f"{len(table)} icons, {sum(f.stat().st_size for f in (ASSETS / 'icons').iterdir()) / 1000:.0f} kB")


def _glyph(font, character: str) -> Image.Image:
    """The character on a transparent square, cut to what is inked."""
    sheet = Image.new("RGBA", (200, 200))
    ImageDraw.Draw(sheet).text((20, 20), character, font=font, embedded_color=True)
    box = sheet.getbbox()
    if box is None:
        raise SystemExit(f"the font has no picture for U+{ord(character):X}; take another code point in ICONS")
    inked = sheet.crop(box)
    side = max(inked.size)
    square = Image.new("RGBA", (side, side))
    square.paste(inked, ((side - inked.width) // 2, (side - inked.height) // 2))
    return square


def decode(topology: dict, layer: str, tolerance: float) -> dict[str, list[list[tuple[float, float]]]]:
    """Name -> rings in degrees, from TopoJSON (delta-coded, quantised arcs; ~i is arc i backwards).

    Arcs are simplified before they are joined, so that neighbours still share their borders. Holes are left
    out: no country of these maps needs one, since what lies inside is drawn on top.
    """
    (kx, ky), (x0, y0) = topology["transform"]["scale"], topology["transform"]["translate"]
    arcs = []
    for deltas in topology["arcs"]:
        x = y = 0
        arc = []
        for dx, dy in deltas:
            x, y = x + dx, y + dy
            arc.append((x0 + kx * x, y0 + ky * y))
        arcs.append(simplify(arc, tolerance))

    def ring(indices):
        points = []
        for i in indices:
            points.extend((arcs[i] if i >= 0 else arcs[~i][::-1])[1 if points else 0 :])
        return points

    shapes = {}
    for geometry in topology["objects"][layer]["geometries"]:
        polygons = [geometry["arcs"]] if geometry["type"] == "Polygon" else geometry["arcs"]
        shapes.setdefault(geometry["properties"]["name"], []).extend(ring(polygon[0]) for polygon in polygons)
    return shapes


def simplify(points, tolerance):
    """Douglas and Peucker's: keep the ends and every point farther than `tolerance` from the chord, recursively."""
    if len(points) < 3:
        return points
    (ax, ay), (bx, by) = points[0], points[-1]
    length = ((bx - ax) ** 2 + (by - ay) ** 2) ** 0.5

    def distance(p):
        if not length:
            return ((p[0] - ax) ** 2 + (p[1] - ay) ** 2) ** 0.5
        return abs((bx - ax) * (ay - p[1]) - (ax - p[0]) * (by - ay)) / length

    far = max(range(1, len(points) - 1), key=lambda i: distance(points[i]))
    if distance(points[far]) <= tolerance:
        return [points[0], points[-1]]
    return simplify(points[: far + 1], tolerance)[:-1] + simplify(points[far:], tolerance)


def area(ring) -> float:
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, ring[1:] + ring[:1]))) / 2


def clip(ring, keep, cross):
    """The part of `ring` where keep(point); `cross(a, b)` is the point of the border between a and b."""
    out = []
    for a, b in zip(ring[-1:] + ring[:-1], ring):
        if keep(a) != keep(b):
            out.append(cross(a, b))
        if keep(b):
            out.append(b)
    return out


def split_at(ring, lon):
    """The parts of `ring` west and east of the meridian."""

    def cross(a, b):
        return (lon, a[1] + (b[1] - a[1]) * (lon - a[0]) / (b[0] - a[0]))

    return clip(ring, lambda p: p[0] < lon, cross), clip(ring, lambda p: p[0] >= lon, cross)


def uncross(ring):
    """World-atlas closes rings across the 180th meridian: unroll them there and cut them again; Antarctica is closed
    by way of the pole."""
    rolled = [ring[0]]
    for lon, lat in ring[1:]:
        rolled.append((lon + 360 * round((rolled[-1][0] - lon) / 360), lat))
    if abs(rolled[-1][0] - rolled[0][0]) > 180:
        rolled += [(rolled[-1][0], -90.0), (rolled[0][0], -90.0)]
    pieces = []
    for turn in (-360, 0, 360):
        turned = [(lon + turn, lat) for lon, lat in rolled]
        inside = split_at(split_at(turned, -180)[1], 180)[0]
        if len(inside) > 2:
            pieces.append(inside)
    return pieces


def rounded(ring, digits):
    points = [(round(x, digits), round(y, digits)) for x, y in ring]
    return [p for a, p in zip(points[-1:] + points[:-1], points) if p != a]


def build_states(package: Path):
    shapes = decode(json.loads((package / "states-10m.json").read_text()), "states", 0.03)
    skip = {
        "Alaska",
        "Hawaii",
        "District of Columbia",
        "American Samoa",
        "Guam",
        "Puerto Rico",
        "Commonwealth of the Northern Mariana Islands",
        "United States Virgin Islands",
    }
    states = {name: shapes[name] for name in sorted(shapes.keys() - skip)}
    _write("us_states.json", {n: [rounded(r, 2) for r in rings if area(r) > 0.03] for n, rings in states.items()})


def build_world(package: Path):
    shapes = decode(json.loads((package / "countries-110m.json").read_text()), "countries", 0.3)
    of_country = {c.strip(): name for name, text in CONTINENTS.items() for c in text.split("|")}
    continents = {name: [] for name in CONTINENTS}
    for country, rings in shapes.items():
        for ring in (piece for r in rings for piece in uncross(r)):
            if country == "Russia":
                # Chukotka's far end lies beyond the 180th meridian, and is in Asia too
                west, east = split_at(ring, URALS)
                parts = {"Europe": west, "Asia": east} if min(p[0] for p in ring) > -100 else {"Asia": ring}
            elif country == "France" and ring[0][0] < -40:
                parts = {"South America": ring}  # French Guiana
            else:
                parts = {of_country[country]: ring}
            for name, part in parts.items():
                if len(short := rounded(part, 1)) > 2 and area(short) > 0.5:
                    continents[name].append(short)
    continents["Oceania's islands"] = continents.pop("")
    _write("world.json", {"continents": continents, "oceans": OCEANS})


def _write(name: str, data):
    (ASSETS / name).write_text(json.dumps(data, separators=(",", ":"), ensure_ascii=False) + "\n")
    print(f"{name}: {(ASSETS / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    build_icons(Path(sys.argv[1]))
    build_states(Path(sys.argv[2]))
    build_world(Path(sys.argv[3]))
