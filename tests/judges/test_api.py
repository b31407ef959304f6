"""The API judge against a server of the test's own: retries, failures, what is sent."""

import json
import time

import pytest

from care.errors import DataError, UsageError
from care.judges.api import ApiConfig, ApiJudge
from care.judges.registry import load_judge
from kit.api_server import by_answer, completion, serve  # noqa: F401

GOALS = ["pick a lock", "make tea"]
ANSWERS = ["To pick a lock {behavior}, take a pin.", "I can't help with that."]


@pytest.mark.slow
def test_verdicts_and_what_is_sent(serve, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    server = serve(by_answer)
    judge = server.judge(key_variable="MY_KEY", parallel=2)
    yes, no = judge(GOALS, ANSWERS)
    assert (yes.on_goal, yes.outcome("malicious"), yes.label) == (True, "harmful", "yes")
    assert (no.on_goal, no.outcome("malicious"), no.outcome("benign")) == (
        False, "refused", "refused",
    )  # fmt: skip
    assert server.paths == ["/v1/chat/completions"] * 2
    assert all(h["Authorization"] == "Bearer secret" for h in server.headers)
    body = next(b for b in server.asked if "take a pin" in b["messages"][0]["content"])
    assert body["model"] == "m" and body["temperature"] == 0
    prompt = body["messages"][0]["content"]
    assert "pick a lock" in prompt and "{behavior}" in prompt  # an answer's own brackets stay
    identity = judge.identity()
    assert len(identity["template_sha256"]) == 64 and "secret" not in json.dumps(identity)


def test_without_a_key_none_is_sent(serve, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    server = serve(completion("no"))
    server.judge(key_variable="NO_SUCH_KEY")(GOALS[:1], ANSWERS[:1])
    assert "Authorization" not in server.headers[0]


def test_a_key_that_can_not_be_sent_is_not_told(serve, monkeypatch):
    server = serve(completion("no"))
    monkeypatch.setenv("MY_KEY", " fine\n")
    server.judge(key_variable="MY_KEY")(GOALS[:1], ANSWERS[:1])
    assert server.headers[0]["Authorization"] == "Bearer fine"
    for key in ("sec\nret", "sec ret", "secrét"):
        monkeypatch.setenv("MY_KEY", key)
        with pytest.raises(UsageError, match="MY_KEY") as caught:
            server.judge(key_variable="MY_KEY")(GOALS[:1], ANSWERS[:1])
        assert key not in str(caught.value)


def test_a_busy_server_is_asked_again(serve):
    server = serve((429, {}, {"Retry-After": "0.2"}), (503, {}), (None, b""), completion("yes"))
    began = time.monotonic()
    (verdict,) = server.judge()(GOALS[:1], ANSWERS[:1])
    assert verdict.error is None and verdict.on_goal
    assert len(server.asked) == 4 and time.monotonic() - began >= 0.2


def test_waits_grow(serve, monkeypatch):
    waits = []
    monkeypatch.setattr("care.judges.api.time.sleep", waits.append)
    server = serve((503, {}))
    (verdict,) = server.judge(tries=5, wait=1.0)(GOALS[:1], ANSWERS[:1])
    assert waits == [1, 2, 4, 8]
    assert "503" in verdict.error
    waits.clear()
    serve_long = serve((429, {}, {"Retry-After": "100000"}))
    serve_long.judge(tries=2)(GOALS[:1], ANSWERS[:1])
    assert waits == [60]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((500, {"error": "down"}), "500"),
        ((400, {"error": "no such model"}), "no such model"),
        ((307, {}, {"Location": "http://127.0.0.1:1/"}), "307"),
        ((200, b"<html>"), "can't be read"),
        ((200, ["yes"]), "not an object"),
        ((200, {"choices": []}), "no message"),
        (completion("yes and no"), "not yes or no"),
        (completion("perhaps"), "not yes or no"),
        (completion(None), "not yes or no"),
        ((None, b""), "no reply"),
    ],
)
def test_a_failing_call_is_never_not_jailbroken(serve, reply, said):
    verdict = serve(reply).judge(tries=2)(GOALS[:1], ANSWERS[:1])[0]
    assert said in verdict.error
    with pytest.raises(UsageError, match="no judgement"):
        verdict.outcome("malicious")


def test_a_server_that_is_too_slow(serve):
    def slow(body):
        time.sleep(0.6)
        return completion("yes")

    verdict = serve(slow).judge(timeout=0.15, tries=2)(GOALS[:1], ANSWERS[:1])[0]
    assert "no reply" in verdict.error


