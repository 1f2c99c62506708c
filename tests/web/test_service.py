"""Work for requests that may end early, and the networks that are served."""

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.requests import ClientDisconnect, Request

from sublens.errors import BundleError, ConfigError
from sublens.models import bundle
from sublens.web.answers import Array, array
from sublens.web.problem import Problem
from sublens.web.prometheus import Metrics
from sublens.web.service import _shipped_in_order, load_networks, together, unless_gone


def request_of_client(*, leaves_after: float) -> Request:
    async def receive() -> Any:
        await asyncio.sleep(leaves_after)
        return {"type": "http.disconnect"}

    return Request({"type": "http", "method": "GET", "headers": []}, receive)


def outcome(work_seconds: float, leaves_after: float, deadline_seconds: float) -> tuple[object, bool]:
    """The result or the kind of error, and whether the work was cancelled."""

    async def run() -> tuple[object, bool]:
        work = asyncio.ensure_future(asyncio.sleep(work_seconds, "done"))
        request, deadline = request_of_client(leaves_after=leaves_after), time.monotonic() + deadline_seconds
        try:
            return await unless_gone(request, work, deadline), False
        except (ClientDisconnect, Problem) as err:
            await asyncio.sleep(0)
            return type(err), work.cancelled()

    return asyncio.run(run())


def test_work_is_cancelled_when_the_client_leaves() -> None:
    assert outcome(5, 0.05, 5) == (ClientDisconnect, True)


def test_work_is_cancelled_when_its_time_is_over() -> None:
    assert outcome(5, 5, 0.05) == (Problem, True)


def test_work_that_is_done_in_time_is_handed_on() -> None:
    assert outcome(0.05, 5, 5) == ("done", False)


def test_where_one_of_several_fails_the_others_are_cancelled() -> None:
    async def run() -> bool:
        slow = asyncio.ensure_future(asyncio.sleep(5))

        async def failing() -> None:
            raise ValueError("this one")

        with pytest.raises(ValueError, match="this one"):
            await together([slow, failing()])
        await asyncio.sleep(0)
        return slow.cancelled()

    assert asyncio.run(run())


def test_all_of_our_networks_are_served_and_the_best_for_the_common_test_first() -> None:
    served = load_networks([], Metrics())
    assert set(served) == set(bundle.shipped())
    known = list(served)[: len(bundle.shipped_for("common-test-1"))]
    assert set(known) == set(bundle.shipped_for("common-test-1"))
    auc = [served[name].card.scores[0].auc for name in known]
    assert auc == sorted(auc, reverse=True)
    for network in served.values():
        network.batcher.close()


def test_a_network_for_another_survey_comes_last_however_high_its_auc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: tmp_path / name for name in ("another", "worse", "better")}
    card = bundle.read_card(bundle.locate("lensnet"))
    for (name, folder), auc in zip(folders.items(), (0.99, 0.7, 0.8), strict=True):
        folder.mkdir()
        data = card.data.model_copy(update={"name": "hst-acs" if name == "another" else "common-test-1"})
        scores = (card.scores[0].model_copy(update={"auc": auc}),)
        bundle.save_card(folder, card.model_copy(update={"data": data, "scores": scores}))
    monkeypatch.setattr(bundle, "shipped", lambda: folders)
    assert _shipped_in_order() == ["better", "worse", "another"]


def test_two_networks_may_not_have_one_name(tmp_path: Path) -> None:
    (tmp_path / "lensnet").symlink_to(bundle.locate("lensnet"))
    with pytest.raises(ConfigError, match="Rename the folder"):
        load_networks(["lensnet", str(tmp_path / "lensnet")], Metrics())
    with pytest.raises(BundleError, match="Did you mean lensnet"):
        load_networks(["lensnett"], Metrics())


def test_arrays_are_sent_in_little_endian_bytes() -> None:
    first, second = (array(np.arange(6, dtype=kind).reshape(2, 3)) for kind in ("<u2", ">u2"))
    assert first == second == Array(dtype="uint16", shape=(2, 3), data="AAABAAIAAwAEAAUA")
