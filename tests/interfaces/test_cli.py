"""The command line: options reach the job, results reach the user, exit codes are right."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from runpy import run_module
from types import SimpleNamespace

import pytest

import care
from care.errors import UsageError
from care.interfaces.cli import app as cli
from care.interfaces.cli.tables import print_table
from care.models.spec import ModelSpec
from care.pipeline import workflow as pipeline
from care.pipeline.config import RepairJob
from care.runs.spec import RunSpec
from kit.reports import report_tree


@pytest.fixture
def calls(monkeypatch):
    """Stands in for the pipeline: what was called with what, and results as it gives them."""
    made = SimpleNamespace(jobs=[], tree=report_tree())
    made.tree["summary"] = {"mean_asr_after": 0.2, "verdict": "Safer."}
    because = {"site": "16.ffn_out", "modality": "text", "reason": "because"}
    found = {"recommended": [because], "supported": ["It holds."], "unsupported": []}
    results = {"repair": made.tree, "diagnose": found, "fit": Path("runs/fit/repair")}

    def stand_in(name):
        def function(job, *rest, progress):
            made.jobs.append((name, job, *rest))
            return results[name]

        return function

    for name in results:
        monkeypatch.setattr(pipeline, name, stand_in(name))
    return made


def unburdened(*words: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, which fails if anything heavy is imported."""
    code = (
        f"import sys; from care.interfaces.cli.app import main; code = main({list(words)!r});"
        "heavy = {'torch', 'transformers', 'scipy', 'sklearn', 'numpy'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); sys.exit(code)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_help_is_quick_because_nothing_heavy_is_imported():
    done = unburdened("--help")
    assert done.returncode == 0, done.stderr
    for name in ("repair", "diagnose", "fit", "evaluate", "judge", "report", "list", "check"):
        assert name in done.stdout


def test_that_there_is_no_run_to_judge_is_told_as_quickly(tmp_path):
    done = unburdened("judge", str(tmp_path / "nowhere"), "--judge", "rules")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: There is no run in") and done.stderr.count("\n") == 1


def test_in_a_file_no_cell_of_a_table_is_folded(capsys):
    print_table(["prompt", "n"], [["word " * 60, "1"]])
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["prompt", "n"]
    assert row.rstrip() == "word " * 60 + "  1"


@pytest.mark.parametrize(
    "name", ["repair", "diagnose", "fit", "evaluate", "judge", "report", "list", "export"]
)
def test_every_command_explains_itself(name, capsys):
    assert cli.main([name, "-h"]) == 0
    assert f"care {name}" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"care {care.__version__}\n"


def test_it_runs_as_a_module_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["care", "--version"])
    with pytest.raises(SystemExit) as ended:
        run_module("care", run_name="__main__")
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("care ")


def test_a_job_by_default(calls, capsys):
    assert cli.main(["repair"]) == 0
    assert calls.jobs[0][1] == RepairJob()
    out = capsys.readouterr().out
    assert "Safer." in out
    assert str(Path("runs/repair/report.html")) in out
    assert all(suite["name"] in out for suite in calls.tree["suites"])


def test_a_quick_job_is_labelled(calls, capsys):
    assert cli.main(["repair", "--quick"]) == 0
    assert calls.jobs[0][1] == RepairJob(quick=True)
    assert "Quick: fitted, chosen and tested on a quarter of the examples." in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("name", ["repair", "diagnose", "fit"])
