"""llama.cpp's logits of a GGUF file, under a Python that has llama-cpp-python: FILE OUT IDS... writes OUT, a .npy."""

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
    tokens = (llama_cpp.llama_token * len(ids))(*map(int, ids))
    assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids))) == 0
    logits = llama_cpp.llama_get_logits_ith(context, -1)
    np.save(out, np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (vocab,)))


main(*sys.argv[1:])
