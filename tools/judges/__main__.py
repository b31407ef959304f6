"""`python -m tools.judges`: how good the offline judge is, as JSON.

python -m tools.judges                            agreement with hand labels
python -m tools.judges agreement --leave-out      the same, with each register, and each author,
                                                  by a judge trained without it (half a minute)
python -m tools.judges agreement --perplexity     the same, with the embedded model's perplexity
python -m tools.judges short-answers              how short answers are read, by kind
python -m tools.judges calibrate RUN/rows.jsonl   the limit of perplexity, from a run's answers
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from care.errors import CareError
from care.judges.rules import RulesJudge
from care.runs.reading import parse_json, text_lines
from tools.judges import short_answers
from tools.judges.agreement import agreement
from tools.judges.agreement_by_kind import left_out
from tools.judges.calibration import calibrate


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    args = _parser().parse_args(arguments)
    try:
        result = _result(args)
    except CareError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    json.dump(result, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
    return 0


def _result(args: argparse.Namespace) -> dict:
    if args.command == "calibrate":
        return _calibrate(args)
    if args.command == "short-answers":
        return short_answers.agreement()
    found = _agreement(args.perplexity)
    if args.leave_out:
        found["left_out"] = left_out("register")
        found["left_out_authors"] = left_out("author")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.judges", description="Check the judges.")
    parser.set_defaults(perplexity=False, leave_out=False)
    commands = parser.add_subparsers(dest="command")
    compare = commands.add_parser("agreement", help="agreement with hand labels (the default)")
    compare.add_argument(
        "--perplexity", action="store_true", help="judge with the embedded model's perplexity too"
    )
    compare.add_argument(
        "--leave-out",
        action="store_true",
        help="judge each register and each author with a classifier trained without it too",
    )
    commands.add_parser("short-answers", help="how short answers are read, by kind")
    measure = commands.add_parser("calibrate", help="the limit of perplexity")
    measure.add_argument("rows", type=Path, help="rows.jsonl of an evaluation with defense 'none'")
    measure.add_argument(
        "--broken",
        type=Path,
        help="JSON lines with `response` and `defense`: more broken answers, by defense",
    )
    measure.add_argument("--limit", type=float, help="measure this limit, don't choose one")
    measure.add_argument("--seed", type=int, default=0, help="of drawing and shuffling")
    return parser


def _agreement(with_perplexity: bool) -> dict:
    if not with_perplexity:
        return agreement()
    from care.judges.perplexity import MAX_PERPLEXITY, perplexities
    from care.models.embedded.cache import base_text_model

    model, tokenizer = base_text_model()
    judge = RulesJudge(partial(perplexities, model, tokenizer), max_perplexity=MAX_PERPLEXITY)
    return agreement(judge=judge)


def _calibrate(args: argparse.Namespace) -> dict:
    from care.judges.perplexity import perplexities
    from care.models.embedded.cache import base_text_model

    rows = _read(args.rows)
    others: dict[str, list[str]] = {}
    for row in _read(args.broken) if args.broken else []:
        others.setdefault(row["defense"], []).append(row["response"])
    model, tokenizer = base_text_model()
    return calibrate(
        rows,
        partial(perplexities, model, tokenizer),
        tokenizer,
        others=others,
        limit=args.limit,
        seed=args.seed,
    )


def _read(path: Path) -> list[dict]:
    return [
        parse_json(line, f"{path}, line {number}", otherwise="pass a run's rows.jsonl")
        for number, line in text_lines(path, "file of rows")
    ]


if __name__ == "__main__":
    raise SystemExit(main())
