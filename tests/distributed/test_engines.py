"""Under every engine the noise is that of one process, and nothing else of training changes."""

import re
from importlib.util import find_spec

import engines
import pytest
import torch
from checks import (
    NOISE,
    PACKINGS,
    check_is_the_equation,
    check_is_the_noise_of,
    check_replicas_differ,
)
from helpers import REPO

pytestmark = pytest.mark.slow

ADAPTERS = ("full", "lora", "qlora")
# The whole table is run on the newest versions; on axolotl's pins, each engine once.
TABLE = [(e, a, p) for e in engines.ENGINES for a in ADAPTERS for p in sorted(PACKINGS)]
COMPARED = list(engines.ENGINES)
if find_spec("axolotl"):
    TABLE = [cell for index, cell in enumerate(TABLE) if index % 7 == 0]
    COMPARED = ["DDP", "FSDP2", "ZeRO-3"]


def needs(engine: str) -> None:
    """Skip without the engine's package."""
    if engine.startswith("ZeRO"):
        pytest.importorskip("deepspeed")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Runs of one process that accumulates as many micro-batches as two ranks have."""
    found = {}

    def run(adapter: str, packing: str, accumulation: int = 2) -> dict:
        key = adapter, packing, accumulation
        if key not in found:
            keys = NOISE | PACKINGS[packing] | {"gradient_accumulation_steps": accumulation}
            folder = tmp_path_factory.mktemp("alone")
            (found[key],) = engines.train(folder, keys=keys, adapter=adapter)
        return found[key]

    return run


@pytest.mark.parametrize(("engine", "adapter", "packing"), TABLE)
def test_the_noise_is_exact(engine, adapter, packing, alone, tmp_path):
    needs(engine)
    one = alone(adapter, packing)
    ranks = engines.train(
        tmp_path, engines.ENGINES[engine], NOISE | PACKINGS[packing], adapter=adapter
    )
    check_is_the_noise_of(one, ranks)
    check_replicas_differ(ranks)
    for rank in ranks:
        # The noise is seen as a difference of embeddings, which QLoRA has in bfloat16.
        check_is_the_equation(rank, rounding=4e-3 if adapter == "qlora" else 1e-6)
        assert rank["sharded"] == engine.startswith(("FSDP2", "ZeRO-3"))
    losses = [log["loss"] for log in one["log"]]
    assert [log["loss"] for log in ranks[0]["log"]] == pytest.approx(losses, rel=1e-2)


@pytest.mark.parametrize("engine", COMPARED)
def test_only_the_embeddings_output_is_touched(engine, tmp_path):
    """No collective more, no draw from a generator of the run's, no hook left."""
    needs(engine)
    engine = engines.ENGINES[engine]
    clean = engines.train(tmp_path / "clean", engine, PACKINGS["padded"], profile=True)
    noisy = engines.train(tmp_path / "noisy", engine, NOISE | PACKINGS["padded"], profile=True)
    for without, having in zip(clean, noisy, strict=True):
        assert any(each.noisy for each in having["passes"])
        assert not any(each.noisy for each in without["passes"])
        assert having["collectives"] == without["collectives"] != {}
        assert having["left"] == without["left"]
        assert having["draws"] == without["draws"]


def test_a_global_batch_has_the_same_noise_however_ranks_share_it(alone, tmp_path):
    """4 ranks x 1, 2 ranks x 2 and 1 rank x 4 accumulation steps are the same run."""
    one = alone("full", "padded", accumulation=4)
    losses = [log["loss"] for log in one["log"]]
    for world_size in (2, 4):
        ranks = engines.train(
            tmp_path / str(world_size),
            engines.ENGINES["DDP"] | {"num_processes": world_size},
            NOISE | PACKINGS["padded"] | {"gradient_accumulation_steps": 4 // world_size},
            world_size=world_size,
        )
        check_is_the_noise_of(one, ranks)
        assert [log["loss"] for log in ranks[0]["log"]] == pytest.approx(losses, rel=1e-5)
        for name, weight in one["weights"].items():
            torch.testing.assert_close(ranks[0]["weights"][name], weight, rtol=0, atol=1e-4)


def test_the_page_names_the_cells_that_are_run():
    page = (REPO / "docs" / "distributed.md").read_text()
    (sentence,) = re.findall(r"^Engines: (.*?)\.$", page, re.MULTILINE | re.DOTALL)
    assert " ".join(sentence.split()).split("; ") == list(engines.ENGINES)
    assert "full, LoRA and QLoRA, each with padded and with packed rows" in " ".join(page.split())
    assert (ADAPTERS, sorted(PACKINGS)) == (("full", "lora", "qlora"), ["packed", "padded"])
