"""The text model in a checkpoint that holds more, which is whole without the rest.

Models of text and images, as Gemma 3's larger ones and Qwen3.5, have a ``text_config`` in their config.json, and their
tensors lie under "language_model."; older ones, as Qwen2-VL, keep both among the rest. Layers that guess several tokens
at once, as Qwen3.5's, lie under "mtp.", ERNIE's under "model.mtp_"; DeepSeek-V3's and GLM's come behind the last one.
"""

from __future__ import annotations

from lutra.models.loaders.checkpoint import Source
from lutra.runtime.errors import CorruptModelError

__all__ = ["take_text"]

# How its tensors' names begin, there and alone.
TEXT = {"language_model.": "", "model.language_model.": "model.", "model.text_model.": "model."}
IMAGES = (
    "vision_tower.",
    "multi_modal_projector.",
    "visual.",
    "model.visual.",
    "model.vision_model.",
    "model.connector.",
    "model.vision_tower.",
    "model.vision_embedder.",
    "model.audio_tower.",
    "model.embed_vision.",
    "model.embed_audio.",
)
# What a text model is without images, whose positions alone have several dimensions.
TYPES = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
}
GUESSES = ("mtp.", "model.mtp_")
COUNTS = ("num_nextn_predict_layers", "num_mtp_layers")  # of layers that guess, too
SHARED = ("dtype", "torch_dtype", "quantization_config", "tie_word_embeddings", "eos_token_id", "bos_token_id")


def take_text(source: Source) -> None:
    """Reduce the source to its text model; one that is no more stays as it is."""
    if _drop(source, (*GUESSES, *_behind(source))):
        source.notes.append("the model can guess several tokens at once: those layers are not read")
    seeing = _drop(source, IMAGES)
    if not seeing and not any(name.startswith(tuple(TEXT)) for name in source.entries):
        return
    whole = source.config
    text = whole.get("text_config", {key: value for key, value in whole.items() if key != "model_type"})
    if not isinstance(text, dict):
        raise CorruptModelError(f"config.json says text_config is {text!r:.80}, which is no table")
    shared = {key: whole[key] for key in SHARED if key in whole}
    source.config = {"model_type": f"{whole.get('model_type')}_text", **shared, **text}
    kind = source.config["model_type"]
    source.config["model_type"] = TYPES.get(kind, kind) if isinstance(kind, str) else kind
    source.entries = {_alone(name): entry for name, entry in source.entries.items()}
    if seeing:
        source.notes.append("the model sees images, too: only its text part is read")


def _behind(source: Source) -> tuple[str, ...]:
    """How names of tensors behind the last layer begin, where the configuration says how many such layers there are."""
    config = source.config
    count = next((config[key] for key in COUNTS if config.get(key)), 0)
    layers = config.get("num_hidden_layers")
    if type(count) is not int or type(layers) is not int or not 0 < count < 100:
        return ()
    return tuple(f"model.layers.{i}." for i in range(layers, layers + count))


def _drop(source: Source, prefixes: tuple[str, ...]) -> bool:
    """Forget the tensors whose names begin so; whether there were any."""
    kept = {name: entry for name, entry in source.entries.items() if not name.startswith(prefixes)}
    found = len(kept) < len(source.entries)
    source.entries = kept
    return found


def _alone(name: str) -> str:
    """The tensor's name in a model that has only text."""
    prefix = next((prefix for prefix in TEXT if name.startswith(prefix)), None)
    return name if prefix is None else TEXT[prefix] + name.removeprefix(prefix)
