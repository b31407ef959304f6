"""A repair's edits inside vLLM, without a fork: a plugin of its group `vllm.general_plugins`.

plugin     which of vLLM's model classes get a subclass                    (needs no vLLM)
settings   what `--additional-config` says of a repair                     (needs no vLLM)
limits     what can't be honoured, and is refused before the first token   (needs no vLLM)
tokens     which tokens of a step are edited                               (needs no vLLM)
layers     edits as forward hooks that compile                             (needs no vLLM)
command    the command line that serves a repaired model                   (needs no vLLM)
models     the subclasses
requests   what vLLM tells of the requests of a step
"""
