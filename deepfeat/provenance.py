"""Which images and groups a network was trained on, by digests alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

#: Bytes of a digest.
DIGEST = 32

#: Layer of a fine-tuned network that has the probabilities of its classes.
SCORES = "scores"
_VOID = np.dtype((np.void, DIGEST))


@dataclass(frozen=True, eq=False)
class TrainedOn:
    """The images, and the patients or lesions, that a network has seen in training or in choosing when to stop.

    Attributes
    ----------
    images : ndarray of shape (n, 32), uint8
        SHA-256 of each image file, sorted and without repetition.
    groups : ndarray of shape (m, 32), uint8
        SHA-256 of each group's name in UTF-8, likewise: a list of patients does not travel with the weights.
    """

    images: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, images: Iterable[bytes], groups: Iterable[Any]) -> TrainedOn:
        """Describe images by the digests of their files, and groups by their names; missing groups are left out."""
        return cls(_sorted(images), _sorted(digest_group(group) for group in groups if not pd.isna(group)))

    def union(self, other: TrainedOn) -> TrainedOn:
        """Add what another network has seen, on which this one is built."""
        pairs = ((self.images, other.images), (self.groups, other.groups))
        return TrainedOn(*(_sorted(row.tobytes() for digests in pair for row in digests) for pair in pairs))

    def saw(self, digests: np.ndarray, groups: Sequence[Any]) -> np.ndarray:
        """Tell which images the network has seen, or others of the same group.

        Parameters
        ----------
        digests : ndarray of shape (n, 32), uint8
            SHA-256 of each image file.
        groups : sequence of n values
            Name of each image's group, or missing.

        Returns
        -------
        ndarray of shape (n,), bool
        """
        of_group = [bytes(DIGEST) if pd.isna(group) else digest_group(group) for group in groups]
        named = np.array([not pd.isna(group) for group in groups], bool)
        return np.asarray(_is_in(digests, self.images) | (named & _is_in(_stacked(of_group), self.groups)))

    def digest(self) -> str:
        """SHA-256 of both lists, in hexadecimal."""
        digest = hashlib.sha256(len(self.images).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.groups).data)
        return digest.hexdigest()


def digest_contents(ids: Iterable[str], digests: Iterable[bytes]) -> str:
    """SHA-256, in hexadecimal, of image ids with the digests of their files, whatever their order."""
    lines = sorted(f"{image_id!r} {digest.hex()}\n" for image_id, digest in zip(ids, digests, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def digest_group(group: Any) -> bytes:
    """SHA-256 of a group's name."""
    return hashlib.sha256(str(group).encode("utf-8", "surrogateescape")).digest()


def _sorted(digests: Iterable[bytes]) -> np.ndarray:
    return _stacked(sorted(set(digests)))


def _stacked(digests: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), DIGEST)


def _is_in(digests: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.isin(_as_one(digests), _as_one(known))


def _as_one(digests: np.ndarray) -> np.ndarray:
    """Each digest as one value."""
    return np.ascontiguousarray(digests).view(_VOID).reshape(len(digests))
