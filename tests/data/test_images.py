"""Pictures of every awkward kind are made safe, or refused in one sentence."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from care.data import images
from care.data.example import Example
from care.data.images import load_image
from care.errors import DataError
from kit import tiny


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


def test_deep_grey_is_scaled_not_clipped():
    deep = Image.fromarray(np.full((4, 4), 65535 // 2, dtype=np.uint16))
    assert abs(load_image(deep).getpixel((0, 0))[0] - 127) <= 1
    unit = Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32))
    assert abs(load_image(unit).getpixel((0, 0))[0] - 127) <= 1
    with pytest.raises(DataError, match="NaN"):
        load_image(Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)))


def test_corrupt_missing_and_foreign_pictures_are_refused(tmp_path):
    whole = tmp_path / "whole.png"
    tiny.picture(size=(200, 200)).save(whole)
    cut, text, empty = (tmp_path / name for name in ("cut.png", "text.png", "empty.png"))
    cut.write_bytes(whole.read_bytes()[:2000])
    text.write_text("not an image")
    empty.touch()
    for path in (cut, text, empty, tmp_path):
        with pytest.raises(DataError, match="example 'a', image 0"):
            Example("a", "hi", images=(path,)).load_images()
    with pytest.raises(DataError, match="no file"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match="download"):
        load_image("https://example.org/a.png")
    closed = tiny.picture()
    closed.close()
    with pytest.raises(DataError):
        load_image(closed)


def test_huge_images_are_refused_before_decoding(tmp_path, monkeypatch):
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    with pytest.raises(DataError, match="limit of 64 MPixel"):
        load_image(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="too large"):
        load_image(tmp_path / "huge.png")
    with pytest.raises(DataError, match="no pixels"):
        load_image(Image.new("RGB", (0, 5)))
    assert images.MAX_PIXELS == 64_000_000


def test_the_caller_s_image_is_not_aliased():
    image = tiny.picture()
    loaded = load_image(image)
    image.paste("black", (0, 0, 40, 30))
    assert np.asarray(loaded).any()


def exif_of(*entries, tail=b""):
    """EXIF with these entries (tag, type, count, value of four bytes)."""
    body = b"".join(struct.pack("<HHL", *entry[:3]) + entry[3] for entry in entries)
    start = b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(entries))
    return start + body + struct.pack("<L", 0) + tail


SIDEWAYS = (0x112, 3, 1, struct.pack("<HH", 6, 0))
ODD = {
    "a signed rational that is -1/0": exif_of(
        SIDEWAYS, (0x11A, 10, 1, struct.pack("<L", 38)), tail=struct.pack("<ll", -1, 0)
    ),
    "a negative short": exif_of(SIDEWAYS, (0x128, 8, 1, struct.pack("<hh", -1, 0))),
    "an offset beyond the end": exif_of(SIDEWAYS, (0x11A, 5, 1, struct.pack("<L", 10**6))),
    "a type that is none": exif_of(SIDEWAYS, (0x11A, 99, 1, b"abcd")),
    "a text that is none": exif_of(SIDEWAYS, (0x10F, 2, 4, b"\xff\xfe\xfd\0")),
    "a huge count": exif_of(SIDEWAYS, (0x10F, 2, 2**31, b"abcd")),
    "pixels as a rational": exif_of(
        SIDEWAYS, (0xA002, 10, 1, struct.pack("<L", 38)), tail=struct.pack("<ll", 1, -1)
    ),
}
ODD["two orientations"] = exif_of((0x112, 3, 2, struct.pack("<HH", 6, 1)))
USELESS = {
    "no orientation at all": exif_of((0x128, 3, 1, struct.pack("<HH", 2, 0))),
    "an orientation of 9": exif_of((0x112, 3, 1, struct.pack("<HH", 9, 0))),
    "an orientation of 0": exif_of((0x112, 3, 1, struct.pack("<HH", 0, 0))),
    "an orientation in words": exif_of((0x112, 2, 4, b"up!\0")),
    "half of a header": b"Exif\0\0II",
    "no header": b"Exif\0\0" + b"\xff" * 40,
    "a folder without end": exif_of()[:-4] + b"\xff\xff",
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@pytest.mark.parametrize("odd", [*ODD, *USELESS])
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_odd_metadata_doesnt_matter(odd, ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    Image.new("RGB", (40, 20), "red").save(path, exif=ODD.get(odd) or USELESS[odd])
    for image in (path, path.read_bytes()):
        assert load_image(image).size == ((20, 40) if odd in ODD else (40, 20))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_once(orientation, tmp_path):
    picture = tiny.picture(3, size=(40, 24))
    exif = picture.getexif()
    exif[0x112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        right = ImageOps.exif_transpose(opened).convert("RGB")
    found = load_image(tmp_path / "a.png")
    assert found.size == right.size and found.tobytes() == right.tobytes()
    again = load_image(found)
    assert again.size == right.size and again.tobytes() == right.tobytes()


def test_whatever_a_decoder_raises_is_about_the_picture(monkeypatch, tmp_path):
    tiny.picture().save(tmp_path / "a.png")
    for error in (struct.error("odd"), RecursionError(), MemoryError(), KeyError(3), EOFError()):

        def raises(*_, error=error):
            raise error

        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", raises)
        with pytest.raises(DataError, match=r"example 'x', image 0 .*a.png.* not a readable image"):
            Example("x", "hi", images=(tmp_path / "a.png",)).load_images()
