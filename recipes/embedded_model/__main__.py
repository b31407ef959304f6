"""`python -m recipes.embedded_model`: train the embedded model, attack it, look at its behaviour.

python -m recipes.embedded_model train     the shipped weights anew (25 minutes on two cores
                                           with AMX, about two hours without)
python -m recipes.embedded_model attack    the universal adversarial pictures anew (about two
                                           minutes each on two cores)
python -m recipes.embedded_model save      the model with other trained weights, as a checkpoint
                                           that `care compare FOLDER` and others take
python -m recipes.embedded_model check     how the model behaves on test goals, with intervals;
                                           exits with 1 if a whole interval lies below what is
                                           asked of the model

What is killed goes on with --resume. Exits with 2 on wrong use, 130 when it is interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from care.errors import CareError, UsageError
from care.models.embedded.cache import WEIGHTS, apply_trained, load
from care.models.spec import EMBEDDED, ModelSpec
from care.models.vlm import VLM
from care.runs.progress import Progress
from recipes.embedded_model.adversarial import make
from recipes.embedded_model.behaviour import THRESHOLDS, behaviours, shortfalls
from recipes.embedded_model.train import TrainConfig, train

PRECISIONS = ("auto", "bfloat16", "float16", "float32")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    args = _parser().parse_args(arguments)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        kept = "; what is done is kept, go on with --resume" if "resume" in args else ""
        log(f"interrupted{kept}")
        return 130
    except CareError as error:
        log(f"Error: {error}")
        return 2


def log(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.embedded_model", description="How the embedded model was made."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    training = commands.add_parser("train", help="train the shipped weights anew")
    training.set_defaults(run=_train)
    training.add_argument("--seed", type=_at_least(0), default=0, help="seed of the recipe")
    training.add_argument(
        "--align-steps", type=_at_least(1), default=240, help="steps of the tower's alignment"
    )
    training.add_argument("--steps", type=_at_least(1), default=800, help="steps of the lessons")
    attacking = commands.add_parser("attack", help="make the adversarial pictures anew")
    attacking.set_defaults(run=_attack)
    for command, folder in ((training, "runs/train"), (attacking, "runs/attack")):
        command.add_argument(
            "--out", type=Path, default=Path(folder), help="folder for results and checkpoints"
        )
        command.add_argument(
            "--resume", action="store_true", help="go on with what is in --out, or start"
        )
    saving = commands.add_parser("save", help="a checkpoint of the model with trained weights")
    saving.set_defaults(run=_save)
    saving.add_argument(
        "--weights", type=Path, default=WEIGHTS, help="trained weights; those that are shipped"
    )
    saving.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    saving.add_argument("--dtype", choices=PRECISIONS, default="auto", help="precision")
    checking = commands.add_parser("check", help="how the model behaves on test goals")
    checking.set_defaults(run=_check)
    checking.add_argument("--model", help="a checkpoint that save wrote; none: what is shipped")
    checking.add_argument("--json", action="store_true", help="as JSON")
    checking.add_argument("-n", type=_at_least(1), default=60, help="test examples of each suite")
    checking.add_argument("--dtype", choices=PRECISIONS, default="auto", help="precision")
    return parser


def _at_least(least: int) -> Any:
    def number(text: str) -> int:
        if (found := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{found} is below {least}")
        return found

    return number


def _train(args: argparse.Namespace) -> int:
    _check_folder(args.out, args.resume)

    def untrained() -> tuple[Any, Any]:
        model, processor = load("bfloat16", trained=False)
        model.set_attn_implementation("eager")  # the fused kernels give no gradients here
        return model, processor

    config = TrainConfig(seed=args.seed, align_steps=args.align_steps, steps=args.steps)
    print(train(untrained, args.out, config, log))
    return 0


def _attack(args: argparse.Namespace) -> int:
    _check_folder(args.out, args.resume)
    for path in make(VLM.embedded(), args.out, log):
        print(path)
    return 0


def _save(args: argparse.Namespace) -> int:
    _check_folder(args.out, resume=False)
    model, processor = load(args.dtype, trained=False)
    apply_trained(model, args.weights)
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    print(args.out)
    return 0


def _check(args: argparse.Namespace) -> int:
    model = EMBEDDED if args.model is None else args.model
    found = behaviours(ModelSpec(model, args.dtype).load(), n=args.n, progress=Progress)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        for name, rate in found.items():
            interval = f"{rate['rate']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"
            least = f"at least {THRESHOLDS[name]:.2f}" if name in THRESHOLDS else ""
            print(f"{name:28} {interval}  n = {rate['n']}  {least}".rstrip())
    missed = shortfalls(found)
    for name in missed:
        log(f"{name}: at most {found[name]['high']:.2f}, below {THRESHOLDS[name]:.2f}.")
    return 1 if missed else 0


def _check_folder(out: Path, resume: bool) -> None:
    """UsageError if `out` holds something and nobody said to go on with it."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; pass a folder.")
    if not resume and out.is_dir() and any(out.iterdir()):
        raise UsageError(
            f"The folder {out} isn't empty; go on in it with --resume or choose another folder."
        )


if __name__ == "__main__":
    raise SystemExit(main())
