"""A GGUF file of a merged checkpoint, written as llama.cpp's converter does, and compared."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import MODEL_ARCH, GGUFReader, GGUFWriter, get_tensor_name_map

from care.defenses.exporting import write_merged
from care.defenses.folded_weights import folds
from care.defenses.linear_parts import affine_maps
from care.models.sites import Site
from kit import tiny
from kit.merging import linear_repair
from tools import compare_gguf
from tools.compare_gguf import differences, text_tensors


def permuted(weight, heads):
    """`LlamaModel.permute` of llama.cpp's converter."""
    shape = weight.shape
    return (
        weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
    )


def written(merged, path, kind=np.float32, change=lambda name, array: array):
    """The text model of a merged checkpoint as GGUF."""
    writer, names = GGUFWriter(path, "llama"), get_tensor_name_map(MODEL_ARCH.LLAMA, tiny.LAYERS)
    for name, array in text_tensors(merged):
        if "q_proj" in name or "k_proj" in name:
            array = permuted(array, 4 if "q_proj" in name else 2)
        array = change(name, array)
        told = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if array is not None:
            writer.add_tensor(told, np.ascontiguousarray(array.astype(kind)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def merged(vlm, tmp_path_factory):
    """A checkpoint with a repair and its centre folded in."""
    folder = tmp_path_factory.mktemp("merged")
    repair = linear_repair(vlm, Site(1, "ffn_out"), Site(2, "mhsa_out"), centred=True)
    write_merged(vlm, folds(vlm, affine_maps(repair)), folder)
    return folder


def test_the_file_holds_the_merged_weights(vlm, merged, tmp_path):
    found = list(differences(merged, written(merged, tmp_path / "m.gguf")))
    assert {why for _, why, _ in found} == {""} and max(apart for *_, apart in found) == 0
    assert any(name == "model.layers.1.mlp.down_proj.bias" for name, *_ in found)
    assert len(found) > 9 * tiny.LAYERS
    tensors = {t.name: t.data for t in GGUFReader(str(tmp_path / "m.gguf")).tensors}
    own = vlm.anatomy.layers[1].mlp.down_proj.weight.detach().numpy()
    assert not np.allclose(tensors["blk.1.ffn_down.weight"], own, atol=1e-2)
    unchanged = vlm.anatomy.layers[0].mlp.down_proj.weight.detach().numpy()
    np.testing.assert_array_equal(tensors["blk.0.ffn_down.weight"], unchanged)


def test_half_precision_may_round(merged, tmp_path):
    found = list(differences(merged, written(merged, tmp_path / "m.gguf", np.float16)))
    assert {why for _, why, _ in found} == {""} and max(apart for *_, apart in found) > 0


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("down_proj.weight", lambda array: array * 1.01, "differs by more than its type rounds"),
        ("down_proj.weight", lambda array: None, "is missing"),
        ("down_proj.weight", lambda array: array[:-1], "instead of"),
    ],
)
def test_what_is_wrong_is_said(merged, tmp_path, capsys, monkeypatch, part, change, said):
    def only_there(name, array):
        return change(array) if name.endswith(f"layers.1.mlp.{part}") else array

    path = written(merged, tmp_path / "m.gguf", change=only_there)
    monkeypatch.setattr("sys.argv", ["compare_gguf.py", str(merged), str(path)])
    assert compare_gguf.main() == 1
    out = capsys.readouterr().out
    assert f"model.layers.1.mlp.{part} {said}" in out or said in out.splitlines()[0]
    assert " tensors agree; greatest difference" in out
