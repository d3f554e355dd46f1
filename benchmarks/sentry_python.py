"""A program that computes in Python, for benchmarks/sentry.py: several kernels, each some times, the least counts.

    python3 sentry_python.py [REPEATS]

Prints a JSON object of milliseconds by kernel's name. Standard library only: the host's own interpreter runs it.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Callable


def nbody() -> object:
    """Floating point: planets that attract one another."""
    bodies = [
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 39.5],
        [4.84, -1.16, -0.10, 0.606, 2.81, -0.02, 0.0377],
        [8.34, 4.12, -0.40, -1.01, 1.82, 0.008, 0.0113],
        [12.9, -15.1, -0.22, 1.08, 0.869, -0.0108, 0.00172],
        [15.4, -25.9, 0.179, 0.979, 0.594, -0.0347, 0.00203],
    ]
    pairs = [(one, other) for at, one in enumerate(bodies) for other in bodies[at + 1 :]]
    for _ in range(2500):
        for one, other in pairs:
            dx, dy, dz = one[0] - other[0], one[1] - other[1], one[2] - other[2]
            pull = 0.001 / (dx * dx + dy * dy + dz * dz) ** 1.5
            for body, towards, mass in ((one, -pull, other[6]), (other, pull, one[6])):
                body[3] += dx * towards * mass
                body[4] += dy * towards * mass
                body[5] += dz * towards * mass
        for body in bodies:
            body[0] += 0.001 * body[3]
            body[1] += 0.001 * body[4]
            body[2] += 0.001 * body[5]
    return round(sum(body[0] for body in bodies), 6)


def documents() -> object:
    """JSON, there and back."""
    document = {
        "orders": [
            {
                "id": number,
                "name": f"order {number}",
                "lines": [{"sku": f"s{line}", "price": line / 4} for line in range(8)],
                "paid": number % 3 == 0,
                "where": "stra\u00dfe \u2116 \u00ab7\u00bb",
                "note": None,
            }
            for number in range(200)
        ]
    }
    text = ""
    for _ in range(8):
        text = json.dumps(document)
        document = json.loads(text)
    return len(text)


def patterns() -> object:
    """Regular expressions over a log."""
    source = random.Random(1)
    log = "\n".join(
        f"10.0.{source.randrange(256)}.{source.randrange(256)} - [{number:06d}] "
        f'"GET /item/{source.randrange(999)}?q=a%20b" {source.choice((200, 301, 404, 500))} {source.randrange(9000)}'
        for number in range(2500)
    )
    line = re.compile(r'^(\d+(?:\.\d+){3}) - \[(\d+)\] "(GET|POST) ([^" ?]+)(?:\?([^"]*))?" (\d{3}) (\d+)$', re.M)
    sizes = sum(int(found[7]) for found in line.finditer(log) if found[6] != "404")
    return sizes, len(re.sub(r"(\d)(?=(?:\d{3})+\b)", r"\1,", log)), len(re.findall(r"\b[45]\d\d\b", log))


def sorting() -> object:
    """Sorting numbers, texts, and records by a key."""
    source = random.Random(2)
    numbers = [source.random() for _ in range(20_000)]
    texts = [f"{number:.9f}" for number in numbers]
    records = sorted(zip(texts, numbers, strict=True), key=lambda record: -record[1])
    return sorted(numbers)[0] == records[-1][1], sorted(texts)[-1] == records[0][0]


def words() -> object:
    """Dictionaries and texts: counting words, objects with attributes."""

    class Word:
        def __init__(self, text: str) -> None:
            self.text = text
            self.count = 0

    source = random.Random(3)
    text = " ".join("".join(source.choices("etaoinshr", k=source.randrange(1, 5))) for _ in range(12_000))
    found: dict[str, Word] = {}
    for word in text.split():
        entry = found.get(word)
        if entry is None:
            entry = found[word] = Word(word)
        entry.count += 1
    return sum(entry.count for entry in found.values()), len("".join(sorted(found)).upper())


def digits() -> object:
    """Large integers: the digits of pi."""
    made: list[int] = []
    q, r, t, k, n, m = 1, 0, 1, 1, 3, 3
    while len(made) < 500:
        if 4 * q + r - t < n * t:
            made.append(n)
            q, r, n = 10 * q, 10 * (r - n * t), 10 * (3 * q + r) // t - 10 * n
        else:
            q, r, t, k, n, m = (
                q * k, (2 * q + r) * m, t * m, k + 1, (q * (7 * k + 2) + r * m) // (t * m), m + 2
            )  # fmt: skip
    return "".join(map(str, made[-10:]))


KERNELS: tuple[Callable[[], object], ...] = (nbody, documents, patterns, sorting, words, digits)


def least(kernel: Callable[[], object], repeats: int) -> float:
    """Milliseconds of the quickest run; each must give the same."""
    expected = kernel()  # warm
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = kernel()
        times.append(time.perf_counter() - begin)
        if result != expected:
            raise SystemExit(f"{kernel.__name__}: {result!r}, not {expected!r}")
    return min(times) * 1000


def main() -> None:
    """Run them all."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    print(json.dumps({kernel.__name__: least(kernel, repeats) for kernel in KERNELS}))


if __name__ == "__main__":
    main()
