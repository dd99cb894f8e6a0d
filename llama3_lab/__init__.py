"""Llama 3 Lab: the post-training loop of "The Llama 3 Herd of Models", small enough to run.

The map, in the order in which data moves:

    world       a small universe with known truth: prompts, checkers' data, annotators, corpus
    pipeline    one round: prompts → candidates → verdicts, scores → demonstrations, pairs
                → training → averaging → reports; `rounds.run_loop` strings them together
    models      loading a policy or a reward model, the chat template, adapters
    profiles    every setting, in one place: TINY (a laptop) and the larger ones
    records     the nouns that travel between the stages
    store       records on disk, with digests; a run that was killed resumes from here
    course      tables, figures and the report page
    cli         `llama3-lab doctor | run | report`

Importing this package imports nothing heavy: torch arrives with `models` and `pipeline`.
"""

import logging

__version__ = "0.1.0"
# TRL and PEFT import bitsandbytes where it is installed, and on a CPU that tells of a faster kernel that it lacks.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
