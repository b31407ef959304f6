"""One engine of vLLM in a process of its own: `python -m kit.vllm_engine FILE`.

FILE is JSON with the model's folder, vLLM's options, prompts with their pictures, and arguments of
each request; answers and what the engine was go into FILE.out. Engines aren't made to be started
twice in a process.
"""

import json
import os
import sys
from pathlib import Path

SMALL = {
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": 8,
    "limit_mm_per_prompt": {"image": 1},
    "gpu_memory_utilization": 0.3,
    "model_impl": "transformers",
}
"""Options of a small engine on a CPU."""
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def main(file: Path) -> None:
    os.environ.update(ENVIRONMENT, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    from PIL import Image
    from vllm import LLM, SamplingParams

    asked = json.loads(file.read_text())
    llm = LLM(asked["model"], **SMALL, **asked["options"])
    prompts, params = [], []
    for one in asked["requests"]:
        prompt = {"prompt": one["prompt"]}
        if one["image"]:
            with Image.open(one["image"]) as image:
                prompt["multi_modal_data"] = {"image": image.convert("RGB")}
        prompts.append(prompt)
        arguments = one.get("arguments")
        params.append(SamplingParams(temperature=0, max_tokens=16, extra_args=arguments))
    texts = [found.outputs[0].text for found in llm.generate(prompts, params)]
    model = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.get_model()
    told = {"texts": texts, "class": f"{type(model).__module__}:{type(model).__name__}"}
    if getattr(model, "care", None) is not None:
        told["state"] = [kind.__name__ for kind in model.get_model_state_cls().__mro__[:2]]
    Path(f"{file}.out").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
