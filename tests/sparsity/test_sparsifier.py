"""Sparsifier in a plain loop: theta_0 + M * phi, to the bit and to the entry."""

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import MODEL, run_python, tiny_llama
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from neft_plugins import Sparsifier, SparsityConfig
from neft_plugins.sparsity.config import SparsityConfigError

CONFIG = SparsityConfig(0.6, start=2, ramp_end=9, stop=15, every=4, window=3, exchange=0.5)
STATIC = SparsityConfig(0.6, ramp_end=9, stop=15, dynamic=False)
STEPS = 20
LORA = LoraConfig(target_modules="all-linear", r=4, lora_alpha=8)


class Reference:
    """One matrix, entry by entry, as the equations have it."""

    def __init__(self, start: Tensor, config: SparsityConfig) -> None:
        self.start, self.config = start.flatten().tolist(), config
        self.kept = set(range(len(self.start)))
        self.changes: list[list[float]] = []  # since the last update

    def step(self, t: int, proposed: Tensor) -> list[float]:
        values, config = proposed.flatten().tolist(), self.config
        n, t0, t1, stop = len(values), config.start, config.ramp_end, config.stop
        change = [value - start for value, start in zip(values, self.start, strict=True)]
        self.changes.append(change)
        stay = self.kept
        if config.dynamic and (t == t1 or (t0 <= t < stop and (t - t0) % config.every == 0)):
            rho = 1 - config.sparsity
            if t < t1:
                rho += (1 - rho) * (1 - (t - t0) / (t1 - t0)) ** 3
            k = math.floor(rho * n + 0.5)
            f = config.exchange / 2 * (1 + math.cos(math.pi * t / stop)) if t < stop else 0
            masked = set(range(n)) - self.kept
            grown = min(math.floor(f * k), len(masked))
            window = self.changes[-config.window :]
            sums = [sum(each[i] for each in window) for i in range(n)]
            stay = self.first(self.kept, change, k - grown)
            self.kept, self.changes = stay | self.first(masked, sums, grown), []
        elif not config.dynamic and t == t1:
            k = math.floor((1 - config.sparsity) * n + 0.5)
            stay = self.kept = self.first(self.kept, change, k)
        return [values[i] if i in stay else self.start[i] for i in range(n)]

    @staticmethod
    def first(among: set[int], size: list[float], count: int) -> set[int]:
        return set(sorted(among, key=lambda i: (-abs(size[i]), i))[:count])


