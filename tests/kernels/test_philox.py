"""Philox against the known-answer vectors published with Random123 (examples/kat_vectors)."""

import pytest
import torch

from poh_ext.reference.philox import below, philox4x32, words

ONES, PI_COUNTER, PI_KEY = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (PI_COUNTER, PI_KEY, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_known_answers(counter, key, expected):
    got = philox4x32(tuple(torch.tensor(c) for c in counter), key)
    assert tuple(got.tolist()) == expected


def test_words_are_numbered_by_block_stream_and_index():
    index = torch.tensor([0, 5, 2**40 + 7])
    got = words(2**35 + 9, 1, index, 10)
    for row, i in enumerate(index.tolist()):
        for word in range(10):
            counter = tuple(torch.tensor(c) for c in (word // 4, 1, i & ONES, i >> 32))
            assert got[row, word] == philox4x32(counter, (9, 8))[word % 4]
    assert torch.equal(words(2**35 + 9, 1, index, 2, first_block=2), got[:, 8:])


def test_below_covers_its_range_evenly():
    draws = below(words(3, 0, torch.arange(2000), 30), 6)
    counts = torch.bincount(draws.flatten(), minlength=6).double()
    assert counts.numel() == 6
    assert float(((counts - 10000) ** 2 / 10000).sum()) < 20.5  # chi-square, 5 degrees of freedom, p = 0.001
