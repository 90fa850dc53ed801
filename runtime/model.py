"""Models: configuration, packed weights and a plan. Immutable, and shared by all sessions."""

from __future__ import annotations

import json
import os
import threading
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

from lutra import native
from lutra.models import weights as weights_of
from lutra.models.loaders import Checkpoint, open_checkpoint
from lutra.models.tokenizer import Tokenizer
from lutra.runtime import cache, memory
from lutra.runtime import threads as threads_of_machine
from lutra.runtime.errors import CorruptModelError, ModelClosedError, UnsupportedModelError
from lutra.runtime.formats import Packed
from lutra.runtime.graph import Graph, StateSymbol, Symbol
from lutra.runtime.plan import ALIGN, Plan
from lutra.runtime.session import Session

__all__ = ["Model", "architecture"]

ROWS = 96  # tokens that one step of a prompt feeds
LOGITS_BYTES = 16 << 20  # at most, in a session


def architecture(config: dict[str, Any]) -> ModuleType:
    """The module of models/ that is named as the configuration's ``model_type``."""
    name = config.get("model_type")
    if not isinstance(name, str) or not name.isidentifier() or find_spec(f"lutra.models.{name}") is None:
        raise UnsupportedModelError(f"lutra does not know models of type {name!r}")
    module = import_module(f"lutra.models.{name}")
    if not hasattr(module, "forward"):
        raise UnsupportedModelError(f"lutra does not know models of type {name!r}")
    return module


class Model:
    """A model ready to run.

    ``config`` is its architecture's Config, ``weights`` its Packed matrices and float32 vectors by role.
    Sessions are made with ``session()``. Close it, or use it in ``with``, to end its threads.
    """

    def __init__(
        self,
        arch: ModuleType,
        config: Any,
        weights: dict[str, weights_of.Weight],
        *,
        threads: int | None = None,
        kv_type: str = "f32",
        engine: native.Engine | None = None,
    ):
        if kv_type not in cache.KV_TYPES:
            raise ValueError(f"kv_type is one of {', '.join(cache.KV_TYPES)}, not {kv_type!r}")
        self.arch, self.config, self.weights, self.kv_type = arch, config, weights, kv_type
        self.engine = engine or native.Engine(threads_of_machine.default() if threads is None else threads)
        self.closed = False
        self._turn = threading.Lock()  # held while a step runs: close() must not pull the plan from under it
        try:
            self.plan = self._plan()
        except ValueError as error:
            raise CorruptModelError(f"the weights do not fit the configuration: {error}") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str], **options: Any) -> Model:
        """Open a checkpoint of any kind that ``open_checkpoint`` reads. Options as for Model()."""
        with open_checkpoint(path) as checkpoint:
            return cls.from_checkpoint(checkpoint, **options)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, **options: Any) -> Model:
        """A model of the checkpoint's weights: mapped in place if lutra packed them, packed now if not."""
        arch = architecture(checkpoint.config)
        config = arch.Config.read(checkpoint.config)
        if checkpoint.kind == "lutra":
            weights = weights_of.read_packed(checkpoint)
        else:
            planned = weights_of.plan_roles(checkpoint, weights_of.names_of(arch, config), config.layers)
            nbytes = sum(p.nbytes for p in planned if not p.mapped)
            memory.require(nbytes, "packing this model", "convert it: a converted model is mapped, not packed")
            weights = dict(weights_of.pack_roles(checkpoint, planned))
        model = cls(arch, config, weights, **options)
        model._checkpoint = checkpoint
        return model

    _checkpoint: Checkpoint | None = None

    def _plan(self) -> Plan:
        graph = Graph()
        ids = graph.symbol(1, np.int32)
        state: Any = StateSymbol(graph, self.kv_type)
        logits: Symbol = self.arch.forward(self.config, self.by_layer, ids, state)
        rows = min(ROWS, self.config.n_ctx)
        outputs = max(1, min(rows, LOGITS_BYTES // (4 * logits.cols)))
        return Plan(self.engine, graph, ids, logits, rows, outputs)

    @cached_property
    def by_layer(self) -> Any:
        """The weights as forward() names them."""
        return weights_of.by_layer(self.weights, self.arch, self.config)

    @property
    def scratch_address(self) -> int:
        """Where the plan's scratch memory begins."""
        return -(-self.plan.scratch.ctypes.data // ALIGN) * ALIGN

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer. Raises a LutraError if it has none."""
        if self._checkpoint is None:
            raise UnsupportedModelError("this model was made without a tokenizer")
        return self._checkpoint.tokenizer()

    @property
    def n_vocab(self) -> int:
        """Rows of the output matrix: how many logits there are."""
        return self.by_layer.head.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights; a tied matrix counts once."""
        return sum(w.nbytes for w in self.weights.values())

    @property
    def n_params(self) -> int:
        """Elements of all weights; a tied matrix counts once."""
        return sum(int(np.prod(w.shape)) for w in self.weights.values())

    @cached_property
    def fingerprint(self) -> str:
        """Tells models apart by their shape, cache type, and a sample of their weights."""
        import hashlib  # its OpenSSL takes 3.5 MB, and greedy runs do without

        digest = hashlib.sha256(json.dumps([repr(self.config), self.kv_type, cache.VERSION]).encode())
        for role, weight in sorted(self.weights.items()):
            digest.update(role.encode())
            for part in weight.parts.values() if isinstance(weight, Packed) else (weight,):
                digest.update(np.ascontiguousarray(part.reshape(-1)[:1024]).tobytes())
        return digest.hexdigest()

    def session(self, n_ctx: int | None = None) -> Session:
        """A new session with room for n_ctx tokens; None: as many as the model knows."""
        return Session(self, n_ctx)

    def run(self, step: Any) -> None:
        """Run one step of a session. Raises ModelClosedError, CancelledError."""
        with self._turn:
            if self.closed:
                raise ModelClosedError("the model is closed")
            self.plan.native.run(step)

    def close(self) -> None:
        """End the threads and free the plan, after the step that is running. Sessions can run no more."""
        with self._turn:
            if not self.closed:
                self.closed = True
                self.plan.native.close()
                self.engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
