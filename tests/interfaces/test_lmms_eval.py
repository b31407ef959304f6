"""care as a model of lmms-eval: its registry, published prompts, batches, a repair, refusals."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from care.data.example import Example
from care.defenses.base import Defense
from care.defenses.repair.repair import Repair
from care.errors import ArtefactError, ModelError, UsageError
from care.models.alarms import Alarm
from care.models.responses import Answer
from care.models.vlm import VLM
from kit import lmms_tasks, tiny
from kit.repairs import made

pytestmark = [
    pytest.mark.lmms,
    pytest.mark.skipif(
        importlib.util.find_spec("lmms_eval") is None,
        reason="lmms-eval isn't installed; make test-lmms has its own environment for these",
    ),
]

EDIT_ALL = Repair((made(strength=4.0),))
"""Changes every token of every answer."""


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Tables are unpacked, and submissions written, below the test's folder."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def model(vlm, repair=None, **options):
    from care.interfaces.lmms_eval.model import CareModel

    return CareModel(vlm, repair, **{"batch_size": 4, **options})


def task_manager(folder):
    """Of the tasks in one folder; those of lmms-eval itself take seconds to list."""
    from lmms_eval.tasks import TaskManager

    return TaskManager("ERROR", include_path=str(folder), include_defaults=False, model_name="care")


def evaluated(lm, folder, *names, limit=None, **options) -> dict[str, Any]:
    """lmms-eval's own evaluation of tasks on local tables."""
    from lmms_eval.evaluator import simple_evaluate

    for name in names:
        lmms_tasks.write_task(folder, name, **options)
    manager = task_manager(folder)
    return simple_evaluate(
        model=lm,
        tasks=list(names),
        task_manager=manager,
        limit=limit,
        # The random model rambles; what it says is not what is tested.
        gen_kwargs="max_new_tokens=6",
        bootstrap_iters=0,
        process_docs_parallel=1,
    )


def saying(text):
    """In place of `VLM.answers`: the same answer to everything."""
    return lambda self, examples, **options: [Answer(text, 1, 1, ended=True) for _ in examples]


def answers(results, name) -> list[str]:
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"][0] for sample in samples]


def prompts(results, name) -> list[str]:
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    return [sample["arguments"][0] for sample in samples]


class Request:
    """What lmms-eval hands to a model, of a task whose documents are a list."""

    def __init__(self, lm, number, text="Describe the image.", asked=None, visuals=None):
        visuals = [tiny.picture(number)] if visuals is None else visuals
        lm.task_dict.setdefault("made", {"test": {}})["test"][number] = visuals
        self.task_name = "made"
        self.args = (text, {} if asked is None else asked, lambda doc: doc, number, "made", "test")


# -- found by name ---------------------------------------------------------------------------------


def test_the_registry_of_lmms_eval_knows_it():
    from lmms_eval.models import get_model

    from care.interfaces.lmms_eval.model import CareModel

    assert get_model("care") is CareModel


def test_by_name_with_arguments_of_the_command_line(tmp_path, vlm):
    vlm.model.save_pretrained(tmp_path / "model")
    vlm.processor.save_pretrained(tmp_path / "model")
    EDIT_ALL.save(tmp_path / "repair")
    from lmms_eval.models import get_model

    lm = get_model("care").create_from_arg_string(
        f"pretrained={tmp_path / 'model'},repair={tmp_path / 'repair'},batch_size=3,dtype=float32",
        {"batch_size": 1, "device": "cpu", "max_batch_size": None},
    )
    assert lm.batch_size == 3
    assert str(lm.device) == "cpu"
    with EDIT_ALL.applied(vlm):
        wanted = vlm.generate(Example("e", "Explain.", images=(tiny.picture(0),)), max_new_tokens=5)
    asked = {"max_new_tokens": 5}
    assert lm.generate_until([Request(lm, 0, "Explain.", asked)]) == wanted


# -- published tasks -------------------------------------------------------------------------------


def test_scienceqa_with_its_published_prompt_and_scoring(tmp_path, vlm, monkeypatch):
    monkeypatch.setattr(VLM, "answers", saying("B."))
    results = evaluated(model(vlm, batch_size=8), tmp_path, "scienceqa_here")
    assert prompts(results, "scienceqa_here")[0] == (
        "Context: The picture shows a car.\nWhich of these is number 0?\nA. a house\nB. water\n"
        "Answer with the option's letter from the given choices directly."
    )
    # The right answers alternate between A and B.
    assert results["results"]["scienceqa_here"]["exact_match,none"] == 0.5


