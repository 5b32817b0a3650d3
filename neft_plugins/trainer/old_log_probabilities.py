"""Which trainers compare noisy log-probabilities with clean ones, and so cannot have noise."""

from typing import Any

ALWAYS = ("RLOOConfig", "PPOConfig", "AsyncGRPOConfig")
"""TRL's arguments of trainers that have old log-probabilities whatever is set."""

NEVER = ("SSDConfig",)
"""TRL's arguments of trainers that have none, although they look like GRPO's."""


def check_old_log_probabilities(args: Any) -> None:
    """Refuse a run that compares log-probabilities of noisy passes with those of clean ones.

    The noise is in the passes that are trained on. The old log-probabilities of an online trainer
    come from a pass without gradients, or from vLLM, so the ratio of the two would be that of the
    noise. A trainer whose samples are of the same optimizer step needs no old ones.

    Args:
        args: The trainer's arguments.

    Raises:
        ValueError: With what is compared, and the way out.
    """
    found = _find_comparison(args)
    if found is not None:
        settings, way_out = found
        raise ValueError(
            f"Noise does not go with {settings}: the trainer would compare log-probabilities of "
            "the training pass, which has noise, with older ones of a pass that has none, and "
            f"their ratio is not 1 even where the policy did not change. {way_out}, or train "
            "without noise."
        )


def _find_comparison(args: Any) -> tuple[str, str] | None:
    """The settings that make the comparison and what to do about them; None without one."""
    for cls in type(args).__mro__:
        if cls.__module__.startswith("trl."):  # Axolotl has an AsyncGRPOConfig too
            if cls.__name__ in ALWAYS:
                return cls.__name__, "Use GRPOTrainer with its defaults"
            if cls.__name__ in NEVER:
                return None
    with_vllm = getattr(args, "use_vllm", False)
    if with_vllm and getattr(args, "vllm_importance_sampling_correction", False):
        return (
            "`use_vllm` and `vllm_importance_sampling_correction`",
            "Set `vllm_importance_sampling_correction: false` or `use_vllm: false`",
        )
    threshold = getattr(args, "off_policy_mask_threshold", None)
    if with_vllm and threshold is not None:
        return (
            f"`use_vllm` and `off_policy_mask_threshold: {threshold}`",
            "Leave `off_policy_mask_threshold` unset",
        )
    steps = getattr(args, "steps_per_generation", None)
    iterations = getattr(args, "num_iterations", None)
    if steps and iterations and args.gradient_accumulation_steps % (steps * iterations):
        return (
            f"`steps_per_generation: {steps}` and `num_iterations: {iterations}` at "
            f"`gradient_accumulation_steps: {args.gradient_accumulation_steps}`",
            f"Make `gradient_accumulation_steps` a multiple of their product ({steps * iterations})"
            ", as it is where neither they nor `generation_batch_size` are set",
        )
    return None
