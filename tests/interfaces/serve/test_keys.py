"""Who may ask: keys, where they come from, and how often each may."""

from __future__ import annotations

import pytest

from care.errors import DataError, UsageError
from care.interfaces.serve.config import Limits, ServeConfig
from care.interfaces.serve.failures import RequestFailure
from care.interfaces.serve.keys import Caller, Keys, RateLimit
from kit.serving import BARE_KEY, KEY


def test_keys_come_from_files_and_the_environment(tmp_path, monkeypatch):
    (tmp_path / "keys").write_text(f"# ours\n\n{KEY}\n")
    (tmp_path / "bare").write_text(f"{BARE_KEY}\n")
    monkeypatch.setenv("CARE_API_KEY", "from-the-environment-1, from-the-environment-2")
    keys = Keys.read(tmp_path / "keys", tmp_path / "bare")
    assert keys.caller(f"Bearer {KEY}") == Caller(1)
    assert keys.caller("bearer  from-the-environment-2 ") == Caller(3)
    assert keys.caller(f"Bearer {BARE_KEY}") == Caller(4, bare=True)
    assert KEY not in repr(vars(keys))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (None, "holds no key"),
        ("", "holds no key"),
        (KEY, "holds no key"),
        (f"Basic {KEY}", "holds no key"),
        ("Bearer ", "holds no key"),
        (f"Bearer {KEY}x", "isn't one of this server's"),
        (f"Bearer {KEY[:-1]}", "isn't one of this server's"),
        ("Bearer é", "isn't one of this server's"),
    ],
)
def test_a_request_without_a_known_key_is_refused(header, said):
    with pytest.raises(RequestFailure, match=said) as caught:
        Keys([KEY], []).caller(header)
    assert caught.value.status == 401 and KEY[:-1] not in str(caught.value)


def test_a_key_of_both_files_may_ask_bare_and_without_keys_nobody_may():
    assert Keys([KEY], [KEY]).caller(f"Bearer {KEY}").bare
    assert Keys([], []).caller(None) == Caller(0, bare=False)


@pytest.mark.parametrize("key", ["short", "with a space in the middle", "ümlauts-are-no-ascii"])
def test_a_key_that_can_be_guessed_or_sent_by_no_header_is_refused_unsaid(key):
    with pytest.raises(UsageError, match="Key number 2 isn't") as caught:
        Keys([KEY], [key])
    assert key not in str(caught.value)


def test_a_file_without_keys_is_no_open_door(tmp_path):
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(UsageError, match="There is no key in"):
        Keys.read(tmp_path / "keys", None)
    (tmp_path / "keys").write_bytes(b"\xff\xff")
    with pytest.raises(DataError, match="can't be read"):
        Keys.read(tmp_path / "keys", None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_others_reach_no_server_without_keys(host, monkeypatch):
    config = ServeConfig(repair="x", host=host)
    with pytest.raises(UsageError, match="can be reached by others, but there are no keys"):
        config.known_keys()
    monkeypatch.setenv("CARE_API_KEY", KEY)
    assert config.known_keys()


def test_the_options_keep_to_their_bounds():
    with pytest.raises(UsageError, match="max_images must be at most"):
        Limits(max_images=10**6)
    with pytest.raises(UsageError, match="port must be at most"):
        ServeConfig(repair="x", port=70_000)
    with pytest.raises(UsageError, match="--repair is empty"):
        ServeConfig(repair="")


def test_requests_come_back_evenly():
    now = [0.0]
    rates = RateLimit(2, clock=lambda: now[0])
    me, other = Caller(1), Caller(2)
    assert [rates.take(me), rates.take(me)] == [0, 0] and rates.take(me) == pytest.approx(30)
    assert rates.take(other) == 0
    now[0] = 20
    assert rates.take(me) == pytest.approx(10)
    now[0] = 31
    assert rates.take(me) == 0 and rates.take(me) > 0
