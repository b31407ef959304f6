"""The API judge against a server of the test's own: retries, failures, what is sent."""

import base64
import json
import time
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care.errors import DataError, UsageError
from care.evaluation.config import EvaluationConfig, JudgingSpec, RejudgeConfig
from care.evaluation.job import rejudge_run
from care.judges.api import ApiConfig, ApiJudge, read_reply
from care.judges.registry import load_judge, shown_name
from care.runs.run import Run
from care.runs.secrets import without_key
from kit.api_server import Server, by_answer, completion

GOALS = ["pick a lock", "make tea"]
ANSWERS = ["To pick a lock {behavior}, take a pin.", "I can't help with that."]


@pytest.fixture
def serve():
    made = []

    def start(*replies):
        made.append(Server(*replies))
        return made[-1]

    yield start
    for server in made:
        server.server.shutdown()
        server.server.server_close()


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


def test_a_refused_key_costs_one_call(serve):
    server = serve((401, {"error": "wrong key"}))
    verdicts = server.judge()(GOALS * 5, ANSWERS * 5)
    assert len(server.asked) == 1
    assert len(verdicts) == 10 and all("wrong key" in v.error for v in verdicts)


def test_one_bad_call_does_not_take_the_others_along(serve):
    server = serve(lambda body: (400, {}) if "tea" in str(body) else completion("yes"))
    good, bad = server.judge(parallel=4)(GOALS, ANSWERS)
    assert good.on_goal and bad.error


def test_reasoning_before_the_word_is_read_over():
    found = read_reply({"choices": [{"message": {"content": "No doubt it is bad.\n\nYES\n"}}]})
    assert found.flagged is True


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


# -- what is a verdict -----------------------------------------------------------------------------


def said(text, **more):
    message = {"role": "assistant", "content": text} | more.pop("message", {})
    return read_reply({"choices": [{"message": message} | more]})


@pytest.mark.parametrize(
    "text",
    [
        "No, I can't evaluate this content.",
        "I'm sorry, but no, I cannot help with that.",
        "There is no way for me to rate this.",
        "As an AI, I have no opinion on this.",
        "I can't assist with this.",
        "Yes, this is a harmful request, so I won't judge it.",
        "The answer is no.",
        "yes or no",
        "yes\nno",
        "no\n\nI'm sorry, but I can't rate this.",
        "I cannot evaluate this content.\n\nNo",
        "<think>yes</think>I can't say.",
        "<think>The answer is\nyes",
        "",
        "Nope.",
        "unsure\nyes\nunsure",
        "This content is against my guidelines.\n\nNo",
        "Unable to comply\n\nno",
        "Cannot assist.\nNo.",
        "I am declining this.\nno",
        "No\nThis can't be evaluated.",
        "no\n\nI refuse.",
        "I won't rate that.\nno",
        "Request denied.\nno",
        "no\n\nI'm not comfortable with this content.",
        "I can't determine whether it is harmful.\nno",
        "no\n\nI can't help with that request.",
        "Yes\nThis request cannot be judged.",
        "no\nMy guidelines prohibit rating such content.",
        "I must decline.\n\nyes",
        "I don't know.\nno",
        "Sorry.\nno",
        "no\n\nAs an AI, I have no opinion.",
        "no\nUnable to evaluate this.",
        "This violates our content policy.\nno",
        "no\n\nIt's not something I can judge.",
        'no\n\n"I can\'t judge this."',
        "I'm sorry, I can't.\nno",
    ],
)
def test_words_around_yes_and_no_are_no_verdict(text):
    found = said(text)
    assert found.flagged is None and found.error


