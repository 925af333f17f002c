"""Which anchors are right, by the vote of those around them.

A network is wrong over whole surfaces, and alike over each; wrong anchors are so singly. So it says little of an anchor
how far off the fit it is, and much whether those beside it are off by as much.
"""

from __future__ import annotations

import cv2
import numpy as np

from marigold_ros.compiled import FloatRows, Floats, compiled

# The image's cells across and down, of which the parts below are made.
CELLS = (61, 46)
# Anchors agree if their residuals, in ln, lie in neighbouring bins of this width; beyond the outermost they are wrong.
_BIN_LN, _BINS = 0.15, 17
FARTHEST_LN = 0.5 * _BINS * _BIN_LN
# One more at either end, and their sum.
_ENTRIES = _BINS + 3
# Parts of the image in which anchors vote, in cells, and as how many votes what the larger part says counts.
_PARTS, _INHERITED = (8, 4, 2), 6.0
# Before any vote, residuals are taken to be normal with so many of the fit's own sigmas, but at least the other.
_PRIOR_SIGMAS, PRIOR_LN = 2.0, 0.15
# As many as agree anywhere in the image, up to this share, and so many standard deviations of that number, agree by
# chance. Beyond those, an anchor is wrong if this share of the others agree with it, or fewer, and right from the
# second share on.
_MOST_BY_CHANCE, _BY_CHANCE = 0.4, 1.5
_WRONG, _RIGHT = 0.1, 0.3