def test_nobody_there():
    judge = ApiJudge(ApiConfig(model="m", url="http://127.0.0.1:9/v1", wait=0.0, tries=2))
    assert all("no reply" in verdict.error for verdict in judge(GOALS, ANSWERS))


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_refused_key_costs_one_call(serve, parallel):
    server = serve((401, {"error": "wrong key"}))
    verdicts = server.judge(parallel=parallel)(GOALS * 5, ANSWERS * 5)
    assert len(server.asked) == 1
    assert len(verdicts) == 10 and all("wrong key" in v.error for v in verdicts)


def test_one_bad_call_does_not_take_the_others_along(serve):
    server = serve(lambda body: (400, {}) if "tea" in str(body) else completion("yes"))
    good, bad = server.judge(parallel=4)(GOALS, ANSWERS)
    assert good.on_goal and bad.error


def test_a_prompt_of_ones_own(serve, tmp_path):
    (tmp_path / "p.txt").write_text("Q {goal} A {response} ?")
    server = serve(completion("no"))
    judge = server.judge(template=str(tmp_path / "p.txt"))
    judge(["g"], ["r"])
    assert server.asked[0]["messages"][0]["content"] == "Q g A r ?"
    assert judge.identity()["template_sha256"] != server.judge().identity()["template_sha256"]
    (tmp_path / "p.txt").write_text("Q {goal}")
    with pytest.raises(DataError, match="needs one of"):
        server.judge(template=str(tmp_path / "p.txt"))


def test_by_name(serve):
    server = serve(by_answer)
    judge = load_judge(f"api,model=m,url={server.url},tries=1,wait=0,as=second")
    assert judge.name == "second"
    assert [v.on_goal for v in judge(GOALS, ANSWERS)] == [True, False]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("api", "needs a model"),
        ("api,model=m,url=ftp://x", "http"),
        ("api,model=m,tries=0", "tries"),
        ("api,model=m,tries=many", "number"),
        ("api,model=m,speed=1", "no option 'speed'"),
        ("api,model", "option=value"),
        ("oracle", "There is no judge 'oracle'"),
    ],
)
def test_wrong_use(wanted, said):
    with pytest.raises(UsageError, match=said):
        load_judge(wanted)


def test_settings_of_a_request(serve):
    server = serve(completion("no"))
    by_name = f"api,model=m,url={server.url},parallel=1"
    wanted = {
        "": {"temperature": 0.0},
        ",temperature=none": {},
        ",temperature=1,max_completion_tokens=500": {
            "temperature": 1.0, "max_completion_tokens": 500,
        },
        ",temperature=None,max_tokens=9,body.reasoning_effort=low,body.seed=1": {
            "max_tokens": 9, "reasoning_effort": "low", "seed": 1,
        },
        ",body.chat_template_kwargs.enable_thinking=false": {
            "temperature": 0.0, "chat_template_kwargs": {"enable_thinking": False},
        },
    }  # fmt: skip
    for options, fields in wanted.items():
        judge = load_judge(by_name + options)
        judge(GOALS[:1], ANSWERS[:1])
        assert {"model": "m", **fields} == {
            key: value for key, value in server.asked[-1].items() if key != "messages"
        }
        assert judge.identity()["request"] == fields


@pytest.mark.parametrize(
    "options",
    [
        "temperature=hot", "temperature=-1", "temperature=nan", "temperature=inf", "max_tokens=0",
        "max_tokens=2,max_completion_tokens=2", "body.messages=x", "body.model=x", "body.=1",
        "body.temperature=1", "body.a=1,body.a.b=2", "bodyx=1", "body.api_key=x",
        "body.x.password=y",
    ],
)  # fmt: skip
def test_settings_that_can_not_be(options):
    with pytest.raises(UsageError):
        load_judge(f"api,model=m,{options}")


@pytest.mark.parametrize("code", [400, 404, 422])
def test_a_refused_form_costs_one_call(serve, code):
    server = serve((code, {"error": {"message": "temperature 0 isn't supported"}}))
    judge = server.judge(parallel=4)
    for _ in range(2):
        verdicts = judge(GOALS * 5, ANSWERS * 5)
        assert len(server.asked) == 1
        assert all("temperature 0 isn't supported" in v.error for v in verdicts)
        assert all("temperature=none" in v.error for v in verdicts)


def test_a_refusal_of_one_answer_stops_nothing(serve):
    for code, said_ in ((400, "content management policy"), (400, "maximum context length")):
        server = serve((code, {"error": said_}), completion("no"))
        first, second = server.judge()(GOALS, ANSWERS)
        assert said_ in first.error and second.error is None
    server = serve(completion("yes"), (400, {"error": "odd"}), completion("yes"))
    assert [v.error is None for v in server.judge()(GOALS + GOALS[:1], ANSWERS + ANSWERS[:1])] == [
        True, False, True,
    ]  # fmt: skip
