"""Keys and addresses of an API: nowhere written, nowhere said again."""

import base64
from urllib.parse import quote

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from care.errors import UsageError
from care.evaluation.config import EvaluationConfig, JudgingSpec, RejudgeConfig
from care.evaluation.job import rejudge_run
from care.judges.registry import load_judge, shown_name
from care.runs.run import Run
from care.runs.secrets import without_key
from kit.api_server import completion, serve  # noqa: F401

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
    assume(key not in "[hidden]")  # what stands in its place
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