def places_of(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(2, N) float32: where pixels (N, 2) of an image (H, W) lie, in cells; whole numbers are the cells' centres.

    As `cv2.resize` has them; what lies beyond the outermost centres is put on them.
    """
    places = np.empty((2, len(pixels)), np.float32)
    for axis in (0, 1):
        places[axis] = (pixels[:, axis] + 0.5) * (CELLS[axis] / shape[1 - axis]) - 0.5
    return np.clip(places, 0, np.array(CELLS, np.float32)[:, None] - 1, out=places)


def trust_of(places: np.ndarray, residual: np.ndarray, sigma: float) -> np.ndarray:
    """(N,) float32 in [0, 1], by the share of the anchors around that have about the same residual.

    places: (2, N), see `places_of`. residual: (N,) float32 ln of measured over fitted depth, nearer to 0 than
    `FARTHEST_LN`. sigma: the fit's relative error at anchors that are not wrong.

    A network is wrong over whole surfaces, so right anchors agree with those beside them, however far they are from the
    fit; wrong ones agree with few, and with no more here than anywhere in the image. Asked in ever smaller parts of the
    image; where a part has few anchors, what the larger one said remains. All have one vote, for many wrong ones make
    others seem hidden.
    """
    deviation = np.float32(max(PRIOR_LN, _PRIOR_SIGMAS * sigma))
    share = np.exp(np.float32(-0.5) * np.square(residual / deviation))
    return _voted(np.ascontiguousarray(places, np.float32), np.ascontiguousarray(residual, np.float32), share)


def _voted_by_numpy(places: np.ndarray, residual: np.ndarray, share: np.ndarray) -> np.ndarray:
    """`trust_of` by what each anchor has before any vote, (N,) float32 in [0, 1]."""
    # A bin more at either end, so that all have neighbours.
    bins = _BINS + 2
    bin_ = np.minimum((residual * np.float32(1 / _BIN_LN) + np.float32(0.5 * bins)).astype(np.intp), _BINS)
    everywhere = np.bincount(bin_, minlength=bins).astype(np.float32)
    everywhere = everywhere[bin_ - 1] + everywhere[bin_] + everywhere[bin_ + 1] - np.float32(1)
    everywhere = np.minimum(everywhere / np.float32(max(len(bin_) - 1, 1)), np.float32(_MOST_BY_CHANCE))
    by_chance = everywhere * (np.float32(1) - share)
    for size in _PARTS:
        rows, columns = -(-CELLS[1] // size), -(-CELLS[0] // size)
        column, row = (places * np.float32(1 / size)).astype(np.intp)
        place = (row * columns + column) * bins + bin_
        votes = np.bincount(place, minlength=rows * columns * bins).astype(np.float32).reshape(rows, columns, bins)
        votes = cv2.boxFilter(votes, cv2.CV_32F, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
        others = votes.sum(axis=2).ravel()[place // bins] - np.float32(1)
        votes = votes.ravel()
        agree = votes[place - 1] + votes[place] + votes[place + 1] - np.float32(1)
        chance = by_chance * others
        agree = np.maximum(agree - chance - np.float32(_BY_CHANCE) * np.sqrt(chance), np.float32(0))
        share = (agree + np.float32(_INHERITED) * share) / (others + np.float32(_INHERITED))
    return np.clip((share - np.float32(_WRONG)) * np.float32(1 / (_RIGHT - _WRONG)), np.float32(0), np.float32(1))


@compiled(_voted_by_numpy)
def _voted(places: FloatRows, residual: Floats, share: Floats) -> np.ndarray:
    count = len(residual)
    share, by_chance, bin_ = share.copy(), np.empty(count, np.float32), np.empty(count, np.int64)
    everywhere = np.zeros(_BINS + 2, np.int64)
    for i in range(count):
        bin_[i] = min(int(residual[i] * np.float32(1 / _BIN_LN) + np.float32(0.5 * (_BINS + 2))), _BINS)
        everywhere[bin_[i]] += 1
    for i in range(count):
        agree = everywhere[bin_[i] - 1] + everywhere[bin_[i]] + everywhere[bin_[i] + 1] - 1
        most = min(np.float32(agree) / np.float32(max(count - 1, 1)), np.float32(_MOST_BY_CHANCE))
        by_chance[i] = most * (np.float32(1) - share[i])
    for size in _PARTS:
        rows, columns = -(-CELLS[1] // size), -(-CELLS[0] // size)
        # Parts beyond the border are empty; the last entry of a part is the sum of its bins.
        votes = np.zeros((rows + 2, (columns + 2) * _ENTRIES), np.float32)
        for i in range(count):
            row, column = int(places[1, i] * np.float32(1 / size)) + 1, int(places[0, i] * np.float32(1 / size)) + 1
            first = column * _ENTRIES
            votes[row, first + bin_[i]] += np.float32(1)
            votes[row, first + _ENTRIES - 1] += np.float32(1)
        # Of 3x3 parts: of those above and below each other, then of those beside each other.
        tall, around = np.empty(votes.shape[1], np.float32), np.empty((rows, columns * _ENTRIES), np.float32)
        left, middle, right = tall[: -2 * _ENTRIES], tall[_ENTRIES:-_ENTRIES], tall[2 * _ENTRIES :]
        for row in range(rows):
            above, here, below, into = votes[row], votes[row + 1], votes[row + 2], around[row]
            for k in range(len(tall)):
                tall[k] = above[k] + here[k] + below[k]
            for k in range(len(into)):
                into[k] = left[k] + middle[k] + right[k]
        for i in range(count):
            row, column = int(places[1, i] * np.float32(1 / size)), int(places[0, i] * np.float32(1 / size))
            first = column * _ENTRIES
            found, others = first + bin_[i], around[row, first + _ENTRIES - 1] - np.float32(1)
            agree = around[row, found - 1] + around[row, found] + around[row, found + 1] - np.float32(1)
            chance = by_chance[i] * others
            agree = max(agree - chance - np.float32(_BY_CHANCE) * np.sqrt(chance), np.float32(0))
            share[i] = (agree + np.float32(_INHERITED) * share[i]) / (others + np.float32(_INHERITED))
    trust = share
    for i in range(count):
        trust[i] = min(
            max((share[i] - np.float32(_WRONG)) * np.float32(1 / (_RIGHT - _WRONG)), np.float32(0)), np.float32(1)
        )
    return trust