@pytest.mark.parametrize("config", [CONFIG, STATIC], ids=["dynamic", "static"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first", ["random", "zero"])
def test_every_step_is_the_equations(config, dtype, first):
    model = nn.Linear(7, 5, bias=False, dtype=dtype)
    if first == "zero":
        nn.init.zeros_(model.weight)
    reference = Reference(model.weight.detach(), config)
    sparsifier = Sparsifier(model, config, STEPS)
    for t in range(1, STEPS + 1):
        # In eighths, so that sums are exact and many changes are equal.
        proposed = (model.weight.detach() * 64).round() / 64 + torch.randint(-3, 4, (5, 7)) / 8
        with torch.no_grad():
            model.weight.copy_(proposed)
        wanted = reference.step(t, model.weight.detach())
        sparsifier.step()
        assert model.weight.flatten().tolist() == wanted
        kept = sparsifier.metrics()["neft/density"] * 35
        assert kept == pytest.approx(len(reference.kept), abs=1e-9)
    assert len(reference.kept) == 14


def test_a_proposed_change_that_is_not_kept_is_undone_to_the_bit():
    """Also where a step is lost in rounding, and for a zero that the optimizer made negative."""
    model = nn.Linear(64, 8, bias=False)
    with torch.no_grad():
        model.weight[0] = 0
    before = model.weight.detach().clone()
    sparsifier = Sparsifier(model, SparsityConfig(0.5, ramp_end=1, stop=1), 2)
    with torch.no_grad():
        model.weight.mul_(1 + 1e-7).neg_()
    sparsifier.step()
    same = model.weight.view(torch.int32) == before.view(torch.int32)
    assert same.sum() == 256


def train(
    model: Any,
    config: SparsityConfig,
    steps: int = STEPS,
    resume: dict[str, Any] | None = None,
    at: Callable[[int, Any, Any, Sparsifier], None] | None = None,
) -> list[dict[str, float]]:
    """A plain loop with AdamW, whose weight decay moves masked entries too."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    sparsifier = Sparsifier(model, config, STEPS)
    if resume is not None:
        optimizer.load_state_dict(resume["optimizer"])
        sparsifier.load_state_dict(resume["sparsity"])
    metrics = []
    for t in range(sparsifier.steps, steps):
        torch.manual_seed(t)
        ids = torch.randint(3, 64, (4, 9))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        sparsifier.step()
        optimizer.zero_grad()
        metrics.append(sparsifier.metrics())
        if at is not None:
            at(t + 1, model, optimizer, sparsifier)
    return metrics


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def small(kind: str) -> Any:
    torch.manual_seed(0)
    model = tiny_llama()
    return get_peft_model(model, LORA) if kind == "lora" else model


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_training_changes_as_much_of_each_matrix_as_it_may(kind):
    model = small(kind)
    before = weights(model)
    metrics = train(model, CONFIG)
    for name, value in weights(model).items():
        changed = (value != before[name]).sum().item()
        if before[name].dim() != 2 or "embed_tokens" in name or "lm_head" in name:
            assert kind == "lora" or changed > value.numel() / 2
        elif kind == "full" or "lora" in name:
            assert changed == math.floor(0.4 * value.numel() + 0.5)
        else:
            assert changed == 0
    assert metrics[0] == {"neft/density": 1, "neft/exchanged": 0, "neft/update_kept": 1}
    assert metrics[-1]["neft/density"] == pytest.approx(0.4, abs=0.01)
    assert 0.3 < metrics[-1]["neft/update_kept"] < 0.9
    assert metrics[9]["neft/exchanged"] == pytest.approx(
        0.25 * (1 + math.cos(math.pi * 10 / 15)), abs=0.02
    )


def test_the_energy_that_is_kept_is_that_of_the_proposed_steps():
    """Measured where it is known: steps of ones, of which the mask lets some through."""
    model = nn.Linear(310, 200, bias=False)
    sparsifier = Sparsifier(model, SparsityConfig(0.75, ramp_end=1, stop=1), 9)
    for step in range(1, 4):
        with torch.no_grad():
            model.weight += step * torch.rand_like(model.weight).sign()
        sparsifier.step()
        assert sparsifier.metrics()["neft/update_kept"] == pytest.approx(0.25, abs=0.02)


def test_the_energy_is_summed_from_log_to_log():
    model = nn.Linear(31, 31, bias=False)  # one entry of a row is measured
    nn.init.zeros_(model.weight)
    sparsifier = Sparsifier(model, SparsityConfig(0.5, ramp_end=1, stop=1), 9)
    for step in (1.0, 3.0):
        with torch.no_grad():
            model.weight[:16] += 2 * step  # which the mask keeps
            model.weight[16:] += step
        sparsifier.step()
    kept, masked = 16 * 4 * (1 + 9), 15 * (1 + 9)
    wanted = kept / (kept + masked)
    assert sparsifier.metrics()["neft/update_kept"] == pytest.approx(wanted, rel=0.02)
    assert sparsifier.metrics()["neft/update_kept"] == 1  # nothing since


def test_merging_an_adapter_keeps_exactly_the_masked_change():
    model = small("lora")
    train(model, CONFIG)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert (b == 0).float().mean() == 0.6 - 0.2 / b.numel()  # theta_0 of B is 0
    wanted = layer.base_layer.weight + 2 * (b @ a)
    merged = model.merge_and_unload().model.layers[0].mlp.up_proj.weight
    assert torch.equal(merged, wanted)


def test_a_4_bit_base_is_not_touched():
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    base = AutoModelForCausalLM.from_pretrained(
        MODEL, quantization_config=four_bits, device_map=None, dtype=torch.float32
    )
    model = get_peft_model(base, LORA).train()
    before = weights(model)
    train(model, SparsityConfig(start=1, ramp_end=2, stop=3, every=1, window=1), steps=4)
    for name, value in weights(model).items():
        changed = (value != before[name]).float().mean().item()
        assert changed == pytest.approx(0.5 if "lora" in name else 0, abs=1e-3)


def test_dense_holds_and_touches_nothing():
    model, other = small("full"), small("full")
    metrics = train(model, SparsityConfig(0))
    for t in range(STEPS):  # the same loop without
        if t == 0:
            optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=0.1)
        torch.manual_seed(t)
        ids = torch.randint(3, 64, (4, 9))
        other(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    theirs = weights(other)
    assert all(torch.equal(value, theirs[name]) for name, value in weights(model).items())
    assert metrics[-1] == {"neft/density": 1, "neft/exchanged": 0, "neft/update_kept": 1}
    assert Sparsifier(model, SparsityConfig(0), 9).state_dict()["matrices"] == {}


def test_auto_is_by_what_is_trained():
    assert Sparsifier(small("lora"), SparsityConfig(), 9).config.sparsity == 0.5
    assert Sparsifier(small("full"), SparsityConfig(), 9).config.sparsity == 0.95


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("config", [CONFIG, STATIC], ids=["dynamic", "static"])
def test_resumed_is_bit_identical_wherever_it_was_cut(kind, config):
    """Before, in and after a window; before the start; after the last update."""
    states = {}

    def keep(t: int, model: Any, optimizer: Any, sparsifier: Sparsifier) -> None:
        state = {"optimizer": optimizer.state_dict(), "sparsity": sparsifier.state_dict()}
        states[t] = through_a_file({**state, "weights": weights(model)})

    whole = small(kind)
    metrics = train(whole, config, at=keep)
    in_window = [t for t in states if any(m["sum"] is not None for m in matrices_of(states[t]))]
    assert in_window == ([7, 8, 12, 13] if config.dynamic else [])
    for t, state in states.items():
        model = small(kind)
        model.load_state_dict(state["weights"], strict=False)
        assert train(model, config, resume=state) == metrics[t:], t
        theirs = weights(whole)
        assert all(torch.equal(value, theirs[name]) for name, value in weights(model).items()), t


def matrices_of(state: dict[str, Any]) -> list[dict[str, Any]]:
    return list(state["sparsity"]["matrices"].values())


def test_a_state_holds_only_what_the_weights_do_not_say():
    model = nn.Linear(40, 20, bias=False)
    sparsifier = Sparsifier(model, CONFIG, STEPS)
    sizes = []
    for _ in range(STEPS):
        with torch.no_grad():
            model.weight += torch.randn_like(model.weight)
        sparsifier.step()
        (matrix,) = sparsifier.state_dict()["matrices"].values()
        start, mask = matrix["start"], matrix["mask"]
        sizes.append((None if start is None else len(start), None if mask is None else len(mask)))
    assert sizes[0] == (800, None)
    assert sizes[9] == (320, 100)
    assert sizes[-1] == (None, 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": SparsityConfig(0.5)}, "another SparsityConfig: sparsity 0.6 -> 0.5, start 2"),
        ({"model": nn.Linear(7, 6)}, "'weight' has 35 entries there, and 42 here"),
        ({"model": nn.Sequential(nn.Linear(7, 5))}, "'weight' has 35 entries there, and 0 here"),
        ({"model": nn.Linear(7, 5)}, "'weight' has other weights than when"),
        ({"state": {"version": 2}}, "is of version 2, and this neft-plugins reads version 1"),
        ({"state": {"rank": 1, "ranks": 2}}, "is of rank 1 of 2, and this is rank 0 of 1"),
    ],
)
def test_a_state_of_another_run_is_refused(change, message):
    model = nn.Linear(7, 5)
    state = Sparsifier(model, CONFIG, STEPS).state_dict() | change.get("state", {})
    given = {"model": model, "config": CONFIG} | change
    sparsifier = Sparsifier(given["model"], given["config"], STEPS)
    with pytest.raises(ValueError, match=message):
        sparsifier.load_state_dict(state)


def test_a_state_of_a_training_of_another_length_is_refused_where_that_matters():
    model = nn.Linear(7, 5)
    state = Sparsifier(model, SparsityConfig(0.5), 100).state_dict()
    with pytest.raises(SparsityConfigError, match="5, 50, 75 -> 10, 100, 150"):
        Sparsifier(model, SparsityConfig(0.5), 200).load_state_dict(state)
    state = Sparsifier(model, CONFIG, 100).state_dict()
    Sparsifier(model, CONFIG, 200).load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.5, 10), TypeError, "`config` must be a SparsityConfig; got 0.5"),
        ((CONFIG, None), ValueError, "`total_steps` must be an int >= 1; got None"),
        ((CONFIG, 8), SparsityConfigError, "`ramp_end` is step 9, and training ends at step 8"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Sparsifier(nn.Linear(2, 2), *arguments)


def test_a_matrix_whose_values_lie_in_another_order():
    model = nn.Linear(6, 4, bias=False)
    model.weight = nn.Parameter(torch.randn(6, 4).t())
    before = model.weight.detach().clone()
    sparsifier = Sparsifier(model, SparsityConfig(0.5, ramp_end=1, stop=1), 1)
    with torch.no_grad():
        model.weight += torch.arange(24.0).view(4, 6)
    sparsifier.step()
    assert torch.equal((model.weight == before).flatten(), torch.arange(24) < 12)


def test_of_a_matrix_that_begins_as_zeros_no_copy_is_held():
    sparsifier = Sparsifier(small("lora"), CONFIG, STEPS)
    at_zero = {
        name: each["starts_at_zero"] for name, each in sparsifier.state_dict()["matrices"].items()
    }
    assert {name for name, zero in at_zero.items() if zero} == {n for n in at_zero if "lora_B" in n}
    held = [matrix for matrix in sparsifier._matrices if matrix._start is None]
    assert len(held) == 14


def test_a_step_that_was_skipped_changes_nothing():
    """As one that overflows in fp16; it is counted."""
    model = nn.Linear(7, 5)
    sparsifier = Sparsifier(model, CONFIG, STEPS)
    for _ in range(6):  # the last of which is an update
        with torch.no_grad():
            model.weight += torch.randn_like(model.weight)
        sparsifier.step()
    before = model.weight.detach().clone()
    sparsifier.step()
    assert torch.equal(model.weight, before)
    assert sparsifier.steps == 7


def test_it_needs_torch_only():
    hosts = ("transformers", "trl", "axolotl", "peft", "accelerate", "datasets", "deepspeed")
    code = f"""
import sys, torch
from neft_plugins import Sparsifier, SparsityConfig

model = torch.nn.Linear(4, 4)
sparsifier = Sparsifier(model, SparsityConfig(0.5), total_steps=10)
sparsifier.step()
print([host for host in {hosts!r} if host in sys.modules])
"""
    assert run_python("-c", code).strip() == "[]"


def test_metrics_stay_numbers_where_the_weights_are_none():
    model = nn.Linear(8, 8)
    sparsifier = Sparsifier(model, SparsityConfig(0.5, every=2, window=1), total_steps=10)
    for _ in range(4):
        with torch.no_grad():
            model.weight.fill_(float("nan"))
        sparsifier.step()
    assert all(math.isfinite(value) for value in sparsifier.metrics().values())
