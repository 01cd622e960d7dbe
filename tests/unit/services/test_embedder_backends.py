"""What a backend asks of the network, counted: views beyond the whole picture only where that leaves doubt."""

from __future__ import annotations

import asyncio

import numpy as np

from services.common.batching import BatchCounts
from services.embedder.backends import Array, Ids, InProcess, Seen, voters

VIEWS, CHANNELS, SIDE = 4, 3, 8
VOTES = 2 * VIEWS - 1
SURE, DOUBTFUL = 9.0, 0.1


class Counting:
    """A network whose logits are the brightness of a view, and nothing."""

    name = "counting"

    def __init__(self) -> None:
        self.looked = list[int]()
        self.voted = list[int]()

    def wholes(self, views_BCSS: Array) -> tuple[Array, Array, Array]:
        self.looked.append(len(views_BCSS))
        logits = self._logits(views_BCSS)
        return logits + 1, logits + 2, logits

    def votes(self, views_BCSS: Array) -> Array:
        self.voted.append(len(views_BCSS))
        return self._logits(views_BCSS)

    def texts(self, ids_BL: Ids) -> Array:
        return ids_BL.astype(np.float32)

    def _logits(self, views_BCSS: Array) -> Array:
        bright = views_BCSS.mean((1, 2, 3))
        return np.stack([bright, np.zeros_like(bright)], axis=1)


def views(*brightness: float) -> Array:
    return np.stack([np.full((CHANNELS, SIDE, SIDE), one, np.float32) for one in brightness])


def seen(network: Counting, *pictures: Array) -> list[Seen]:
    async def whole() -> list[Seen]:
        counts = BatchCounts(), BatchCounts()
        backend = InProcess(network, max_batch=len(pictures), capacity=9, counts=counts)
        try:
            return await asyncio.gather(*(backend.image(one, deadline=None) for one in pictures))
        finally:
            backend.close()

    return asyncio.run(whole())


def test_a_sure_picture_is_looked_at_once() -> None:
    network = Counting()
    (found,) = seen(network, views(SURE, 1, 2, 3))
    assert network.voted == [] and sum(network.looked) == 1
    np.testing.assert_allclose(found.logits, [[SURE, 0]])
    np.testing.assert_allclose(found.f_I, [SURE + 1, 1])
    np.testing.assert_allclose(found.f_D, [SURE + 2, 2])


def test_doubtful_pictures_of_a_batch_get_their_own_votes() -> None:
    network = Counting()
    pictures = views(DOUBTFUL, 1, 2, 3), views(SURE, 4, 5, 6), views(-DOUBTFUL, 7, 8, 9)
    first, sure, last = seen(network, *pictures)
    assert sum(network.voted) == 2 * VOTES and sum(network.looked) == 3
    np.testing.assert_allclose(first.logits[:, 0], [DOUBTFUL, 1, 2, 3] * 2, rtol=1e-6)
    np.testing.assert_allclose(sure.logits[:, 0], [SURE])
    np.testing.assert_allclose(last.logits[:, 0], [-DOUBTFUL, 7, 8, 9] * 2, rtol=1e-6)


def test_mirror_images_vote_too() -> None:
    picture = np.random.default_rng(0).random((VIEWS, CHANNELS, SIDE, SIDE), np.float32)
    picture.setflags(write=False)  # as they come off the wire
    others = voters(picture)
    assert others.shape == (VOTES, CHANNELS, SIDE, SIDE)
    np.testing.assert_array_equal(others[: VIEWS - 1], picture[1:])
    np.testing.assert_array_equal(others[VIEWS - 1 :], picture[..., ::-1])


def test_a_lone_view_cannot_be_doubted() -> None:
    network = Counting()
    (found,) = seen(network, views(DOUBTFUL))
    assert network.voted == [] and found.logits.shape == (1, 2)


def test_read_only_logits_are_judged_like_others() -> None:
    logits = np.array([[SURE, 0]], np.float32)
    logits.setflags(write=False)  # as Triton's client gives them
    assert Seen(logits[0], logits[0], logits).certain