def test_mmbench_with_its_published_prompt_and_rule_based_scoring(tmp_path, vlm, monkeypatch):
    monkeypatch.setattr(VLM, "answers", saying("B"))
    results = evaluated(model(vlm, batch_size=8), tmp_path, "mmbench_here")
    assert prompts(results, "mmbench_here")[0] == (
        "Look at the picture. What is in picture 0? There are several options:\nA. a house\n"
        "B. a car\nC. water\n\nAnswer with the option's letter from the given choices directly."
    )
    assert results["results"]["mmbench_here"]["gpt_eval_score,none"] == pytest.approx(50)


def test_mm_vet_with_its_published_prompt_and_settings(tmp_path, vlm):
    results = evaluated(model(vlm), tmp_path, "mmvet_here", n=3)
    assert prompts(results, "mmvet_here")[1] == (
        "First please perform reasoning, and think step by step to provide best answer to the "
        "following question: \n\nExplain how to build number 1."
    )
    assert len(answers(results, "mmvet_here")) == 3


def test_answers_are_those_of_the_model_itself_with_the_pictures(tmp_path, vlm):
    results = evaluated(model(vlm), tmp_path, "scienceqa_here", n=5)
    rows = lmms_tasks.scienceqa(5)
    examples = [
        Example(f"e{i}", text, images=(tiny.picture(i),) if row["image"] else ())
        for i, (text, row) in enumerate(zip(prompts(results, "scienceqa_here"), rows, strict=True))
    ]
    assert any(e.images for e in examples)
    assert not all(e.images for e in examples)
    wanted = vlm.generate(examples, max_new_tokens=6)
    assert answers(results, "scienceqa_here") == wanted
    assert len(set(wanted)) > 1
    without = [Example(e.id, e.prompt) for e in examples]
    assert vlm.generate(without, max_new_tokens=6) != wanted


# -- batches ---------------------------------------------------------------------------------------


def batches(vlm, monkeypatch) -> list[int]:
    seen: list[int] = []
    encode = VLM.batch

    def counted(self, examples, responses=None):
        seen.append(len(examples))
        return encode(self, examples, responses)

    monkeypatch.setattr(VLM, "batch", counted)
    return seen


def test_requests_are_batched_and_batches_dont_change_answers(vlm, monkeypatch):
    one, many = model(vlm, batch_size=1), model(vlm, batch_size=4)
    texts = [tiny.CORPUS[i % 6] for i in range(9)]
    found = []
    for lm, sizes in ((one, [1] * 9), (many, [4, 4, 1])):
        with monkeypatch.context() as patch:
            seen = batches(vlm, patch)
            asked = {"max_new_tokens": 5}
            found.append(lm.generate_until([Request(lm, i, t, asked) for i, t in enumerate(texts)]))
        assert sorted(seen, reverse=True) == sizes
    assert found[0] == found[1]
    assert len(set(found[0])) > 1


def test_different_settings_are_kept_apart_and_order_is_kept(vlm):
    lm = model(vlm, batch_size=8)
    lengths = [1, 6, 1, 6, 3]
    requests = [Request(lm, 0, "Explain.", {"max_new_tokens": n}) for n in lengths]
    example = Example("e", "Explain.", images=(tiny.picture(0),))
    wanted = [vlm.generate(example, max_new_tokens=n)[0] for n in lengths]
    assert len(set(wanted)) == 3
    assert lm.generate_until(requests) == wanted


def test_only_a_few_batches_of_pictures_are_held_at_a_time(vlm, monkeypatch):
    calls: list[int] = []

    def counted(self, examples, **options):
        calls.append(len(examples))
        return saying("a")(self, examples)

    monkeypatch.setattr(VLM, "answers", counted)
    lm = model(vlm, batch_size=2)
    assert lm.generate_until([Request(lm, i) for i in range(40)]) == ["a"] * 40
    assert calls == [16, 16, 8]


