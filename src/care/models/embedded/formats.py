"""Read tensors from GGUF and ONNX files with the standard library and numpy.

Covers what the embedded model needs and no more: GGUF versions 2 and 3 with tensors of the types
F32, F16, Q4_1 and Q8_0; float32 initialisers of an ONNX graph and the input names of its nodes.
Sources: the GGUF specification of ggml (docs/gguf.md) and onnx.proto.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from care.errors import ArtefactError

_GGUF_SCALARS = dict(enumerate("BbHhIif?", start=0)) | {10: "Q", 11: "q", 12: "d"}
_GGUF_STRING, _GGUF_ARRAY = 8, 9
_GGUF_BLOCKS = {0: (1, 4), 1: (1, 2), 3: (32, 20), 8: (32, 34)}  # type -> values, bytes per block


class _Cursor:
    """Reads little-endian values of a GGUF header in order."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = data
        self.at = 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        size = self.scalar("Q")
        self.at += size
        return bytes(self.data[self.at - size : self.at]).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _GGUF_STRING:
            return self.string()
        if kind == _GGUF_ARRAY:
            inner, size = self.scalar("I"), self.scalar("Q")
            return [self.value(inner) for _ in range(size)]
        return self.scalar(_GGUF_SCALARS[kind])


def _dequantise(raw: np.ndarray, kind: int) -> np.ndarray:
    """Blocks of one GGUF type (bytes) -> flat float32. Q4_1: d·q + m; Q8_0: d·q."""
    if kind == 0:
        return raw.view("<f4").astype(np.float32)
    if kind == 1:
        return raw.view("<f2").astype(np.float32)
    blocks = raw.reshape(-1, _GGUF_BLOCKS[kind][1])
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    if kind == 8:
        return (scale * blocks[:, 2:].view(np.int8)).reshape(-1)
    low = blocks[:, 2:4].copy().view("<f2").astype(np.float32)
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return (scale * nibbles + low).reshape(-1)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and float32 tensors of a GGUF file (types F32, F16, Q4_1 and Q8_0).

    Raises ArtefactError for anything else.
    """
    try:
        return _parse_gguf(path)
    except ArtefactError:
        raise
    except (IndexError, KeyError, ValueError, struct.error) as error:
        raise ArtefactError(f"{path} isn't a readable GGUF file; fetch it again.") from error


def _parse_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    data = np.memmap(path, dtype=np.uint8, mode="r")
    cursor = _Cursor(data.data)
    magic, version, n_tensors, n_fields = (cursor.scalar(code) for code in ("4s", "I", "Q", "Q"))
    if magic != b"GGUF" or version not in (2, 3):
        raise ArtefactError(f"{path} isn't a GGUF file of version 2 or 3; fetch it again.")
    fields = {}
    for _ in range(n_fields):
        name = cursor.string()
        fields[name] = cursor.value(cursor.scalar("I"))
    headers = []
    for _ in range(n_tensors):
        name = cursor.string()
        shape = [cursor.scalar("Q") for _ in range(cursor.scalar("I"))][::-1]
        headers.append((name, shape, cursor.scalar("I"), cursor.scalar("Q")))
    align = fields.get("general.alignment", 32)
    start = math.ceil(cursor.at / align) * align
    tensors = {}
    for name, shape, kind, offset in headers:
        if kind not in _GGUF_BLOCKS:
            raise ArtefactError(f"Tensor {name} in {path} has GGUF type {kind}, not Q4_1 or Q8_0.")
        per_block, n_bytes = _GGUF_BLOCKS[kind]
        size = math.prod(shape) // per_block * n_bytes
        raw = np.asarray(data[start + offset : start + offset + size])
        tensors[name] = _dequantise(raw, kind).reshape(shape)
    return fields, tensors


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _messages(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value) of one protobuf message; nested messages stay views."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
        elif wire == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            size = {1: 8, 5: 4}[wire]
            value, at = data[at : at + size], at + size
        yield tag >> 3, value


def _initialiser(message: memoryview) -> tuple[str, np.ndarray | None]:
    """Name and float32 array of an ONNX TensorProto, None for another element type."""
    name, shape, kind, raw = "", [], 0, memoryview(b"")
    for field, value in _messages(message):
        if field == 1 and isinstance(value, int):
            shape.append(value)
        elif field == 1:
            at = 0
            while at < len(value):
                size, at = _varint(value, at)
                shape.append(size)
        elif field == 2:
            kind = value
        elif field == 8:
            name = bytes(value).decode()
        elif field == 9:
            raw = value
    if kind != 1 or not raw:
        return name, None
    return name, np.frombuffer(raw, "<f4").reshape(shape)


def read_onnx(path: Path) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Float32 initialisers by name, and the input names of every node by node name.

    Field numbers are those of onnx.proto: model.graph 7, graph.node 1, graph.initializer 5.
    Raises ArtefactError for a file that isn't ONNX.
    """
    tensors: dict[str, np.ndarray] = {}
    nodes: dict[str, list[str]] = {}
    try:
        data = memoryview(path.read_bytes())
        for graph in (value for field, value in _messages(data) if field == 7):
            for field, value in _messages(graph):
                if field == 5:
                    name, array = _initialiser(value)
                    if array is not None:
                        tensors[name] = array
                elif field == 1:
                    parts = [(f, bytes(v).decode()) for f, v in _messages(value) if f in (1, 3)]
                    nodes["".join(v for f, v in parts if f == 3)] = [v for f, v in parts if f == 1]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path} isn't a readable ONNX file; fetch it again.") from error
    if not tensors:
        raise ArtefactError(f"{path} holds no float32 weights in ONNX; fetch it again.")
    return tensors, nodes
