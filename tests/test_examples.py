"""Examples and suites: validation, images of every awkward kind, digests."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import tiny
from care import examples as module
from care.errors import DataError, UsageError
from care.examples import Example, Suite, load_image


def test_messages_put_images_first():
    example = Example("a", "hi", images=(tiny.picture(), tiny.picture(1)), system="be good")
    system, user = example.messages()
    assert system == {"role": "system", "content": [{"type": "text", "text": "be good"}]}
    assert [part["type"] for part in user["content"]] == ["image", "image", "text"]
    assert len(Example("a", "hi").messages()) == 1
    only_image = Example("a", "", images=(tiny.picture(),))
    assert only_image.messages()[0]["content"] == [{"type": "image"}]


def test_a_single_image_or_reference_becomes_a_tuple(tmp_path):
    assert len(Example("a", "hi", images=tiny.picture()).images) == 1
    assert Example("a", "hi", images=str(tmp_path)).images == (str(tmp_path),)
    assert Example("a", "hi", references="two").references == ("two",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": ""},
        {"id": 3},
        {"prompt": None},
        {"prompt": "  "},
        {"kind": "bad"},
        {"images": (3,)},
    ],
)
def test_malformed_examples_are_refused(wrong):
    with pytest.raises(DataError):
        Example(**{"id": "a", "prompt": "hi", **wrong})


def test_examples_are_immutable_and_hashable():
    example = Example("a", "hi", images=(tiny.picture(),))
    assert len({example, Example("a", "hi", images=(tiny.picture(),))}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        example.prompt = "other"


def test_digests_follow_content(tmp_path):
    path = tmp_path / "p.png"
    tiny.picture().save(path)
    from_path = Example("a", "hi", images=(path,))
    assert from_path.digest() == Example("a", "hi", images=(tiny.picture(),)).digest()
    assert from_path.digest() != Example("a", "hi", images=(tiny.picture(1),)).digest()
    assert from_path.digest() != Example("a", "ho", images=(path,)).digest()
    assert len(Example("a", "broken surrogate \ud800").digest()) == 64


def test_image_modes_become_rgb():
    for mode in ("1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV"):
        image = tiny.picture().convert("RGB")
        image = image.convert(mode) if mode != "LAB" else Image.new("LAB", (4, 4))
        assert load_image(image).mode == "RGB", mode


def test_transparency_is_put_on_white(tmp_path):
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert load_image(clear).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(clear.convert("LA")).getpixel((0, 0)) == (255, 255, 255)
    half = load_image(Image.new("RGBA", (4, 4), (0, 0, 0, 128))).getpixel((0, 0))
    assert 126 <= half[0] <= 128
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30] * 256)
    palette.info["transparency"] = 0
    palette.save(tmp_path / "t.png", transparency=0)
    assert load_image(tmp_path / "t.png").getpixel((0, 0)) == (255, 255, 255)


def test_animated_files_give_their_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "r.jpg", exif=exif)
    assert load_image(tmp_path / "r.jpg").size == (10, 20)


def test_deep_grey_is_scaled_not_clipped():
    deep = Image.fromarray(np.full((4, 4), 65535 // 2, dtype=np.uint16))
    assert abs(load_image(deep).getpixel((0, 0))[0] - 127) <= 1
    unit = Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32))
    assert abs(load_image(unit).getpixel((0, 0))[0] - 127) <= 1
    with pytest.raises(DataError, match="NaN"):
        load_image(Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)))


def test_corrupt_missing_and_foreign_files_are_refused(tmp_path):
    whole = tmp_path / "whole.png"
    tiny.picture(size=(200, 200)).save(whole)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:2000])
    text = tmp_path / "text.png"
    text.write_text("not an image")
    empty = tmp_path / "empty.png"
    empty.touch()
    for path in (cut, text, empty, tmp_path):
        with pytest.raises(DataError, match="example 'a', image 0"):
            Example("a", "hi", images=(path,)).load_images()
    with pytest.raises(DataError, match="no file"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match="download"):
        load_image("https://example.org/a.png")


def test_closed_images_are_refused():
    image = tiny.picture()
    image.close()
    with pytest.raises(DataError):
        load_image(image)


def test_huge_images_are_refused_before_decoding(tmp_path, monkeypatch):
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    with pytest.raises(DataError, match="limit of 64 MPixel"):
        load_image(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="too large"):
        load_image(tmp_path / "huge.png")
    with pytest.raises(DataError, match="no pixels"):
        load_image(Image.new("RGB", (0, 5)))
    assert module.MAX_PIXELS == 64_000_000


def test_the_caller_s_image_is_not_aliased():
    image = tiny.picture()
    loaded = load_image(image)
    image.paste("black", (0, 0, 40, 30))
    assert np.asarray(loaded).any()


def test_suites():
    suite = Suite("s", "attack", [Example(str(index), "hi") for index in range(5)])
    assert len(suite) == 5
    assert [example.id for example in suite.head(2)] == ["0", "1"]
    assert suite.head(9) == suite
    assert suite.digest() != suite.head(4).digest()
    with pytest.raises(UsageError):
        suite.head(0)
    with pytest.raises(DataError, match="no examples"):
        Suite("s", "attack", ())
    with pytest.raises(DataError, match="two examples"):
        Suite("s", "attack", (Example("a", "hi"), Example("a", "ho")))
    with pytest.raises(DataError, match="role"):
        Suite("s", "other", (Example("a", "hi"),))