def test_until_cuts_an_answer(vlm):
    lm = model(vlm)
    whole = lm.generate_until([Request(lm, 0, asked={"max_new_tokens": 12})])[0]
    middle = whole[len(whole) // 2 : len(whole) // 2 + 3]
    asked = {"max_new_tokens": 12, "until": [middle]}
    assert lm.generate_until([Request(lm, 0, asked=asked)])[0] == (
        whole[: whole.index(middle)].strip()
    )


def test_repeats_of_a_sampled_request_differ(vlm):
    lm = model(vlm, batch_size=1, seed=3)
    asked = {"max_new_tokens": 6, "do_sample": True, "temperature": 1.0}
    requests = [Request(lm, 0, asked=asked) for _ in range(12)]
    first = lm.generate_until(requests)
    assert len(set(first)) > 6
    assert lm.generate_until(requests) == first


# -- a repair --------------------------------------------------------------------------------------


def hooks(vlm) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules())


def test_a_repair_changes_answers_and_is_off_afterwards(tmp_path, vlm):
    before = hooks(vlm)
    plain = evaluated(model(vlm), tmp_path, "scienceqa_here")
    repaired = evaluated(model(vlm, EDIT_ALL), tmp_path, "scienceqa_here")
    assert answers(repaired, "scienceqa_here") != answers(plain, "scienceqa_here")
    assert hooks(vlm) == before
    again = evaluated(model(vlm), tmp_path, "scienceqa_here")
    assert answers(again, "scienceqa_here") == answers(plain, "scienceqa_here")


def test_a_repair_is_on_while_it_answers_and_off_after_an_error(vlm, monkeypatch):
    before, seen = hooks(vlm), []

    def fails(self, *args, **options):
        seen.append(hooks(vlm))
        raise RuntimeError("no more")

    monkeypatch.setattr(VLM, "answers", fails)
    lm = model(vlm, EDIT_ALL)
    with pytest.raises(RuntimeError, match="no more"):
        lm.generate_until([Request(lm, 0)])
    assert seen[0] > before
    assert hooks(vlm) == before


def test_a_repair_that_changes_nothing_is_said(vlm, capsys):
    from loguru import logger

    said: list[str] = []
    sink = logger.add(said.append, level="WARNING")
    lm = model(vlm, EDIT_ALL.with_strength(0.0))
    lm.generate_until([Request(lm, 0, asked={"max_new_tokens": 2})])
    logger.remove(sink)
    assert any("unrepaired" in text for text in said)


class Watching(Defense):
    """Raises an alarm at every request with a picture."""

    name = "watching"

    def answer(self, vlm, examples, **how):
        raised = (Alarm("request", 1.5, 0.5),)
        return [
            replace(answer, source="text alone", alarms=raised) if example.images else answer
            for example, answer in zip(examples, vlm.answers(examples, **how), strict=True)
        ]


def test_how_many_answers_monitors_decided_is_said(vlm):
    from loguru import logger

    said: list[str] = []
    sink = logger.add(said.append, level="INFO")
    lm = model(vlm, Watching())
    asked = {"max_new_tokens": 2}
    shown = (None, None, [])  # two with a picture of their own, one with none
    lm.generate_until([Request(lm, n, asked=asked, visuals=each) for n, each in enumerate(shown)])
    logger.remove(sink)
    assert any("Monitors decided 2 of 3 answers: text alone 2." in text for text in said)


# -- likelihoods -----------------------------------------------------------------------------------


def test_multiple_choice_takes_the_likeliest_option(tmp_path, vlm):
    """lmms-eval takes the smallest of what `loglikelihood` returns."""
    options = ["house", "water", "wood"]
    question = "What is in this picture?"
    example = Example("e", question, images=(tiny.picture(0),))
    means = vlm.score([example] * 3, [f" {option}" for option in options]).mean
    right = int(means.argmax())
    row = {"image": lmms_tasks.picture(0), "question": question, "answer": right}
    lmms_tasks.write_table(tmp_path / "choice.parquet", [row])
    (tmp_path / "choice_here.yaml").write_text(
        "task: choice_here\ndataset_path: parquet\ntest_split: test\n"
        f"dataset_kwargs:\n  data_files: {{test: {tmp_path / 'choice.parquet'}}}\n"
        "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_target: answer\n"
        f"doc_to_choice: {json.dumps(options)}\n"
        "doc_to_visual: !function kit.lmms_tasks.visuals\n"
        "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n",
        encoding="utf-8",
    )
    from lmms_eval.evaluator import simple_evaluate

    results = simple_evaluate(
        model=model(vlm),
        tasks=["choice_here"],
        task_manager=task_manager(tmp_path),
        bootstrap_iters=0,
    )
    assert results["results"]["choice_here"]["acc,none"] == 1.0


