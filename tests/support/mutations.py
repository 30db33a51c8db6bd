"""JSON configurations with one thing wrong, as a careless hand or a hostile one would leave them."""

import random
from typing import Any


VALUES = (None, True, "abc", "", [], {}, [[1]], -1, 0, 1, 2.5, 10**9, 2**31, -(10**30), 1e308, float("nan"), float("inf"))


def mutated(config: dict[str, Any], seed: int) -> Any:
    """Another value for one key, a multiple of its number, a key left out or doubled; or no configuration at all."""
    source = random.Random(seed)
    if source.random() < 0.03:
        return source.choice([[], "abc", None, 3, {}])
    config, key = dict(config), source.choice(sorted(config))
    kind = source.random()
    if kind < 0.1:
        del config[key]
    elif kind < 0.2:
        config[key + "_"] = config[key]
    elif kind < 0.4 and isinstance(config[key], (int, float)):
        config[key] *= source.choice([0.5, 2, 3, -1, 10**6])
    elif kind < 0.5 and isinstance(config[key], list):
        config[key] = config[key] + [source.choice(VALUES)]
    else:
        config[key] = source.choice(VALUES)
    return config
