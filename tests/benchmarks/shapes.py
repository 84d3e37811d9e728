"""Part `shapes`: requests of four lengths that come mixed against the same requests in order of length."""

from __future__ import annotations

import random
from collections import defaultdict

from benchmarks.models import MINILM, embedding, minilm, tokens
from benchmarks.report import number, progress, ratios, spread, table
from benchmarks.served import served
from benchmarks.worker import Worker

_LENGTHS = (16, 32, 64, 128)
_IN_FLIGHT = 32


def run(*, quick: bool) -> None:
    """Measure and print."""
    rounds, requests = (2, 128) if quick else (9, 384)
    rates: dict[str, list[float]] = defaultdict(list)
    with Worker("benchmarks.bare") as bare:
        answers = [embedding(bare("answer", length=length)["embedding"]) for length in _LENGTHS]
    with Worker("benchmarks.generator") as generator, served({MINILM: minilm()}) as target:
        pairs = zip(_LENGTHS, answers, strict=True)
        bodies = [str(target.body(MINILM, tokens(1, length), answer, 1e-4).file) for length, answer in pairs]
        for turn in range(rounds):
            sorted_order = sorted(range(requests), key=lambda index: index % len(bodies))
            order = [index % len(bodies) for index in sorted_order]
            mixed = random.Random(turn).sample(order, requests)  # noqa: S311 - the same every time is the point
            contenders = {"in order": order, "mixed": mixed}
            for name in list(contenders)[:: -1 if turn % 2 else 1]:
                progress(f"shapes: round {turn + 1} of {rounds}: {name}")
                with target.answers_all(MINILM, requests):
                    options = {"order": contenders[name], "in_flight": _IN_FLIGHT, "count": requests}
                    result = generator("closed", address=target.address, bodies=bodies, **options)
                rates[name].append(requests / result["seconds"])
    table(
        f"shapes: all-MiniLM-L6-v2, {', '.join(map(str, _LENGTHS))} tokens, {_IN_FLIGHT} at once: mixed over in order",
        "mixed over in order >= 0.8",
        ("mixed rows/s", "in order rows/s", "mixed over in order"),
        [(number(rates["mixed"]), number(rates["in order"]), spread(ratios(rates["mixed"], rates["in order"])))],
    )
