"""GGUF and ONNX files are read as specified, and others are refused."""

import numpy as np
import pytest

from care.errors import ArtefactError
from care.models.embedded.formats import plain_reader, read_gguf, read_onnx
from kit.embedded_parts import text_gguf, write_gguf  # noqa: F401


def test_gguf_blocks_are_dequantised_as_specified(tmp_path):
    rng = np.random.default_rng(1)
    d, m = np.float16(0.25), np.float16(-1.5)
    nibbles, eights = rng.integers(0, 16, 32), rng.integers(-127, 128, 32).astype(np.int8)
    packed = (nibbles[:16] | nibbles[16:] << 4).astype(np.uint8).tobytes()
    tensors = {
        "four": (3, [1, 32], d.tobytes() + m.tobytes() + packed),
        "eight": (8, [32], d.tobytes() + eights.tobytes()),
        "half": (1, [2, 2], np.arange(4, dtype=np.float16).tobytes()),
    }
    fields = {"a": "text", "b": [1, 2, 3], "c": ["x", "yz"]}
    write_gguf(tmp_path / "x.gguf", fields, tensors)
    read_fields, read = read_gguf(tmp_path / "x.gguf")
    assert read_fields == fields
    assert type(plain_reader(tmp_path / "x.gguf").data) is np.ndarray
    np.testing.assert_array_equal(read["four"], (0.25 * nibbles - 1.5)[None].astype(np.float32))
    np.testing.assert_array_equal(read["eight"], 0.25 * eights.astype(np.float32))
    np.testing.assert_array_equal(read["half"], [[0, 1], [2, 3]])


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "no.gguf"
    for content in (b"", b"PK", b"nothing of the kind, but long enough to have a header"):
        path.write_bytes(content)
        with pytest.raises(ArtefactError, match="GGUF"):
            read_gguf(path)
    with pytest.raises(ArtefactError, match="ONNX"):
        read_onnx(path)
    write_gguf(path, {}, {"t": (26, [36], b"\0" * 144)})  # whole numbers aren't weights
    with pytest.raises(ArtefactError, match="GGUF"):
        read_gguf(path)


def test_truncated_gguf_is_refused(text_gguf, tmp_path):
    path = tmp_path / "short.gguf"
    path.write_bytes(text_gguf[0].read_bytes()[:-4096])
    with pytest.raises(ArtefactError, match="GGUF"):
        read_gguf(path)
