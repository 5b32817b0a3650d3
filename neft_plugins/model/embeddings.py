"""Which modules of a model are its input embeddings, and what is known of them."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from neft_plugins import _compat
from neft_plugins.messages import closest

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
        inside = _compat.inside_compiled(model)
        if isinstance(inside, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inside = inside.module
        if inside is model:
            return model
        model = inside


def find_embeddings(
    model: nn.Module, embedding: str | nn.Module | None = None, decoder: bool = False
) -> list[InputEmbedding]:
    """The embedding modules that a forward pass really calls.

    ``get_input_embeddings()`` of an encoder-decoder is often a ``shared`` module that nobody
    calls, so its encoder and decoder are asked one by one. A model that cannot be asked, such as a
    ``SentenceTransformer``, may hold one that can.

    Args:
        model: A ``PreTrainedModel``, a PEFT model, a module that holds one of these, or any module
            when ``embedding`` is given.
        embedding: The module, or its dotted name, where the model cannot be asked.
        decoder: Also the decoder's embedding of an encoder-decoder.

    Returns:
        One embedding, or the encoder's and the decoder's.

    Raises:
        ValueError: If there is none, with the way out.
    """
    if embedding is not None:
        return [_named(model, embedding)]
    asked = _part_to_ask(model)
    if is_encoder_decoder(asked):
        stacks: list[tuple[Side, Any]] = [("encoder", asked.get_encoder())]  # pyright: ignore
        if decoder:
            stacks.append(("decoder", asked.get_decoder()))  # pyright: ignore
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
            f"`decoder=True` is for encoder-decoder models, and {type(asked).__name__} is not one. "
            "Leave it out."
        )
    module = _answer(asked)
    if module is None:
        for name, part in model.named_modules():
            _refuse_bag(name, part)
        raise _not_found(model)
    name = _name_of(model, module)
    _refuse_bag(name, module)
    return [InputEmbedding(name, module, "model")]


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


def gives_fresh_output(module: nn.Module) -> bool:
    """Whether a module's output is a new tensor, of which nobody else knows yet.

    So it is for a lookup by torch or by transformers; a module of someone's own may return a
    tensor that it keeps, and so may a hook of theirs keep one.
    """
    kind = type(module)
    by_torch = kind.forward is nn.Embedding.forward
    scaled = isinstance(module, nn.Embedding) and lookup_scaler(module) is module
    by_transformers = scaled and kind.__module__.startswith("transformers.")
    is_replaced = "forward" in vars(module)
    hooks_of_hosts = all(
        str(getattr(getattr(hook, "func", hook), "__module__", "")).split(".")[0] in _HOSTS
        for hook in _compat.forward_hooks(module)
    )
    return (by_torch or by_transformers) and not is_replaced and hooks_of_hosts


_HOSTS = ("torch", "transformers", "accelerate", "deepspeed")


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are; those that are not there yet (meta) do not say."""
    weights = (weight for weight in module.parameters() if not weight.is_meta)
    return next((weight.device for weight in weights), torch.device("cpu"))


def placeholder_ids(model: nn.Module) -> list[int]:
    """Token ids whose embeddings an image, a video or a sound replaces, by the model's config."""
    config = _config(model)
    names = [f"{kind}_token_{what}" for kind in _PLACEHOLDERS for what in ("id", "index")]
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    ids = (getattr(part, name, None) for part in (config, *parts) for name in names)
    return sorted({value for value in ids if isinstance(value, int)})


def pad_token_id(model: nn.Module) -> int | None:
    """The padding token of the model's (text) config, where it has one."""
    config = _config(model)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    value = getattr(text, "pad_token_id", None)
    return value if isinstance(value, int) else None


def _config(model: nn.Module) -> Any:
    """The model's config, or where it has none, that of the first of its parts that has."""
    configs = (getattr(part, "config", None) for part in model.modules())
    return next((config for config in configs if config is not None), None)


def _named(model: nn.Module, embedding: str | nn.Module) -> InputEmbedding:
    if isinstance(embedding, nn.Module):
        name, module = _name_of(model, embedding), embedding
    else:
        name, module = embedding, _module_named(model, embedding)
    _refuse_bag(name, module)
    return InputEmbedding(name, module, _side_of(model, module))


def _module_named(model: nn.Module, embedding: str) -> nn.Module:
    if not isinstance(embedding, str):
        raise TypeError(f"`embedding` must be a module or its dotted name; got {embedding!r}.")
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    if embedding not in names:
        raise ValueError(
            f"`embedding` must be a module of {type(model).__name__}; got {embedding!r}."
            f"{closest(embedding, names)}"
        )
    return model.get_submodule(embedding)


def _side_of(model: nn.Module, module: nn.Module) -> Side:
    # A SentenceTransformer hands its model's config on, but cannot be asked for a decoder.
    stacks = (m for m in model.modules() if is_encoder_decoder(m) and hasattr(m, "get_decoder"))
    outermost: Any = next(stacks, None)
    if outermost is None:
        return "model"
    in_decoder = any(module is part for part in outermost.get_decoder().modules())
    return "decoder" if in_decoder else "encoder"


def _name_of(model: nn.Module, module: nn.Module) -> str:
    for name, candidate in model.named_modules(remove_duplicate=False):
        if candidate is module:
            return name
    raise ValueError(
        f"The embedding ({type(module).__name__}) is not a module of {type(model).__name__}. "
        "Attach to the model that contains it."
    )


def _part_to_ask(model: nn.Module) -> nn.Module:
    """The model, or where it cannot be asked, the one outermost part of it that can."""
    if is_encoder_decoder(model):
        return model
    answers = [(part, _answer(part)) for part in _askable(model)]
    parts = {id(module): (part, module) for part, module in answers if module is not None}
    if len(parts) > 1:
        listed = " and ".join(
            f"{_name_of(model, module)!r} of {type(part).__name__}"
            for part, module in parts.values()
        )
        raise ValueError(
            f"{type(model).__name__} holds several models, each with an input embedding of its "
            f"own: {listed}. Say which one gets noise: embedding='...'."
        )
    return next((part for part, _ in parts.values()), model)


def _askable(module: nn.Module) -> Iterator[nn.Module]:
    if hasattr(module, "get_input_embeddings"):
        yield module
        return
    for child in module.children():
        yield from _askable(child)


def _own_embedding(stack: Any) -> nn.Module | None:
    """An encoder's or decoder's embedding: one of its own modules, never a shared one outside."""
    own = list(stack.modules())
    candidates = (_answer(stack), *(getattr(stack, name, None) for name in _STACK_NAMES))
    return next((c for c in candidates if c is not None and any(c is m for m in own)), None)


_STACK_NAMES = ("embed_tokens", "word_embeddings", "embeddings")


def _answer(model: Any) -> nn.Module | None:
    """What a model says is its input embedding, if it says."""
    try:
        module = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return module if isinstance(module, nn.Module) else None


def _not_found(model: nn.Module) -> ValueError:
    candidates = [
        name for name, module in model.named_modules() if isinstance(module, nn.Embedding)
    ]
    listed = ", ".join(repr(name) for name in candidates[:5]) or "none"
    return ValueError(
        f"{type(model).__name__} does not say which module is its input embedding. Name it: "
        f"embedding='...' (its nn.Embedding modules: {listed})."
    )


def _refuse_bag(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.EmbeddingBag):
        raise ValueError(
            f"The embedding '{name}' ({type(module).__name__}) gives one vector for a whole text, "
            "so no token has one to which noise could be added. Train this model without noise."
        )
