"""Decoding with caches that grow in place, beside the library's, which copies at each token.

The embedded model answers a batch of prompts that were read, 24 tokens each, in turns with either
cache (`care.models.roomy_layers`). Seconds of the process's own processors are told, since these
hold on a machine with other work too; "ratio" is the median of the paired rounds, ours over the
library's. The answers must be the same.

    python benchmarks/decoding.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from unittest import mock

from transformers import DynamicCache

import care
from care.models import prompt_cache

TOKENS = 24
"""Of an answer."""


def library_cache(config) -> DynamicCache:
    """What the library would decode with."""
    return DynamicCache(config=config.get_text_config())


def timed(vlm: care.VLM, examples, cache) -> tuple[float, list[str]]:
    """Processor seconds of answering prompts that were read into caches of this kind."""
    with mock.patch.object(prompt_cache, "roomy_cache", cache):
        prompts = vlm.prefill(examples, batch_size=len(examples))
        start = time.process_time()
        answers = vlm.generate(prompts, max_new_tokens=TOKENS)
    return time.process_time() - start, answers


def main() -> None:
    parser = argparse.ArgumentParser(description="decoding with caches that grow in place")
    parser.add_argument("--suite", default="pictured-goal", help="what is answered")
    parser.add_argument("--rows", type=int, default=32, help="answers in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    vlm = care.VLM.embedded()
    examples = list(care.load_suite(arguments.suite))[: arguments.rows]
    ours, library = prompt_cache.roomy_cache, library_cache
    timed(vlm, examples[:2], ours)
    rounds = []
    for number in range(arguments.rounds):
        order = [ours, library] if number % 2 else [library, ours]
        found = {cache: timed(vlm, examples, cache) for cache in order}
        assert found[ours][1] == found[library][1], "the answers differ"
        rounds.append((found[ours][0], found[library][0]))
        print(f"ours {rounds[-1][0]:.2f} s, the library's {rounds[-1][1]:.2f} s", flush=True)
    print(
        json.dumps(
            {
                "ratio": round(statistics.median(one / other for one, other in rounds), 3),
                "seconds": round(statistics.median(one for one, _ in rounds), 3),
                "library_seconds": round(statistics.median(other for _, other in rounds), 3),
                "rows": len(examples),
                "tokens": TOKENS,
            }
        )
    )


if __name__ == "__main__":
    main()
