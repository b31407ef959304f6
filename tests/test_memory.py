"""Batches that don't fit into memory are halved: for judges, and for a whole evaluation."""

import pytest
import torch

from care.errors import UsageError
from care.evaluate import evaluate
from care.examples import Suite
from care.judges import Judge
from care.memory import in_halves, out_of_memory
from tiny import mixed_examples, tiny_vlm


def test_batches_are_halved_and_stay_small():
    sizes = []

    def work(chunk):
        sizes.append(len(chunk))
        if len(chunk) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [item * 2 for item in chunk]

    assert in_halves(list(range(11)), 8, work) == [item * 2 for item in range(11)]
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 1]


def test_one_item_that_does_not_fit_is_an_error():
    def work(chunk):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(RuntimeError, match="allocate"):
        in_halves([1, 2], 2, work)


def test_other_errors_and_wrong_sizes():
    def work(chunk):
        raise RuntimeError("index out of range")

    with pytest.raises(RuntimeError, match="index"):
        in_halves([1, 2], 2, work)
    with pytest.raises(UsageError, match="at least 1"):
        in_halves([1], 0, work)
    assert in_halves([], 4, work) == []
    assert out_of_memory(torch.OutOfMemoryError("x"))
    assert not out_of_memory(ValueError("can't allocate memory"))


@pytest.mark.parametrize("limit", [1, 2])
def test_an_evaluation_goes_on_with_smaller_batches(monkeypatch, limit):
    suite = Suite("mixed", "utility", tuple(mixed_examples(8)))
    vlm = tiny_vlm()
    options = {"judge": Judge(), "batch_size": 4, "max_new_tokens": 6}
    wanted = evaluate(vlm, [suite], [None], **options).rows
    sizes, forward = [], vlm.model.forward

    def limited(*arguments, **inputs):
        shape = inputs["input_ids"].shape if inputs.get("input_ids") is not None else (1,)
        sizes.append(shape[0])
        if shape[0] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*arguments, **inputs)

    monkeypatch.setattr(vlm.model, "forward", limited)
    found = evaluate(vlm, [suite], [None], **options).rows
    assert max(sizes) == 4 and sizes.count(1) + sizes.count(2) > 0
    assert [row["error"] for row in found] == [None] * 8
    assert [row["response"] for row in found] == [row["response"] for row in wanted]
