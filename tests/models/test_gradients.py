"""A model through which gradients are taken: whose attention is made eager."""

from types import SimpleNamespace

from care.models.gradients import _attention


def test_a_part_without_attention_is_left_alone():
    text, tower = (SimpleNamespace(_attn_implementation=name) for name in ("sdpa", None))
    config = SimpleNamespace(
        _attn_implementation="sdpa",
        sub_configs={"text": None, "tower": None, "audio": None},
        text=text,
        tower=tower,
        audio=None,
    )
    assert _attention(config) == {"": "sdpa", "text": "sdpa"}
