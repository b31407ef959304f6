"""Batches hold so many tokens at most, and are halved where that is too much for the memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from care.data.example import Suite
from care.defenses.activations import at_decision, read_decisions
from care.errors import UsageError
from care.evaluation.runner import evaluate
from care.judges.perplexity import perplexities
from care.judges.rules import RulesJudge
from care.models.memory import fitting, in_halves, out_of_memory
from care.models.sites import Site
from kit.tiny import mixed_examples, tiny_llama, tiny_tokenizer, tiny_vlm


def test_batches_are_halved_and_stay_small():
    sizes = []

    def work(chunk):
        sizes.append(len(chunk))
        if len(chunk) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [item * 2 for item in chunk]

    most = 3
    assert in_halves(list(range(11)), 8, work) == [item * 2 for item in range(11)]
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 1]
    assert in_halves([], 4, work) == []
    with pytest.raises(UsageError, match="at least 1"):
        in_halves([1], 0, work)
    most = 0  # not one item fits
    with pytest.raises(RuntimeError, match="memory"):
        in_halves([1, 2], 2, work)


def test_long_items_come_fewer_at_once(monkeypatch):
    monkeypatch.setattr("care.models.memory.PADDED_TOKENS", 12)
    seen = []

    def work(chunk):
        seen.append(chunk)
        return chunk

    items = [13, 6, 6, 5, 3, 3, 3, 3, 1, 1]
    assert in_halves(items, 5, work, length=int) == items
    assert seen == [[13], [6, 6], [5, 3], [3, 3, 3, 1], [1]]
    # The longest counts wherever it stands; one is always taken, and none of none.
    assert [fitting(each) for each in ([1, 1, 6, 6], [1, 13], [13, 1], [])] == [2, 1, 1, 1]


def test_long_prompts_are_answered_in_smaller_batches(monkeypatch):
    """In all that asks a model, with the results of whole batches, in the order of the examples."""
    vlm = tiny_vlm()
    examples = [
        replace(example, prompt=f"{example.prompt} {'a house ' * more}")
        for example, more in zip(mixed_examples(8), [1, 2, 30, 4, 5, 60, 7, 8], strict=True)
    ]
    sizes, forward = [], vlm.model.forward

    def watched(*arguments, **inputs):
        if inputs.get("input_ids") is not None and len(inputs["input_ids"][0]) > 1:
            sizes.append(inputs["input_ids"].shape)
        return forward(*arguments, **inputs)

    monkeypatch.setattr(vlm.model, "forward", watched)
    suite, options = Suite("long", "utility", tuple(examples)), {"batch_size": 8}
    site = Site(1, "layer_out")

    def everything():
        sizes.clear()
        rows = evaluate(vlm, [suite], [None], judge=RulesJudge(), max_new_tokens=6, **options).rows
        return (
            [row["response"] for row in rows],
            vlm.answers(examples, max_new_tokens=6, **options),
            vlm.refusal_log_odds(examples, **options),
            vlm.score(examples, [" yes"] * 8, **options).logprob,
            at_decision(vlm, examples, [site], **options)[site],
            read_decisions(vlm, examples, [site], **options)[site],
        )

    whole, most = everything(), max(rows for rows, _ in sizes)
    monkeypatch.setattr("care.models.memory.PADDED_TOKENS", 100)
    found = everything()
    assert most == 4  # with a picture and without
    assert all(rows == 1 or rows * tokens < 150 for rows, tokens in sizes)  # the template's too
    assert 1 < max(rows for rows, _ in sizes) < most
    assert found[:2] == whole[:2]
    for one, other in zip(found[2:], whole[2:], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


DEVICES = [
    "Triton Error [CUDA]: out of memory",
    "Invalid buffer size: 21474836480 bytes",
    "Failed to allocate private MTLBuffer for size 8589934592",
    "Failed to allocate 2147483648 bytes",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA driver error: out of memory",
    "cuda runtime error (2) : out of memory at /pytorch/THCStorage.cu:58",
    "cudaErrorMemoryAllocation: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "HIP out of memory. Tried to allocate 20.00 MiB",
    "HIP error: out of memory",
    "HIP error: hipErrorOutOfMemory",
    "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "rocblas_status_memory_error",
    "MPS backend out of memory (MPS allocated: 1 GB). Tried to allocate 256 MB on shared pool.",
    "Invalid buffer size: 24.00 GiB",
    "Command buffer failed: (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
    "NPU out of memory. Tried to allocate 1.00 GiB (NPU 0; 60.97 GiB total capacity)",
    "XPU out of memory. Tried to allocate 5.25 GiB",
    "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "Native API failed. Native API returns: -6 (PI_ERROR_OUT_OF_HOST_MEMORY)",
    "MLU out of memory. Tried to allocate 2.00 GiB",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.",
    "Bad StatusOr access: RESOURCE_EXHAUSTED: Error allocating device buffer",
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried "
    "to allocate 8 bytes.",
    "unable to mmap 4096 bytes from file: Cannot allocate memory (12)",
    "std::bad_alloc",
]
UNRELATED = [
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
    "CUDA error: no kernel image is available for execution on the device",
    "Expected all tensors to be on the same device, cuda:0 and cpu",
    "index 32000 is out of bounds for dimension 0 with size 32000",
    "The expanded size of the tensor (512) must match the existing size (513)",
    "required rank 4 tensor to use channels_last memory format",
    "shape '[1, 2]' is invalid for input of size 3",
    "Cannot copy out of meta tensor; no data!",
    "DataLoader worker (pid 7) is killed by signal: Killed.",
    "",
]


@pytest.mark.parametrize("said", DEVICES)
def test_every_device_says_it_in_its_own_words(said):
    def work(chunk):
        if len(chunk) > 2:
            raise RuntimeError(said)
        return list(chunk)

    assert in_halves(list(range(8)), 8, work) == list(range(8))


@pytest.mark.parametrize("said", UNRELATED)
def test_other_errors_are_not_taken_for_it(said):
    calls = []

    def work(chunk):
        calls.append(chunk)
        raise RuntimeError(said)

    with pytest.raises(RuntimeError):
        in_halves(list(range(8)), 8, work)
    assert len(calls) == 1


def test_classes_that_say_it_without_words():
    array = type("_ArrayMemoryError", (MemoryError,), {})
    for error in (MemoryError(), array(), torch.OutOfMemoryError("x"), OSError(12, "no")):
        assert out_of_memory(error)
    for error in (OSError(2, "out of memory"), ValueError("CUDA out of memory"), KeyError("a")):
        assert not out_of_memory(error)
    for cause in (MemoryError(), ValueError("other")):
        outer = RuntimeError("The kernel failed.")
        outer.__cause__ = cause
        assert out_of_memory(outer) is isinstance(cause, MemoryError)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("MPS backend out of memory")])
def test_a_processor_that_lacks_memory_blames_no_example(monkeypatch, error):
    vlm = tiny_vlm()
    examples = mixed_examples(6)
    wanted = vlm.generate(examples, max_new_tokens=3)
    encode = type(vlm.processor).__call__

    def limited(self, text=None, **options):
        if len(text) > 1:
            raise error
        return encode(self, text=text, **options)

    monkeypatch.setattr(type(vlm.processor), "__call__", limited)
    assert vlm.generate(examples, max_new_tokens=3) == wanted


@pytest.mark.parametrize("said", ["MPS backend out of memory", "NPU out of memory."])
def test_prompts_that_cannot_be_held_are_read_later(monkeypatch, said):
    vlm = tiny_vlm()
    examples = mixed_examples(4)
    wanted = vlm.generate(examples, max_new_tokens=3)

    def lacks(model, roles, start):
        raise RuntimeError(said)

    monkeypatch.setattr("care.models.vlm.read_prompts", lacks)
    assert vlm.generate(vlm.prefill(examples), max_new_tokens=3) == wanted


def test_perplexities_are_read_in_smaller_batches(monkeypatch):
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    texts = [f"a house of {n} stones" for n in range(9)]
    wanted = perplexities(model, tokenizer, texts)
    forward = model.forward

    def limited(input_ids, **options):
        if len(input_ids) > 3:
            raise RuntimeError("HIP error: out of memory")
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(model, "forward", limited)
    assert perplexities(model, tokenizer, texts) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("limit", [1, 2])
def test_an_evaluation_goes_on_with_smaller_batches(monkeypatch, limit):
    suite = Suite("mixed", "utility", tuple(mixed_examples(8)))
    vlm = tiny_vlm()
    options = {"judge": RulesJudge(), "batch_size": 4, "max_new_tokens": 6}
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
