"""Six functions and a stateful class: the tools of a small travel desk."""

_COUNTRIES = {
    "Oslo": "Norway",
    "London": "Britain",
    "Prague": "Czechia",
    "Warsaw": "Poland",
    "Tokyo": "Japan",
    "Nairobi": "Kenya",
    "Lima": "Peru",
    "Delhi": "India",
}
_CITIES = {
    "Fram Museum": "Oslo",
    "Big Ben": "London",
    "Charles Bridge": "Prague",
    "Royal Castle": "Warsaw",
    "Skytree": "Tokyo",
    "Giraffe Centre": "Nairobi",
    "Larco Museum": "Lima",
    "Red Fort": "Delhi",
}
_CURRENCIES = {
    "Norway": "krone",
    "Britain": "pound",
    "Czechia": "koruna",
    "Poland": "zloty",
    "Japan": "yen",
    "Kenya": "shilling",
    "Peru": "sol",
    "India": "rupee",
}
_PER_EURO = {
    "krone": 12,
    "pound": 1,
    "koruna": 25,
    "zloty": 4,
    "yen": 160,
    "shilling": 150,
    "sol": 4,
    "rupee": 90,
}
_JULY = {
    "Oslo": 18,
    "London": 19,
    "Prague": 20,
    "Warsaw": 21,
    "Tokyo": 26,
    "Nairobi": 16,
    "Lima": 17,
    "Delhi": 31,
}
_LONGITUDES = {
    "Oslo": 11,
    "London": 0,
    "Prague": 14,
    "Warsaw": 21,
    "Tokyo": 140,
    "Nairobi": 37,
    "Lima": -77,
    "Delhi": 77,
}


def find_city(landmark: str) -> str:
    """City of a landmark.

    Args:
        landmark: the landmark
    """
    return _look_up(_CITIES, landmark)


def find_country(city: str) -> str:
    """Country of a city.

    Args:
        city: the city
    """
    return _look_up(_COUNTRIES, city)


def find_currency(country: str) -> str:
    """Currency of a country.

    Args:
        country: the country
    """
    return _look_up(_CURRENCIES, country)


def euro_rate(currency: str) -> int:
    """Units of a currency for one euro.

    Args:
        currency: the currency
    """
    return _look_up(_PER_EURO, currency)


def july_warmth(city: str) -> int:
    """Warmth of a city in July.

    Args:
        city: the city
    """
    return _look_up(_JULY, city)


def flight_hours(origin: str, target: str) -> int:
    """Hours of a flight.

    Args:
        origin: the first city
        target: the last city
    """
    return 1 + abs(_look_up(_LONGITUDES, origin) - _look_up(_LONGITUDES, target)) // 12


class TripPlan:
    """A traveller's stops; each episode has a plan of its own."""

    def __init__(self, stops: dict[str, int] | None = None):
        self.stops = dict(stops or {})  # city: nights

    def add_stop(self, city: str, nights: int) -> str:
        """Add a stop.

        Args:
            city: the city
            nights: the nights
        """
        if city in self.stops:
            raise ValueError(f"{city} is a stop already")
        _look_up(_COUNTRIES, city)
        self.stops[city] = nights
        return "added"

    def drop_stop(self, city: str) -> str:
        """Drop a stop.

        Args:
            city: the city
        """
        _look_up(self.stops, city)
        del self.stops[city]
        return "dropped"

    def set_nights(self, city: str, nights: int) -> str:
        """Change the nights of a stop.

        Args:
            city: the city
            nights: the nights
        """
        _look_up(self.stops, city)
        self.stops[city] = nights
        return "changed"


def _look_up(table: dict, name: str):
    if name not in table:
        raise ValueError(f"{name} is not known")
    return table[name]
