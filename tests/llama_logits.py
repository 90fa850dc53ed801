"""llama.cpp's logits of a GGUF file, under a Python that has llama-cpp-python.

FILE OUT IDS... writes OUT, a .npy: float32 [ids, vocabulary].
"""

import ctypes
import os
import sys

import llama_cpp
import numpy as np


def main(path: str, out: str, *ids: str) -> None:
    options = llama_cpp.llama_model_default_params()
    options.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), options)
    context = llama_cpp.llama_init_from_model(model, llama_cpp.llama_context_default_params())
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, id in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(id), i, 1, 1
        batch.seq_id[i][0] = 0
    assert llama_cpp.llama_decode(context, batch) == 0
    logits = ctypes.cast(llama_cpp.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
    np.save(out, np.ctypeslib.as_array(logits, (len(ids), vocab)))


main(*sys.argv[1:])