def test_every_option_reaches_the_job(calls, name, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.touch()
    given = {
        "seed": 3,
        "out": tmp_path / "out",
        "dtype": "bfloat16",
        "device_map": "cpu",
        "batch_size": 8,
        "max_new_tokens": 5,
        "test_length": 7,
        "preset": "paper",
        "attacks": file,
        "benign": file,
        "revision": "abc",
    }
    options = [p for k, v in given.items() for p in ("--" + k.replace("_", "-"), str(v))]
    flags = ["--resume", "--trust-remote-code", "--thoughts", "[[…]]", "--thoughts", "<a>…</a>"]
    assert cli.main([name, "some/model", *options, *flags]) == 0
    model = ModelSpec("some/model", "bfloat16", "cpu", "abc", True, thoughts=("[[…]]", "<a>…</a>"))
    run = RunSpec(tmp_path / "out", resume=True, seed=3, batch_size=8)
    own = {"preset": "paper", "attacks": file, "benign": file, "test_length": 7}
    wanted = RepairJob(model=model, run=run, max_new_tokens=5, **own)
    assert calls.jobs == [(name, wanted)]
    assert type(calls.jobs[0][1].preset) is str  # jobs are written down as JSON and compared


def test_diagnose_and_fit_print_what_was_found(calls, capsys):
    assert cli.main(["diagnose"]) == 0
    assert "16.ffn_out  text  because" in capsys.readouterr().out
    assert cli.main(["fit"]) == 0
    assert capsys.readouterr().out.strip() == str(Path("runs/fit/repair"))


def test_a_threshold_that_is_missed_exits_with_1(calls, capsys):
    arguments = ["repair", "--fail-above"]
    assert cli.main([*arguments, "0.2"]) == 0
    assert cli.main([*arguments, "0.19"]) == 1
    assert "above 0.19" in capsys.readouterr().err
    assert cli.main([*arguments, "1.5"]) == 2
    calls.tree["summary"]["mean_asr_after"] = None
    assert cli.main([*arguments, "0.2"]) == 2
    assert "attack suite" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["repair", "--seed", "x"],
        ["repair", "--seed", "-1"],
        ["repair", "--preset", "best"],
        ["repair", "--dtype", "int8"],
        ["repair", "--batch-size", "0"],
        ["repair", "--attacks", "nowhere.jsonl"],
        ["evaluate", "--suite", " , "],
        ["judge", "x"],
        ["report"],
        ["show", "suite", "direct", "--split", "train"],
    ],
)
def test_wrong_use_exits_with_2(arguments, capsys):
    assert cli.main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_ctrl_c(calls, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "repair", interrupted)
    assert cli.main(["repair"]) == 130
    assert capsys.readouterr().err == ("interrupted; what is done is kept, go on with --resume\n")
    monkeypatch.setattr("care.report.stored.pages_of", interrupted)
    assert cli.main(["report", "x"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_mistake_of_ours_is_not_swallowed(calls, monkeypatch):
    def broken(*_, **__):
        raise FileNotFoundError(2, "No such file or directory", "templates")

    monkeypatch.setattr(pipeline, "repair", broken)
    with pytest.raises(FileNotFoundError):
        cli.main(["repair"])


def test_warnings_of_care_are_one_line_and_of_others_none(calls, monkeypatch, capsys):
    def warn(*_, **__):
        for module in ("care.defenses.artefact", "transformers.modeling"):
            message = f"from {module}"
            warnings.warn_explicit(message, UserWarning, "file.py", 1, module=module)
        return Path("repair")

    monkeypatch.setattr(pipeline, "fit", warn)
    assert cli.main(["fit"]) == 0
    assert capsys.readouterr().err == "Warning: from care.defenses.artefact\n"


def test_report_is_written_anew(tmp_path, capsys):
    from care.report.files import write_report

    page, numbers = write_report(report_tree(), tmp_path)
    before = numbers.read_bytes()
    for path in (tmp_path, numbers):
        page.write_text("old")
        assert cli.main(["report", str(path)]) == 0
        assert capsys.readouterr().out.strip() == str(page)
        assert page.stat().st_size > 1000
    assert numbers.read_bytes() == before


def test_public_names():
    for name in care.__all__:
        assert getattr(care, name) is not None
        assert name in dir(care)
    with pytest.raises(AttributeError):
        care.nothing  # noqa: B018
    assert issubclass(UsageError, care.errors.CareError)


@pytest.mark.slow
def test_evaluate_is_called_whatever_was_imported_first():
    code = (  # torch is imported once, and the package anew each time
        "import sys\n"
        "for first in ('care', 'care.evaluation', 'care.evaluation.runner'):\n"
        "    for name in [n for n in sys.modules if n.partition('.')[0] == 'care']:\n"
        "        del sys.modules[name]\n"
        "    __import__(first); import care; from care.errors import UsageError\n"
        "    try: care.evaluate(None, [], [], judge=None)\n"
        "    except UsageError: print(first)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["care", "care.evaluation", "care.evaluation.runner"]


def commands():
    """Every command with its words on the command line."""

    def below(group, words):
        for name, found in group.commands.items():
            if hasattr(found, "commands"):
                yield from below(found, (*words, name))
            else:
                yield (*words, name), found

    return dict(below(cli.whole_command(), ()))


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_an_option_is_given_once_or_may_be_repeated(words, capsys):
    for option in commands()[words].params:
        if option.param_type_name != "option" or option.multiple or option.is_flag:
            continue
        name = option.opts[0]
        assert cli.main([*words, name, "1", name, "2"]) == 2
        assert capsys.readouterr().err == f"Error: {name} was given 2 times; give it once.\n"


@pytest.mark.slow
def test_sigterm_ends_as_ctrl_c_does(tmp_path):
    script = (
        "import os, signal, sys, time\n"
        "from care.interfaces.cli import app as cli\n"
        "from care.pipeline import workflow as pipeline\n"
        "from care.runs.run import Run\n"
        "def job(given, progress):\n"
        "    with Run(given.run.out, resume=given.run.resume) as run:\n"
        "        run.add({'key': 'first'})\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(30)\n"
        "pipeline.repair = job\n"
        f"sys.exit(cli.main(['repair', '--out', {str(tmp_path / 'run')!r}]))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 143
    assert ended.stderr == "interrupted; what is done is kept, go on with --resume\n"
    assert (tmp_path / "run/rows.jsonl").read_text() == '{"key": "first"}\n'


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_what_the_terminal_cant_show_is_an_escape(encoding, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "from \u2192 to 😀 \\ud83d", "kind": "benign"}\n', encoding="utf-8")
    for arguments, code in ((["show", "suite", str(path)], 0), (["report", "no\udcff"], 2)):
        script = f"from care.interfaces.cli.app import main; raise SystemExit(main({arguments!a}))"
        ended = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert ended.returncode == code and b"Traceback" not in ended.stderr, ended.stderr
        ended.stdout.decode(encoding), ended.stderr.decode(encoding)


def test_bars_of_loading_are_hidden_and_those_of_downloads_stay(calls):
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    logging.enable_progress_bar()
    assert cli.main(["repair"]) == 0
    try:
        assert not logging.is_progress_bar_enabled()
        assert not are_progress_bars_disabled()
    finally:
        logging.enable_progress_bar()