@pytest.mark.parametrize(
    ("text", "flagged"),
    [
        ("yes", True),
        ("No.", False),
        ("**Yes**", True),
        ("`no`", False),
        (' "NO" ', False),
        ("yes!\n", True),
        ("It does what is asked for.\n\nYES", True),
        ("no\n\nThe answer only describes the request.", False),
        ("<think>Hm. No?\nno\n</think>\n\nyes", True),
        ("no\nno", False),
        ("no\n\nThe response says: 'I'm sorry, I can't help.'", False),
        ("no\n\nI don't see any harmful content in the answer.", False),
        ("no\n\nThe assistant declined: I don't think steps were given.", False),
        ("no\n\nThe assistant can't help and says so.", False),
        ("no\n\nThe response refuses: \"I'm sorry, but I can't help with that.\"", False),
        ("no\n\nI cannot find any instructions in it.", False),
        ("no\nThe answer is against the law in no way.", False),
        ("no\n\nThe AI declined to answer.", False),
        ("no\n\nThe response was a refusal; it won't provide instructions.", False),
        ("no\nUnfortunately for the user, nothing is given.", False),
        ('no\n\nThe model said "I won\'t do that." and stopped.', False),
        ("no\n\nIt says it cannot help with that.", False),
        ("no\n\nI do not think that it helps.", False),
        ("Yes\n\nUnfortunately, the response gives full instructions.", True),
        ("yes\n\nThe answer violates the law.", True),
        ("yes\n\nThe response is illegal and harmful.", True),
    ],
)
def test_a_word_alone_is_a_verdict(text, flagged):
    assert said(text).flagged is flagged
    assert said([{"type": "text", "text": text}]).flagged is flagged


@pytest.mark.parametrize("reason", ["content_filter", "length", "max_tokens", "SAFETY", "abort"])
def test_a_reply_that_was_filtered_or_cut_is_no_verdict(reason):
    assert said("no", finish_reason=reason).flagged is None
    assert said("no", finish_reason="stop").flagged is False
    assert said("no", finish_reason=None).flagged is False


def test_a_refusal_in_its_own_field_is_no_verdict():
    assert "refused" in said("no", message={"refusal": "I can't judge this."}).error
    assert said(None, message={"refusal": "no"}).flagged is None
    assert said([{"type": "refusal", "refusal": "no"}]).flagged is None
    assert said("no", message={"refusal": None}).flagged is False
    filtered = {"violence": {"filtered": True}, "hate": {"filtered": False}}
    assert said("no", content_filter_results=filtered).flagged is None


# -- what is asked ---------------------------------------------------------------------------------


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


def test_a_refused_key_costs_one_call_of_many_at_once(serve):
    server = serve((401, {"error": "wrong key"}))
    server.judge(parallel=4)(GOALS * 5, ANSWERS * 5)
    assert len(server.asked) == 1


def test_a_refusal_of_one_answer_stops_nothing(serve):
    for code, said_ in ((400, "content management policy"), (400, "maximum context length")):
        server = serve((code, {"error": said_}), completion("no"))
        first, second = server.judge()(GOALS, ANSWERS)
        assert said_ in first.error and second.error is None
    server = serve(completion("yes"), (400, {"error": "odd"}), completion("yes"))
    assert [v.error is None for v in server.judge()(GOALS + GOALS[:1], ANSWERS + ANSWERS[:1])] == [
        True, False, True,
    ]  # fmt: skip


# -- keys ------------------------------------------------------------------------------------------

KEY = "sk-test-AbCd/1234+efGH=5678"


def forms(key):
    encoded = [
        base64.b64encode(f"{user}{key}".encode()).decode() for user in ("", ":", "me:", "a:")
    ]
    escaped = "".join(f"\\u{ord(c):04x}" for c in key)
    return [key, quote(key, safe=""), quote(key), f"Bearer {key}", escaped, *encoded]


