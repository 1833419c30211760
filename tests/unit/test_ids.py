"""Ids from an injected source of randomness."""

from __future__ import annotations

import uuid
from random import Random

import pytest

from broker_common.core.ids import new_id


@pytest.mark.parametrize("bits", [0, 2**128 - 1, *(Random(seed).getrandbits(128) for seed in range(50))])
def test_an_id_is_the_uuid_of_its_random_bits(bits: int) -> None:
    class Fixed(Random):
        def getrandbits(self, k: int, /) -> int:
            assert k == 128
            return bits

    assert new_id(Fixed()) == str(uuid.UUID(int=bits, version=4))
