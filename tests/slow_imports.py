"""Imported once by the server that forks the processes of tests (`tiny_runs`)."""

import gc

import torch
import transformers.trainer  # noqa: F401
import trl  # noqa: F401

import perdure.dropin  # noqa: F401
import perdure.learners.generation  # noqa: F401
import perdure.loop  # noqa: F401
import perdure.scoring.score  # noqa: F401

torch.set_num_threads(1)
gc.collect()
gc.freeze()  # see less_garbage.py; and a process that is forked then shares this memory
