"""Activation checkpointing repeats a pass with its own noise, whatever was forwarded since."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from reference import Document, Embedder, padded
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neft_plugins import NEFTConfig, NEFTHandle, attach_neft
from neft_plugins.model.recomputation import UnknownPassError

CONFIG = NEFTConfig(alpha=5.0, schedule="linear", tokens="response", seed=3)
STEPS = 3
D = 8

keep = partial(checkpoint, use_reentrant=False)


class Net(Embedder):
    """What is repeated contains the embedding, and does not see the labels."""

    def __init__(self, inside: bool = False, frozen: bool = False) -> None:
        super().__init__(D, zero=False)
        self.head = nn.Linear(D, 1)
        self.embed.requires_grad_(not frozen)
        self.inside = inside

    def block(self, input_ids: Tensor) -> Tensor:
        return self.head(self.embed(input_ids).tanh()).tanh()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        if self.inside:
            return keep(self.block, input_ids)
        return self.block(input_ids)


def batches(count: int) -> list[dict[str, Tensor]]:
    """Of different lengths, each of the same shape."""
    return [
        padded([Document(9 - i, 3), Document(2 + i, 1)], extra=i).arguments for i in range(count)
    ]


Call = Callable[[nn.Module, dict[str, Tensor]], Tensor]


def train(model: nn.Module, call: Call, together: int = 2, repeat: bool = False) -> list[Tensor]:
    """The gradients of some optimizer steps, of micro-batches forwarded before one backward pass.

    Args:
        model: The model.
        call: How it is called.
        together: How many micro-batches.
        repeat: Whether each is the same tokens.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = []
    given = batches(1) * together if repeat else batches(together)
    with attach_neft(model, CONFIG, total_steps=STEPS + 1) as neft:
        for step in range(STEPS):
            loss = torch.zeros(())
            for micro_step, batch in enumerate(given):
                neft.set_step(step, micro_step)
                # Twice: the passes of one micro-batch differ too.
                loss = loss + call(model, batch).square().mean() * (micro_step + 1)
                loss = loss + call(model, batch).mean()
            neft.set_step(step + 7)
            loss.backward()
            gradients += [p.grad.clone() for p in model.parameters() if p.grad is not None]
            optimizer.step()
            optimizer.zero_grad()
    return gradients


def plainly(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch)