def test_losses_are_per_token_and_in_order(vlm):
    lm = model(vlm, batch_size=2)
    wanted = [" house", " water and wood", " I"]
    requests = [Request(lm, i, "What is it?", text) for i, text in enumerate(wanted)]
    requests[1].args = (*requests[1].args[:1], lambda doc: wanted[1], *requests[1].args[2:])
    examples = [Example(str(i), "What is it?", images=(tiny.picture(i),)) for i in range(3)]
    losses, greedy = zip(*(found.text for found in lm.loglikelihood(requests)), strict=True)
    assert losses == pytest.approx(-vlm.score(examples, wanted).mean, rel=1e-4)
    assert greedy == (False,) * 3


# -- refusals --------------------------------------------------------------------------------------


def test_all_requests_are_read_before_the_first_is_answered(vlm, monkeypatch):
    monkeypatch.setattr(VLM, "answers", lambda *args, **options: pytest.fail("answered"))
    lm = model(vlm)
    with pytest.raises(UsageError, match="'made' asks for num_beams=5"):
        lm.generate_until([Request(lm, 0), Request(lm, 1, asked={"num_beams": 5})])


def test_video_several_rounds_and_drawing_are_refused(vlm):
    lm = model(vlm)
    with pytest.raises(UsageError, match="made-0 holds video or sound"):
        lm.generate_until([Request(lm, 0, visuals=["clip.mp4"])])
    with pytest.raises(UsageError, match="'made' is a conversation of several rounds"):
        lm.generate_until_multi_round([Request(lm, 0)])
    with pytest.raises(UsageError, match="'made' wants the model to draw"):
        lm.generate_visual_cot([Request(lm, 0)])
    alone = SimpleNamespace(task_name="made", args=("", "wood"))
    with pytest.raises(UsageError, match="mutual information"):
        lm.loglikelihood([alone])
    with pytest.raises(UsageError, match="--apply_chat_template"):
        _ = lm.chat_template


def test_several_processes_are_refused(vlm, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="2 processes"):
        model(vlm)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ("pretraind=x", UsageError, "pretraind"),
        ("pretrained", UsageError, "name=value"),
        ("pretrained=123", UsageError, "got 123"),
        ("pretrained=nowhere/at-all", ModelError, "nowhere/at-all"),
        ("repair=nowhere", UsageError, "nowhere"),
        ("repair=no/where/at-all", ArtefactError, "no/where/at-all"),
        ("batch_size=0", UsageError, "batch_size"),
        ("batch_size=many", UsageError, "'many'"),
        ("batch_size=2,max_batch_size=4", UsageError, "max_batch_size"),
        ("batch_size=auto,max_batch_size=0", UsageError, "'auto'"),
        ("seed=x", UsageError, "seed"),
        ("blank_line_stops=perhaps", UsageError, "blank_line_stops"),
        ("device=cpu,device_map=auto", UsageError, "device_map"),
        ("revision=main", UsageError, "revision"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, error, named):
    from care.interfaces.lmms_eval.model import CareModel

    with pytest.raises(error) as caught:
        CareModel.create_from_arg_string(arguments, {"batch_size": 1})
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_size_said_twice_is_refused_unless_it_is_the_same():
    from care.interfaces.lmms_eval.model import CareModel

    with pytest.raises(UsageError, match="batch_size=3, but --batch_size is 8"):
        CareModel.create_from_arg_string("batch_size=3", {"batch_size": "8"})


def test_a_repair_of_another_model_is_refused(vlm):
    with pytest.raises(ArtefactError, match="width 8"):
        model(vlm, Repair((made(width=8),)))


def test_a_model_that_was_passed_is_kept_and_one_loaded_by_name_released(tmp_path, vlm):
    kept = model(vlm)
    kept.clean()
    assert kept.vlm is vlm
    vlm.model.save_pretrained(tmp_path / "model")
    vlm.processor.save_pretrained(tmp_path / "model")
    loaded = model(str(tmp_path / "model"))
    assert isinstance(loaded.vlm, VLM)
    loaded.clean()
    with pytest.raises(UsageError, match="released"):
        _ = loaded.vlm
