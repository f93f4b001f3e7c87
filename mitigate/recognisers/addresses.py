"""Street addresses, units and postcodes, in the orders that several languages write them."""

from __future__ import annotations

import re
from collections.abc import Iterator

ADDRESS, UNIT = "street address", "unit"  # kinds
_NAME = r"[^\W\d_a-z][\w'’.-]{0,30}+"  # a word with a capital letter
_HOUSE = r"\d{1,6}[A-Za-z]?(?:[-/]\d{1,5}[A-Za-z]?)?(?!\w|-\d)"
_WIND = r"(?:N|S|E|W|NE|NW|SE|SW|North|South|East|West)"
_OF = r"(?:(?:de|do|da|dos|das|del|della|delle|dei|di|du|des|la|las|los|le|les|el|l['’]|d['’]|e|y|et|aux?)[ ]?)"

_SURE = "street|st|road|rd|avenue|ave|lane|ln|drive|boulevard|blvd|terrace|crescent|highway|hwy|parkway|pkwy"
_SELDOM = (  # kinds of street that are ordinary words besides: with a capital letter
    "Streets?|Dr|Way|Court|Ct|Place|Pl|Square|Sq|Close|Cres|Circle|Cir|Trail|Trl|Loop|Row|Mews|Grove|Gardens|Quay|"
    "Wharf|Walk|Alley|Plaza|Ridge|Hills?|Turnpike|Crossing|Expressway|Freeway|Heights|Junction|Manor|Meadows?|Mills?|"
    "Overpass|Underpass|Passage|Pines|Ranch|Shores?|Springs|Station|Throughway|Trafficway|Tunnel|Unions?|Villages?|"
    "Vista|Wells|Bend|Bluffs?|Brook|Bypass|Causeway|Centers?|Club|Common|Corners?|Course|Cove|Creek|Dale|Dam|Divide|"
    "Estates?|Extensions?|Falls|Ferry|Fields?|Flats?|Fords?|Forest|Forges?|Forks?|Gateway|Glens?|Harbors?|Harbour|"
    "Haven|Hollow|Inlet|Keys?|Knolls?|Lakes?|Landing|Lights?|Locks?|Lodge|Mall|Oval|Parks?|Pass|Path|Pike|Plains?|"
    "Points?|Ports?|Prairie|Radial|Ramp|Rapids?|Rest|Run|Shoals?|Spurs?|Stravenue|Stream|Summit|Trace|Track|Valleys?|"
    "Viaduct|Views?|Ville|Walks|Wall|Ways"
)
_FRENCH = "rue|avenue|av\\.|boulevard|bd|place|chemin|allée|impasse|quai|route|cours"
_FIRST = (  # the kind of street comes before its name
    "rua|avenida|av|calle|c/|carrer|camino|carretera|paseo|plaza|plaça|praça|largo|travessa|estrada|alameda|via|viale|"
    "vicolo|piazza|corso|rue|boulevard|bd|place|chemin|allée|impasse|quai|route|cours|ulica|ul|aleja|aleje|al|plac|pl|"
    "os|ulice|náměstí|strada|str|bulevardul|улица|ул|проспект|пр"
)
_COMPOUND = (  # it ends the word: Hauptstraße, Keizersgracht, Puruntie
    "straße", "strasse", "str", "gasse", "weg", "allee", "platz", "ring", "damm", "ufer", "steig", "straat", "laan",
    "gracht", "plein", "dijk", "kade", "singel", "gade", "vej", "vænget", "stræde", "allé", "gatan", "gata", "vägen",
    "väg", "gränd", "torget", "veien", "vegen", "vei", "veg", "plass", "katu", "tie", "polku", "kuja", "raitti",
    "stigen", "bulevardi", "boulevard", "hof", "faret", "bakken",
)  # fmt: skip
_LAST = (  # it follows the name: Király u. 15, Narva mnt 7
    "u|utca|út|útja|tér|köz|tänav|tn|mnt|maantee|tee|puiestee|pst|straße|strasse|str|platz|weg|allee|gatan|gade|vej|"
    "caddesi|cad|sokak|sok|iela|gatvė"
)