def whole(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return keep(model, **batch)


def with_its_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return keep(lambda **given: (model(**given) * 2).sin(), **batch)


def expected(call: Call = plainly, **how) -> list[Tensor]:
    torch.manual_seed(0)
    return train(Net(frozen=how.pop("frozen", False)), call, **how)


def check(found: list[Tensor], wanted: list[Tensor], exact: bool = True) -> None:
    tolerance = {"rtol": 0, "atol": 0} if exact else {}
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def check_alike(
    run: Callable[[nn.Module, Call, NEFTHandle], None],
    calls: tuple[Call, ...] = (plainly, whole),
    kind: type[nn.Module] = Net,
) -> None:
    """A run has the same gradients whichever way the model is called."""
    gradients = []
    for call in calls:
        torch.manual_seed(0)
        model = kind()
        with attach_neft(model, CONFIG, total_steps=STEPS) as neft:
            run(model, call, neft)
        gradients.append([p.grad for p in model.parameters()])
    check(*gradients)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("repeat", [False, True], ids=["other tokens", "same tokens"])
@pytest.mark.parametrize("together", [1, 2, 4])
@pytest.mark.parametrize("place", ["whole", "inside", "both"])
def test_micro_batches_forwarded_before_one_backward_pass(place, together, repeat, frozen):
    torch.manual_seed(0)
    model = Net(inside=place != "whole", frozen=frozen)
    found = train(model, plainly if place == "inside" else whole, together, repeat)
    check(found, expected(together=together, repeat=repeat, frozen=frozen))


def test_what_is_repeated_may_be_more_than_the_model():
    torch.manual_seed(0)
    found = train(Net(), with_its_loss)
    check(found, expected(lambda model, batch: (model(**batch) * 2).sin()))


def test_what_the_model_was_not_told_is_that_of_its_own_pass():
    """Labels by set_batch, which says others by the time of the backward pass."""

    class Unlabelled(Net):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.block(input_ids)

    def run(model: nn.Module, call: Call, neft: NEFTHandle) -> None:
        losses = []
        for micro_step, batch in enumerate(batches(3)):
            neft.set_step(1, micro_step)
            neft.set_batch(labels=batch.pop("labels"))
            losses.append(call(model, batch).square().mean())
        sum(losses).backward()

    check_alike(run, kind=Unlabelled)


def test_a_repeated_pass_is_repeated_again():
    """retain_graph, and two backward passes in the order of the forward passes."""

    def run(model: nn.Module, call: Call, neft: NEFTHandle) -> None:
        neft.set_step(0)
        losses = [call(model, batch).sum() for batch in batches(3)]
        neft.set_step(1)
        for loss in (*losses, losses[0]):
            loss.backward(retain_graph=True)

    check_alike(run)


def test_repeated_passes_are_not_counted():
    """Not in the draws of the passes to come, and not in the metrics."""
    found = []
    for call in (plainly, whole):
        torch.manual_seed(0)
        model = Net()
        with attach_neft(model, CONFIG, total_steps=STEPS) as neft:
            neft.set_step(0)
            for batch in batches(3):
                loss = call(model, batch).sum()
                loss.backward()
            found.append((loss.item(), neft.metrics()))
    assert found[0] == found[1]


def test_a_pass_is_forgotten_with_its_graph():
    model = Net()
    with attach_neft(model, CONFIG, total_steps=STEPS) as neft:
        labels = []
        for step in range(3):
            neft.set_step(step)
            batch = padded([Document(5, 2)]).arguments
            labels.append(weakref.ref(batch["labels"]))
            whole(model, batch).sum().backward()
        del batch
        gc.collect()
        assert [each() is None for each in labels] == [True, True, False]
        neft.remove()
        assert labels[-1]() is None


def as_wide(call: Call) -> Call:
    """Every batch padded to the same width, for one graph."""

    def padded_call(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        more = 16 - batch["labels"].shape[1]
        batch = {key: nn.functional.pad(value, (0, more)) for key, value in batch.items()}
        batch["labels"][batch["attention_mask"] == 0] = -100
        return call(model, batch)

    return padded_call


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("repeat", [False, True], ids=["other tokens", "same tokens"])
def test_a_compiled_graph_that_is_run_again(repeat, backend):
    torch.manual_seed(0)
    model = Net()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    found = train(model, as_wide(lambda _, batch: keep(compiled, **batch)), 2, repeat)
    check(found, expected(as_wide(plainly), together=2, repeat=repeat), exact=False)


def test_each_call_of_a_compiled_graph_that_is_run_again():
    """Two calls in a graph, and two graphs with nothing between them."""

    class Pair(Net):
        def forward(self, input_ids: Tensor, other_ids: Tensor) -> Tensor:
            return self.block(input_ids) * self.block(other_ids)

    ids = torch.arange(3, 12).view(1, 9)
    gradients = []
    for how in ("plain", "repeated", "compiled"):
        torch.manual_seed(0)
        model = Pair()
        call = torch.compile(model, backend="aot_eager", fullgraph=True)
        with attach_neft(model, NEFTConfig(alpha=5.0)) as neft:
            neft.set_step(0)
            forward = {
                "plain": model,
                "repeated": partial(keep, model),
                "compiled": partial(keep, call),
            }[how]
            first, second = (forward(ids, ids) for _ in range(2))
            (first.sum() - 2 * second.sum()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for found in gradients[1:]:
        check(found, gradients[0], exact=False)


@pytest.mark.parametrize("repeat", [False, True], ids=["other tokens", "same tokens"])
def test_a_checkpoint_that_breaks_a_graph(repeat):
    """PyTorch takes no checkpoint into a graph whose forward pass has side effects, as hooks."""
    torch.manual_seed(0)
    model = Net(inside=True)
    compiled = torch.compile(model, backend="aot_eager")
    how = {"together": 1, "repeat": repeat}
    found = train(model, as_wide(lambda _, batch: compiled(**batch)), **how)
    check(found, expected(as_wide(plainly), **how), exact=False)


def test_a_reentrant_checkpoint_of_model_and_loss_has_the_gradients_of_the_noise():
    """Its first pass has no gradients and so no noise: the loss that is seen is clean."""

    def reentrant(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        start = torch.zeros((), requires_grad=True)
        return checkpoint(lambda x: model(**batch).mean() + x, start, use_reentrant=True)

    def run(model: nn.Module, call: Call, neft: NEFTHandle) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(STEPS):
            neft.set_step(step)
            call(model, batches(1)[0]).mean().backward()
            optimizer.step()

    check_alike(run, (plainly, reentrant))


def test_a_reentrant_layer_in_a_whole_model_that_is_repeated():
    """Then a reentrant checkpoint is where the backward pass is, and the noise is there already."""

    class Deep(Net):
        def block(self, input_ids: Tensor) -> Tensor:
            hidden = self.embed(input_ids)
            return self.head(checkpoint(torch.tanh, hidden, use_reentrant=True)).tanh()

    torch.manual_seed(0)
    check(train(Deep(), whole), expected())


@pytest.mark.parametrize("leaf", [True, False])
def test_a_loss_that_forwards_in_its_backward_pass_is_refused(leaf):
    """As GradCache: embeddings without gradients first, and again in a hook."""
    model = Net()
    other, batch = batches(2)
    with attach_neft(model, CONFIG, total_steps=STEPS) as neft:
        neft.set_step(0)
        noisy = model(**(batch if leaf else other))  # which is not what is repeated
        with torch.no_grad():
            cached = model(**batch)

        def forward_again(gradient: Tensor) -> None:
            with torch.enable_grad():
                model(**batch).sum().backward()

        loss = cached.requires_grad_().square().sum()
        if leaf:
            loss = loss.detach().requires_grad_()
        loss.register_hook(forward_again)
        with pytest.raises(UnknownPassError, match="CachedMultipleNegativesRankingLoss"):
            (loss + noisy.sum()).backward()


def test_a_compiled_model_that_is_called_in_a_backward_pass_is_refused():
    model, batch = Net(), batches(1)[0]
    compiled = torch.compile(model, backend="aot_eager")
    with attach_neft(model, CONFIG, total_steps=STEPS) as neft:
        neft.set_step(0)
        compiled(**batch).sum().backward()
        with torch.no_grad():
            cached = compiled(**batch)
        loss = cached.requires_grad_().square().sum().detach().requires_grad_()

        def forward_again(gradient: Tensor) -> None:
            with torch.enable_grad():
                compiled(**batch).sum().backward()

        loss.register_hook(forward_again)
        with pytest.raises(UnknownPassError, match="A compiled model is called with gradients"):
            loss.backward()


def test_an_output_of_any_kind_keeps_its_pass():
    @dataclass(slots=True)
    class Output:
        loss: Tensor
        name: str = "net"

    class Wrapped(Net):
        def forward(self, **batch: Tensor) -> Output:
            return Output(super().forward(**batch))

    def run(model: nn.Module, call: Call, neft: NEFTHandle) -> None:
        losses = []
        for micro_step, batch in enumerate(batches(3)):
            neft.set_step(0, micro_step)
            losses.append(call(model, batch).square().mean())
        sum(losses).backward()

    check_alike(
        run,
        (
            lambda model, batch: model(**batch).loss,
            lambda model, batch: keep(lambda **given: model(**given).loss, **batch),
        ),
        Wrapped,
    )


@pytest.mark.parametrize("training", [True, False])
def test_a_pass_is_repeated_as_it_was_where_the_mode_has_changed_since(training):
    def run(model: nn.Module, call: Call, neft: NEFTHandle) -> None:
        neft.set_step(0)
        call(model, batches(2)[1])
        model.train(training)
        loss = call(model, batches(1)[0]).sum()
        model.train(not training)
        loss.backward()

    check_alike(run)
