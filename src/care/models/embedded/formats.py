"""Read tensors from GGUF and ONNX files.

GGUF is read and dequantised by its own package. Of ONNX no more is covered than the embedded model
needs: float32 initialisers of a graph and the input names of its nodes, after onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from care.errors import ArtefactError


def plain_reader(path: Path) -> Any:
    """gguf's reader of a file, on a plain array: a vocabulary is read in 250,000 small slices, each
    of which takes three times as long on a `np.memmap`."""
    from gguf import GGUFReader

    class PlainReader(GGUFReader):
        @property
        def data(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
            return self._bytes

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            self._bytes = mapped.view(np.ndarray)

    return PlainReader(path)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and float32 tensors of a GGUF file; ArtefactError for a file that isn't one."""
    from gguf.quants import dequantize

    try:
        reader = plain_reader(path)
        # Under "GGUF." the reader tells of the file itself.
        fields = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith("GGUF.")
        }
        # Copied, for what isn't quantised is still a view of the file.
        tensors = {
            tensor.name: np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
            for tensor in reader.tensors
        }
    except (LookupError, ValueError, ArithmeticError, NotImplementedError) as error:
        raise ArtefactError(f"{path} isn't a readable GGUF file; fetch it again.") from error
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
