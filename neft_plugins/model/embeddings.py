"""Which modules of a model are its input embeddings, and what is known of them."""

import difflib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

Side = Literal["model", "encoder", "decoder"]

_PLACEHOLDERS = ("image", "video", "audio")


class InputEmbedding(NamedTuple):
    """An embedding module that gets noise.

    Attributes:
        name: Its dotted name in the model.
        module: The module itself.
        side: "encoder" or "decoder" of an encoder-decoder, else "model".
    """

    name: str
    module: nn.Module
    side: Side


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile`` and data-parallel wrappers."""
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # pyright: ignore[reportAssignmentType]
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def find_embeddings(
    model: nn.Module, embedding: str | nn.Module | None = None, decoder: bool = False
) -> list[InputEmbedding]:
    """The embedding modules that a forward pass really calls.

    ``get_input_embeddings()`` of an encoder-decoder is often a ``shared`` module that nobody
    calls, so its encoder and decoder are asked one by one.

    Args:
        model: A ``PreTrainedModel``, a PEFT model, or any module when ``embedding`` is given.
        embedding: The module, or its dotted name, where the model cannot be asked.
        decoder: Also the decoder's embedding of an encoder-decoder.

    Returns:
        One embedding, or the encoder's and the decoder's.

    Raises:
        ValueError: If there is none, with the way out.
    """
    if embedding is not None:
        return [_named(model, embedding)]
    if is_encoder_decoder(model):
        stacks: list[tuple[Side, Any]] = [("encoder", model.get_encoder())]  # pyright: ignore
        if decoder:
            stacks.append(("decoder", model.get_decoder()))  # pyright: ignore
        found = [
            InputEmbedding(_name_of(model, module), module, side)
            for side, stack in stacks
            if (module := _own_embedding(stack)) is not None
        ]
        if len(found) == len(stacks):
            return found
        raise _not_found(model)
    if decoder:
        raise ValueError(
            f"`decoder=True` is for encoder-decoder models, and {type(model).__name__} is not one. "
            "Leave it out."
        )
    try:
        module = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    except (AttributeError, NotImplementedError):
        raise _not_found(model) from None
    if not isinstance(module, nn.Module):
        raise _not_found(model)
    return [InputEmbedding(_name_of(model, module), module, "model")]


def ancestors(model: nn.Module, module: nn.Module) -> list[nn.Module]:
    """The modules on the way from the model to one of its submodules, outermost first."""
    found: dict[int, nn.Module] = {}
    for name, candidate in model.named_modules(remove_duplicate=False):
        if candidate is module:
            parts = name.split(".")
            for depth in range(len(parts)):
                parent = model.get_submodule(".".join(parts[:depth]))
                found[id(parent)] = parent
    return list(found.values())


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model's config says it has an encoder and a decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def lookup_scaler(module: nn.Module) -> nn.Module | None:
    """The module in an embedding that multiplies its own lookup by ``embed_scale``, if any.

    Gemma, BART and their families do so, and g of the equation is their factor. PEFT wrappers hold
    the module that has it.
    """
    kinds = int | float | Tensor
    return next(
        (
            part
            for part in module.modules()
            if isinstance(getattr(part, "embed_scale", None), kinds)
        ),
        None,
    )


def placeholder_ids(model: nn.Module) -> list[int]:
    """Token ids whose embeddings an image, a video or a sound replaces, by the model's config."""
    config = getattr(model, "config", None)
    names = [f"{kind}_token_{what}" for kind in _PLACEHOLDERS for what in ("id", "index")]
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    ids = (getattr(part, name, None) for part in (config, *parts) for name in names)
    return sorted({value for value in ids if isinstance(value, int)})


def pad_token_id(model: nn.Module) -> int | None:
    """The padding token of the model's (text) config, where it has one."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    value = getattr(text, "pad_token_id", None)
    return value if isinstance(value, int) else None


def adapter_switches(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where PEFT notes that adapters are off: (module, attribute) pairs, True when off."""
    switches = [
        (module, "_adapters_disabled")
        for module in model.modules()
        if isinstance(getattr(module, "_adapters_disabled", None), bool)
    ]
    layers = (
        (module, "_disable_adapters")
        for module in model.modules()
        if isinstance(getattr(module, "_disable_adapters", None), bool)
    )
    return switches + list(layers)[:1]


def _named(model: nn.Module, embedding: str | nn.Module) -> InputEmbedding:
    if isinstance(embedding, nn.Module):
        return InputEmbedding(_name_of(model, embedding), embedding, _side_of(model, embedding))
    if not isinstance(embedding, str):
        raise TypeError(f"`embedding` must be a module or its dotted name; got {embedding!r}.")
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    if embedding not in names:
        close = difflib.get_close_matches(embedding, names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"`embedding` must be a module of {type(model).__name__}; got {embedding!r}.{hint}"
        )
    module = model.get_submodule(embedding)
    return InputEmbedding(embedding, module, _side_of(model, module))


def _side_of(model: Any, module: nn.Module) -> Side:
    if not is_encoder_decoder(model):
        return "model"
    in_decoder = any(module is part for part in model.get_decoder().modules())
    return "decoder" if in_decoder else "encoder"


def _name_of(model: nn.Module, module: nn.Module) -> str:
    for name, candidate in model.named_modules(remove_duplicate=False):
        if candidate is module:
            return name
    raise ValueError(
        f"The embedding ({type(module).__name__}) is not a module of {type(model).__name__}. "
        "Attach to the model that contains it."
    )


def _own_embedding(stack: Any) -> nn.Module | None:
    """An encoder's or decoder's embedding: one of its own modules, never a shared one outside."""
    own = list(stack.modules())
    candidates = (*_asked(stack), *(getattr(stack, name, None) for name in _STACK_NAMES))
    return next((c for c in candidates if c is not None and any(c is m for m in own)), None)


_STACK_NAMES = ("embed_tokens", "word_embeddings", "embeddings")


def _asked(stack: Any) -> Iterator[nn.Module]:
    try:
        yield stack.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return


def _not_found(model: nn.Module) -> ValueError:
    candidates = [
        name for name, module in model.named_modules() if isinstance(module, nn.Embedding)
    ]
    listed = ", ".join(repr(name) for name in candidates[:5]) or "none"
    return ValueError(
        f"{type(model).__name__} does not say which module is its input embedding. Name it: "
        f"embedding='...' (its nn.Embedding modules: {listed})."
    )
