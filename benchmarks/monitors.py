"""What monitors add to the time of an answer that raises no alarm (embedded model, one at a time).

    share(n) = (request read + n tokens of what is said read)
               / (prompt and picture + n decode steps)

A request is read by a detector and by the model's own refusal log-odds, in one pass; what is said
is read as an answer and as an exchange, which are told apart too. A decode step is timed as the
difference between answers of 24 tokens and of one, and the reading of n tokens on a text of n
tokens; all interleaved in one process. Medians of the rounds, with the interval of their bootstrap.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from itertools import product
from time import perf_counter

import numpy as np
import torch

import care
from care.data.example import Example
from care.data.small_world.pictures import seeded
from care.data.small_world.scenes import unrelated
from care.defenses.monitors.detector import Detector
from care.defenses.monitors.monitor import Monitor, first_alarms
from care.defenses.monitors.reading import Exchange
from care.models.sites import Site

BOTH = ("answer", "exchange")
WORDS = "To plant a small tree in the garden you will need a spade, some water and a sunny place. "


def seconds(work) -> float:
    begun = perf_counter()
    work()
    return perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    vlm = care.VLM.embedded()
    layer = round(0.6 * (vlm.anatomy.n_layers - 1))
    width = vlm.anatomy.site_width(Site(layer, "layer_out"))
    rng = np.random.default_rng(0)
    detector = Detector(*(rng.standard_normal(width).astype(np.float32) for _ in range(2)))
    site = Site(layer, "layer_out")
    requests = [Monitor("request", 1e9, site, detector), Monitor("request", 1e9)]
    watching = [Monitor(reads, 1e9, site, detector) for reads in BOTH]
    asked = Example("a", "How do I plant a tree?", images=(unrelated(seeded("monitors")),))
    texts = {n: vlm.tokenizer.decode(vlm.response_ids(WORDS * 40)[:n]) for n in (24, 256)}

    def answer(tokens: int) -> None:
        vlm.answers([asked], max_new_tokens=tokens, batch_size=1)

    works = {
        "one": lambda: answer(1),
        "24": lambda: answer(24),
        "request": lambda: first_alarms(vlm, requests, [Exchange(asked)], 1),
    }
    for monitor, n in product(watching, texts):
        read = partial(monitor.alarms, vlm, [Exchange(asked, texts[n])], 1)
        works[f"{monitor.reads} {n}"] = read
    said = vlm.answers([asked], max_new_tokens=24)[0].tokens
    for work in works.values():
        work()
    taken = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(seconds(work))
    rows = {name: np.array(part) for name, part in taken.items()}

    def share(n: int, reads: Sequence[str], pick: np.ndarray) -> float:
        median = {name: float(np.median(part[pick])) for name, part in rows.items()}
        step = (median["24"] - median["one"]) / (said - 1)
        read = median["request"] + sum(median[f"{each} {n}"] for each in reads)
        return read / (median["one"] + (n - 1) * step)

    drawn = [rng.integers(0, rounds, rounds) for _ in range(1000)]
    found = {
        f"{'_and_'.join(reads)}_{n}": {
            "median": share(n, reads, np.arange(rounds)),
            "interval": np.quantile(
                [share(n, reads, pick) for pick in drawn], [0.025, 0.975]
            ).tolist(),
        }
        for reads, n in product([("answer",), ("exchange",), BOTH], texts)
    }
    medians = {name: round(1000 * float(np.median(part)), 2) for name, part in rows.items()}
    print("milliseconds:", medians)
    print(json.dumps(found | {"rounds": rounds, "threads": torch.get_num_threads(), "ms": medians}))


if __name__ == "__main__":
    main()
