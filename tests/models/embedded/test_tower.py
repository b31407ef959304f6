"""The vision tower: DINOv2 without its class token, and what makes up for that."""

import torch

from care.models.embedded import tower
from kit.embedded_parts import tower_onnx  # noqa: F401


def test_tower_with_class_token_is_dinov2(tower_onnx):
    path, model = tower_onnx
    state, class_token = tower.convert(path, grid=6)
    pixels = torch.randn(3, 3, 84, 84)
    with torch.no_grad():
        expected = model(pixels).last_hidden_state[:, 1:]
        found = tower.features(pixels, state, class_token)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def test_refit_makes_up_for_the_class_token(tower_onnx):
    state, class_token = tower.convert(tower_onnx[0], grid=6)
    seen, unseen = tower.synthetic_pictures(200, 84), tower.synthetic_pictures(40, 84, seed=9)
    fitted = tower.refit(state, class_token, seen)
    changed = {name for name in state if not torch.equal(state[name], fitted[name])}
    assert {name.split(".")[-2] for name in changed} == {"out_proj", "fc2"}
    # Random weights gain less on unseen pictures than trained ones do.
    for pictures, share in ((seen, 0.4), (unseen, 0.8)):
        with torch.no_grad():
            wanted = tower.features(pictures, state, class_token)
            dropped, refitted = (
                (tower.features(pictures, s) - wanted).pow(2).mean() for s in (state, fitted)
            )
        assert refitted < share * dropped


def test_synthetic_pictures_are_seeded_and_normalised():
    first, again = (tower.synthetic_pictures(6, 84) for _ in range(2))
    assert first.shape == (6, 3, 84, 84)
    assert torch.equal(first, again)
    assert -2.2 < first.min() < first.max() < 2.7


def test_the_refit_sees_its_own_number_of_threads_and_gives_back_the_others(
    tower_onnx, monkeypatch
):
    seen = []
    monkeypatch.setattr(tower, "N_PICTURES", 2)
    monkeypatch.setattr(tower, "refit", lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            tower.tower_state(tower_onnx[0], 84)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    assert seen == [tower.THREADS, tower.THREADS]
