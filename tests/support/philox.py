"""The kernel's draws, written plainly: Philox-4x32-10 (Salmon et al. 2011), in numpy.

A row of d coordinates is drawn in groups of eight, of which the last may not be whole; groups are
counted through all rows. The number of a group is the lower half of its counter.
"""

import numpy as np
import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
LOW = 2**32 - 1


def philox(key: tuple[int, int], counters: np.ndarray) -> np.ndarray:
    """(N, 4) words of 32 bits -> as many random ones. All are held in uint64."""
    a, b, c, d = counters.astype(np.uint64).T
    low, high = np.uint64(LOW), np.uint64(32)
    for turn in range(10):
        first, second = (np.uint64((k + turn * w) & LOW) for k, w in zip(key, WEYL, strict=True))
        of_a, of_c = a * np.uint64(MULTIPLIERS[0]), c * np.uint64(MULTIPLIERS[1])
        a, b, c, d = (
            (of_c >> high) ^ b ^ first,
            of_c & low,
            (of_a >> high) ^ d ^ second,
            of_a & low,
        )
    return np.stack([a, b, c, d], axis=1)


def groups(
    distribution: str, seed: int, numbers: np.ndarray, pass_index: int = 0, call: int = 0
) -> np.ndarray:
    """(N, 8): what the groups of these numbers draw."""

    def words(counters: np.ndarray) -> np.ndarray:
        low, high = counters & np.uint64(LOW), counters >> np.uint64(32)
        upper = [np.full_like(low, each) for each in (pass_index, call)]
        return philox((seed & LOW, seed >> 32), np.stack([low, high, *upper], axis=1))

    numbers = numbers.astype(np.uint64)
    if distribution == "uniform":  # the low half of each word, then its high half
        halves = words(numbers).astype("<u4").view("<u2").astype(np.float32)
        return (halves - 2**15 + 0.5) / 2**15
    if distribution == "rademacher":  # 128 bits of a counter, for 16 groups
        octets = words(numbers // 16).astype("<u4").view(np.uint8)
        mine = octets[np.arange(len(numbers)), (numbers % 16).astype(int)]
        bits = np.unpackbits(mine[:, None], axis=1, bitorder="little")
        return np.where(bits == 1, -1, 1).astype(np.float32) * np.float32(3**-0.5)
    drawn = np.concatenate([words(2 * numbers), words(2 * numbers + 1)], axis=1)
    pairs = _box_muller(drawn[:, 0::2], drawn[:, 1::2])
    return np.stack(pairs, axis=2).reshape(-1, 8)


def _box_muller(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Words -> pairs of N(0, 1/3), in float64 from the words as float32 holds them."""
    radius = np.sqrt(-2 / 3 * np.log((a.astype(np.float32) + np.float32(0.5)) * 2.0**-32))
    angle = (b << np.uint64(2)).astype(np.uint32).astype(np.int32) * (np.pi / 2**33)
    cosine, sine = np.cos(angle), np.sin(angle)
    cosine = np.where(b >> np.uint64(31), -cosine, cosine)
    turned = (b >> np.uint64(30)) & np.uint64(1) == 1
    first, second = np.where(turned, sine, cosine), np.where(turned, cosine, sine)
    return radius * first, radius * second


def draws(
    distribution: str, seed: int, shape: tuple[int, int], pass_index: int = 0, call: int = 0
) -> Tensor:
    """(N, d) float32: eps of N tokens."""
    rows, d = shape
    each = -(-d // 8)
    drawn = groups(distribution, seed, np.arange(rows * each), pass_index, call)
    return torch.from_numpy(drawn.reshape(rows, 8 * each)[:, :d].astype(np.float32))
