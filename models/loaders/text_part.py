"""Models of text and images, as Gemma 3's larger ones: the text model in them, which is whole without the rest.

Their config.json has a ``text_config``, their tensors lie under "language_model.".
"""

from __future__ import annotations

from lutra.models.loaders.checkpoint import Source
from lutra.runtime.errors import CorruptModelError

__all__ = ["take_text"]

TEXT = "language_model."
IMAGES = ("vision_tower.", "multi_modal_projector.")
SHARED = ("dtype", "torch_dtype", "quantization_config", "tie_word_embeddings", "eos_token_id", "bos_token_id")


def take_text(source: Source) -> None:
    """Reduce such a source to its text model; any other stays as it is."""
    text = source.config.get("text_config")
    if text is None or not any(name.startswith(TEXT) for name in source.entries):
        return
    if not isinstance(text, dict):
        raise CorruptModelError(f"config.json says text_config is {text!r:.80}, which is no table")
    whole = source.config
    shared = {key: whole[key] for key in SHARED if key in whole}
    source.config = {"model_type": f"{whole.get('model_type')}_text", **shared, **text}
    source.entries = {
        name.removeprefix(TEXT): entry for name, entry in source.entries.items() if not name.startswith(IMAGES)
    }
    source.notes.append("the model sees images, too: only its text part is read")
