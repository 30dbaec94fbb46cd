"""Secret keys of the samplers, and the random streams that follow from them.

Amplification by sampling is a statement about an observer who does not know which samples a step used.
Whoever can rebuild the draws, from a seed in a config file or from a key in a checkpoint, faces no sampling
at all, and the honest eps is then the one without amplification (sample rate 1), typically tens of times
larger. Hence three rules:

* a key comes from the operating system (`new_key`), never from ``seed_everything``, whose seed is public by
  habit;
* a key lives in memory only: samplers refuse to be pickled, checkpoints carry the step position and nothing
  else;
* a resumed run draws a new key. Its batches are new, but identically distributed and independent of the past
  given the data, which is all that composition needs.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

from lightning_dp.errors import PrivacyConfigError

__all__ = ("MIN_KEY_BYTES", "following_key", "key_from_seed", "new_key", "stream")

MIN_KEY_BYTES = 16
_KEY_BYTES = 32


def new_key() -> bytes:
    """Return a fresh secret key of 256 bits from the operating system."""
    return secrets.token_bytes(_KEY_BYTES)


def key_from_seed(seed: int) -> bytes:
    """Return the key that belongs to ``seed``: reproducible, hence **not secret**; for tests only.

    A run sampled with it has no amplification against anyone who can guess the seed.

    Args:
        seed: any integer.

    Returns:
        32 bytes, a hash of the seed (so that near seeds give unrelated keys).
    """
    return hashlib.sha256(f"lightning-dp sampling test key {int(seed)}".encode()).digest()


def following_key(key: bytes) -> bytes:
    """Return the key of the next sampler of a run: a hash of this one's, which does not lead back to it.

    Two samplers of one run number their steps and passes each in its own way. Under one key, a pass of the second could have
    the number, and with it the draw, of a pass of the first, while composition counts both as drawn independently.
    """
    return hashlib.sha256(b"lightning-dp key of the next sampler " + check_key(key)).digest()


def check_key(key: bytes) -> bytes:
    """Return ``key`` if it is long enough to be secret.

    Raises:
        PrivacyConfigError: if it is shorter than 128 bits.
    """
    if len(key) < MIN_KEY_BYTES:
        raise PrivacyConfigError(
            f"A sampling key must be at least {MIN_KEY_BYTES} bytes: a short key can be guessed, and a known "
            "key voids amplification by sampling. Use `new_key()` (or `key_from_seed(seed)` in a test)."
        )
    return key


def stream(key: bytes, domain: int, index: int) -> np.random.Generator:
    """Return the random generator number ``index`` of ``domain`` under ``key``: a pure function of the three.

    Random access by index, instead of one long stream, is what lets a loader start at any step, and lets
    every rank (they share the key) agree on the draw without communicating.

    Args:
        key: the secret, at least 128 bits.
        domain: separates users of one key, so that no two of them ever see the same stream.
        index: step or pass, >= 0.
    """
    return np.random.Generator(np.random.PCG64DXSM(_HashedSeed(key, domain, index)))  # type: ignore[arg-type]


class _HashedSeed(ISeedSequence):
    """Seeds a generator from a hash of (key, domain, index).

    A cryptographic hash, so that draws that leak tell nothing of the key, and with it of the other draws, beyond what the
    generator's own state tells. (numpy's SeedSequence mixes well, but promises no secrecy, and takes ten times as long.)
    """

    def __init__(self, key: bytes, domain: int, index: int) -> None:
        # Lengths are fixed, or written in front: no two triples give one message.
        self._message = struct.pack("<QQQ", len(key), domain, index) + key

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        size = n_words * np.dtype(dtype).itemsize
        if size > hashlib.blake2b.MAX_DIGEST_SIZE:
            raise ValueError(f"at most {hashlib.blake2b.MAX_DIGEST_SIZE} bytes of seed, asked for {size}")
        digest = hashlib.blake2b(self._message, digest_size=size).digest()
        return np.frombuffer(digest, dtype=np.dtype(dtype).newbyteorder("<")).astype(dtype)