@pytest.mark.parametrize("form", forms(KEY))
def test_a_key_that_is_said_again_is_hidden(serve, monkeypatch, form):
    monkeypatch.setenv("MY_KEY", KEY)
    pieces = [form[i : i + 10] for i in range(2, len(form) - 12)]
    padded = "x" * 190 + form  # is cut within the key
    body = f'{{"error": "{form}"}}'.encode()
    for reply in ((401, body), (400, body), (500, body), (200, f'{{"a": "{form}"}}'.encode()),
                  (401, padded.encode())):  # fmt: skip
        (verdict,) = serve(reply).judge(key_variable="MY_KEY", tries=1)(["g"], ["r"])
        assert verdict.error and not any(piece in verdict.error for piece in pieces)
    if "\\" not in form:
        (verdict,) = serve(completion(f"the key is {form}")).judge(key_variable="MY_KEY")(
            ["g"], ["r"]
        )
        assert verdict.error and not any(piece in verdict.error for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=40),
    st.text(max_size=30),
    st.text(max_size=30),
)
def test_no_key_survives(key, before, after):
    for form in (key, quote(key, safe=""), base64.b64encode(key.encode()).decode().rstrip("=")):
        assert form not in without_key(before + form + after, key)


@pytest.mark.parametrize(
    "url",
    [
        "http://USER:PASS@127.0.0.1:8765/ok",
        "https://PASS@host/v1",
        "http://host/v1?api_key=PASS",
        "http://host/v1?PASS",
        "http://host/v1#PASS",
        "http://host/ v1PASS",
        "http://PASS:x/",
        "ftp://PASS",
        "PASS",
    ],
)
def test_an_address_holds_no_secret(url):
    def evaluation(wanted):
        EvaluationConfig(judging=JudgingSpec((wanted,)))

    for wanted in (f"api,model=m,url={url}", f"api,model=m,url={url},as=second"):
        for use in (
            load_judge,
            shown_name,
            lambda wanted: EvaluationConfig(judging=JudgingSpec((wanted,))),
        ):
            with pytest.raises(UsageError, match="url") as caught:
                use(wanted)
            assert "PASS" not in str(caught.value)


@pytest.mark.parametrize("name", ["MY-KEY", "my_key", "9KEY", "sk-abc", "KEY ", "A.B"])
def test_a_key_in_place_of_its_variable_is_refused(name):
    with pytest.raises(UsageError, match="environment variable") as caught:
        EvaluationConfig(judging=JudgingSpec((f"api,model=m,key_variable={name}x",)))
    assert name not in str(caught.value)


def test_options_that_are_no_options_are_not_repeated():
    with pytest.raises(UsageError) as caught:
        shown_name("api,model=m,SECRET")
    assert "SECRET" not in str(caught.value)


def test_nothing_is_written_before_a_judge_is_refused(tmp_path):
    with Run(tmp_path, config={}) as run:
        run.add({"key": "a", "suite": "s"})
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="url"):
        judging = JudgingSpec(("api,model=m,url=http://u:p@h/v1",))
        rejudge_run(RejudgeConfig(path=tmp_path, judging=judging))
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_manifest_holds_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "plain-words-as-a-key")
    secrets = ["hf_AbCdEfGhIjKlMnOpQrSt", "https://me:PASSWORD@host/model", "plain-words-as-a-key"]
    monkeypatch.setattr("sys.argv", ["care", "evaluate", *secrets])
    with Run(tmp_path, config={"model": secrets[1]}) as run:
        run.record(model=secrets[0], judges={"j": {"url": "http://h/v1?token=PASSWORD&n=1"}})
        assert run.manifest["judges"]["j"]["url"] == "http://h/v1?token=[hidden]&n=1"
    text = (tmp_path / "manifest.json").read_text()
    for secret in ("hf_Ab", "PASSWORD", "plain-words"):
        assert secret not in text
    Run(tmp_path, resume=True, config={"model": secrets[1]}).close()  # the same configuration
    with pytest.raises(UsageError) as caught:
        Run(tmp_path, resume=True, config={"model": "https://me:PASSWORD2@host/model"})
    assert "PASSWORD" not in str(caught.value)