_STREETS = (
    re.compile(  # 12 Harbour Street, 350 5th Avenue, 1600 Pennsylvania Avenue NW
        rf"(?<![\w.,-]){_HOUSE},?[ \t]{{1,2}}(?:{_WIND}\.?[ ])?(?:(?:{_NAME}|\d{{1,3}}(?:st|nd|rd|th))[ \t]){{1,4}}?"
        rf"(?:(?i:{_SURE})|{_SELDOM})\b(?:\.(?!\s+[A-Z]))?(?:[ ](?:N|S|E|W|NE|NW|SE|SW)\b)?"
    ),
    re.compile(  # 12 harbour street
        r"(?<![\w.,-])\d{1,5}[a-z]?,?[ ](?!(?:of|on|in|per|the|a|at|to)\b)(?:[a-z]{3,20}[ ]){1,2}"
        r"(?:street|road|avenue|lane|boulevard)\b"
    ),
    re.compile(  # 12, rue de la Paix
        rf"(?<![\w.-])\d{{1,4}}[ ]?(?:bis|ter|[A-D])?,?[ ](?i:{_FRENCH})[ ]{_OF}{{0,3}}{_NAME}"
        rf"(?:[ ]{_OF}{{0,2}}{_NAME}){{0,3}}"
    ),
    re.compile(  # Rua do Arenque 1634, Calle Mayor, 5, ul. Długa 7/9
        rf"(?<!\w)(?:{_HOUSE}[ ])?(?i:{_FIRST})\.?[ ]{_OF}{{0,3}}{_NAME}(?:[ ]{_OF}{{0,2}}{_NAME}){{0,4}},?[ ]"
        rf"(?:n[º°.]?[ ]?)?{_HOUSE}"
    ),
    re.compile(rf"(?<!\w)(?:{_HOUSE}[ ])?{_NAME}(?:[ ]{_NAME}){{0,3}}[ ](?i:{_LAST})\.?[ ]{_HOUSE}\.?"),
    re.compile(  # PO Box 123, PSC 0413, Box 8144
        r"(?<!\w)(?i:p\.?[ ]?o\.?[ ]?box|postfach|boîte postale|apartado|psc|cmr)[ ]\d{1,6}"
        r"(?:,?[ ]Box[ ]\d{1,6})?(?!\w)|(?<!\w)Unit[ ]\d{1,6},?[ ]Box[ ]\d{1,6}(?!\w)"
    ),
)
_WORD_AND_HOUSE = re.compile(rf"(?<!\w)(?:{_HOUSE}[ ])?([^\W\d_a-z][\w'’-]{{2,40}}+)\.?[ ]({_HOUSE})")
_YEAR = re.compile(r"(?:1[5-9]|20)\d\d")
_KIND = re.compile(rf"(?i:{_SURE})\.?$")

_UNIT = re.compile(
    r"(?<!\w)(?:[Aa]pt|[Aa]partment|[Ss]uite|[Ss]te|[Ff]lat|APT|SUITE)\b\.?[ ]#?"
    r"(?:\d{1,5}[A-Za-z]?|[A-Z]-?\d{1,4})(?!\w)"
)
_STATES = (
    "A[AEKLPRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|P[AR]|RI|S[CD]|T[NX]|UT|V[AIT]|"
    "W[AIVY]"
)
_POSTCODE = re.compile(  # British, Canadian, behind an American state, behind a word for it
    r"(?<![\w-])(?P<british>[A-PR-UWYZ][A-HK-Y]?\d[A-Z\d]? \d[ABD-HJLNP-UW-Z]{2})(?!\w)"
    r"|(?<![\w-])(?P<canadian>[ABCEGHJ-NPRSTVXY]\d[ABCEGHJ-NPRSTV-Z][ -]?\d[ABCEGHJ-NPRSTV-Z]\d)(?!\w)"
    rf"|(?<!\w)(?:{_STATES})[ ]{{1,2}}(?P<american>\d{{5}}(?:-\d{{4}})?)(?![\w-])"
    r"|(?<!\w)(?i:post(?:al)?[ ]?code|zip(?:[ ]?code)?|plz|postleitzahl|code postal|código postal|codice postale|cep)"
    r"(?:[ ](?:is|of|ist))?[ :]{1,2}(?P<named>(?=[A-Z ]{0,4}\d)[A-Z0-9]{2,5}(?:[ -][A-Z0-9]{2,4})?)(?!\w)"
)
_TOWN_POSTCODE = re.compile(r"(?<![\w-])(\d{4,6}(?:-\d{3,4})?|\d{3} \d{2}|\d{2}-\d{3})(?![\w-])")


def addresses(text: str) -> Iterator[tuple[int, int, str]]:
    """`street address` (with its number, without its town; or a post-office box), `unit` and `postcode`."""
    streets = list(_streets(text))
    for start, end in streets:
        yield start, end, ADDRESS
        if match := _TOWN_POSTCODE.search(text, end, end + 60):  # Hauptstraße 12, 10115 Berlin
            yield *match.span(1), "postcode"
    for match in _UNIT.finditer(text):
        yield *match.span(), UNIT
    for match in _POSTCODE.finditer(text):
        yield *match.span(str(match.lastgroup)), "postcode"


def _streets(text: str) -> Iterator[tuple[int, int]]:
    for pattern in _STREETS:
        for match in pattern.finditer(text):
            first, *_, last = match[0].split()
            if not (_YEAR.fullmatch(first) and not _KIND.fullmatch(last)):  # 2010 Final Four Run
                yield match.span()
    for match in _WORD_AND_HOUSE.finditer(text):  # Hauptstraße 12, Puruntie 82; not Spring 1979
        word = match[1].lower()
        name = (
            max(len(word) - len(kind) for kind in _COMPOUND if word.endswith(kind)) if word.endswith(_COMPOUND) else 0
        )
        if name >= 3 and not _YEAR.fullmatch(match[2]):
            yield match.span()
