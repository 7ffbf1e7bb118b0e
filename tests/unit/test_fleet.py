from __future__ import annotations

import asyncio

import pytest

from domain.errors import (
    ModelNotFound,
    NoServerAvailable,
    ServerError,
    ServerFault,
    ServerTimeout,
    ServerUnreachable,
    VersionNotFound,
)
from domain.events import Event, ServerFound, ServerLost
from domain.fleet import ServedModel
from domain.prediction import ModelRef, ServerAddress
from tests.fakes import FakeServer, fleet_of
from tests.virtual_time import now, virtual_time

M1, M2 = ServedModel("m", "1.0"), ServedModel("m", "2.0", default=False)
DOWN = ServerUnreachable("connection refused")


@virtual_time
async def test_a_model_without_a_version_is_its_servers_default() -> None:
    fleet = fleet_of(FakeServer(models=(M2, M1)))
    await fleet.refresh()

    assert fleet.resolve(ModelRef("m")) == ModelRef("m", "1.0")
    assert fleet.resolve(ModelRef("m", "2.0")) == ModelRef("m", "2.0")


@virtual_time
async def test_the_default_of_a_ready_server_is_preferred() -> None:
    upgraded = FakeServer("upgraded", models=(ServedModel("m", "3.0", workers_ready=0),))
    fleet = fleet_of(upgraded, FakeServer("old", models=(M1,)))
    await fleet.refresh()

    assert fleet.resolve(ModelRef("m")) == ModelRef("m", "1.0")


@virtual_time
async def test_a_server_that_cannot_be_asked_for_versions_gets_the_callers_word() -> None:
    fleet = fleet_of(FakeServer(models=(ServedModel("m", None),)))
    await fleet.refresh()

    assert fleet.resolve(ModelRef("m")) == ModelRef("m", None)
    assert fleet.resolve(ModelRef("m", "7")) == ModelRef("m", "7")
    assert fleet.ready(ModelRef("m", "7")) == list(fleet.servers)


@virtual_time
async def test_an_unknown_model_or_version_is_told_what_there_is() -> None:
    fleet = fleet_of(FakeServer(models=(M1, M2)))
    await fleet.refresh()

    with pytest.raises(ModelNotFound, match="Served: m"):
        fleet.resolve(ModelRef("nope"))
    with pytest.raises(VersionNotFound, match=r"Served: 1\.0, 2\.0"):
        fleet.resolve(ModelRef("m", "9"))


@virtual_time
async def test_while_a_server_is_silent_nothing_is_called_unknown() -> None:
    fleet = fleet_of(FakeServer(), FakeServer("b", probe_error=DOWN))
    await fleet.refresh()

    with pytest.raises(NoServerAvailable, match="b: connection refused"):
        fleet.resolve(ModelRef("nope"))


@virtual_time
async def test_a_server_that_went_away_is_remembered_for_what_it_served() -> None:
    server = FakeServer()
    fleet = fleet_of(server)
    await fleet.refresh()
    server.probe_error = DOWN
    await fleet.refresh()

    assert fleet.resolve(ModelRef("m")) == ModelRef("m", "1.0")
    assert fleet.ready(ModelRef("m", "1.0")) == []


@virtual_time
async def test_many_who_ask_at_once_are_one_question() -> None:
    server = FakeServer()
    fleet = fleet_of(server)

    await asyncio.gather(*(fleet.refresh(max_age=1.0) for _ in range(100)))
    await fleet.refresh(max_age=1.0)
    assert server.probed == 1

    await asyncio.sleep(1.0)
    await fleet.refresh(max_age=1.0)
    assert server.probed == 2


@virtual_time
async def test_one_who_gives_up_does_not_disturb_the_others() -> None:
    fleet = fleet_of(FakeServer())
    impatient = asyncio.create_task(fleet.refresh())
    patient = asyncio.create_task(fleet.refresh())
    await asyncio.sleep(0)
    impatient.cancel()

    await patient

    assert fleet.servers[0].state.problem is None


@virtual_time
async def test_a_wedged_model_is_not_ready_though_its_server_says_so() -> None:
    server = FakeServer(seconds=3600)
    fleet = fleet_of(server, canaries={"m": "hello"})

    await fleet.refresh()

    assert now() == 2.0
    assert "answered no canary prediction for m/1.0 within 2 s" in fleet.why_not(ModelRef("m", "1.0"))


@virtual_time
async def test_a_model_that_fails_its_canary_is_not_ready_until_it_answers() -> None:
    server = FakeServer(error=ServerFault("worker died"))
    fleet = fleet_of(server, canaries={"m": "hello"})
    await fleet.refresh()
    assert fleet.ready(ModelRef("m")) == []

    server.error = None
    await fleet.refresh()

    assert fleet.ready(ModelRef("m", "1.0")) == list(fleet.servers)


@virtual_time
async def test_real_answers_spare_the_canary() -> None:
    server = FakeServer()
    fleet = fleet_of(server, canaries={"m": "hello"})
    await fleet.refresh()
    fleet.servers[0].answered.add(ModelRef("m", "1.0"))

    await fleet.refresh()
    assert len(server.asked) == 1

    await fleet.refresh()
    assert len(server.asked) == 2


@virtual_time
async def test_the_watch_finds_a_server_that_comes_back_and_says_so_once() -> None:
    heard: list[Event] = []
    server = FakeServer(probe_error=DOWN)
    fleet = fleet_of(server, heard=heard)
    watching = asyncio.create_task(fleet.watch(interval=5.0, interval_down=1.0))
    await asyncio.sleep(3.5)
    assert server.probed == 4

    server.probe_error = None
    await asyncio.sleep(11.0)
    watching.cancel()

    assert heard == [ServerLost("a", "connection refused"), ServerFound("a", ("m",))]
    assert server.probed == 7


@virtual_time
async def test_a_lost_server_is_asked_again_without_waiting_for_the_interval() -> None:
    heard: list[Event] = []
    server = FakeServer()
    fleet = fleet_of(server, heard=heard)
    watching = asyncio.create_task(fleet.watch(interval=60.0, interval_down=1.0))
    await asyncio.sleep(10.0)

    fleet.lost(fleet.servers[0], "connection refused")
    await asyncio.sleep(0.1)
    watching.cancel()

    assert server.probed == 2
    assert heard == [
        ServerFound("a", ("m",)),
        ServerLost("a", "connection refused"),
        ServerFound("a", ("m",)),
    ]


@virtual_time
async def test_a_server_that_is_lost_again_and_again_is_asked_once_a_second() -> None:
    server = FakeServer()
    fleet = fleet_of(server)
    watching = asyncio.create_task(fleet.watch(interval=60.0, interval_down=1.0))

    for _ in range(100):
        await asyncio.sleep(0.1)
        fleet.lost(fleet.servers[0], "connection refused")
    watching.cancel()

    assert server.probed <= 12


@virtual_time
async def test_a_server_lost_while_it_is_asked_has_to_say_again_that_it_is_well() -> None:
    fleet = fleet_of(FakeServer(seconds=1.0), canaries={"m": "hello"})
    asking = asyncio.create_task(fleet.refresh())
    await asyncio.sleep(0.5)
    fleet.lost(fleet.servers[0], "connection refused")
    await asking

    assert fleet.servers[0].state.problem == "connection refused"


@virtual_time
async def test_answers_from_before_a_loss_spare_no_canary_after_it() -> None:
    server = FakeServer()
    fleet = fleet_of(server, canaries={"m": "hello"})
    await fleet.refresh()
    fleet.servers[0].answered.add(ModelRef("m", "1.0"))
    fleet.lost(fleet.servers[0], "connection refused")

    await fleet.refresh()

    assert len(server.asked) == 2


@virtual_time
async def test_nobody_waits_long_for_a_server_that_is_slow_to_say() -> None:
    slow = FakeServer("slow", seconds=2.0)
    fleet = fleet_of(FakeServer("fast"), slow, canaries={"m": "hello"})

    await fleet.refresh(wait=0.5)

    assert now() == 0.5
    assert [server.state.problem for server in fleet.servers] == [None, "not asked yet"]


@virtual_time
async def test_a_mistake_of_ours_does_not_end_the_watch() -> None:
    server = FakeServer(probe_error=ValueError("a bug"))  # type: ignore[arg-type]
    fleet = fleet_of(server)
    watching = asyncio.create_task(fleet.watch(interval=5.0, interval_down=1.0))
    await asyncio.sleep(0.5)
    assert fleet.servers[0].state.problem == "could not be asked (ValueError)"

    server.probe_error = None
    await asyncio.sleep(1.0)
    watching.cancel()

    assert fleet.servers[0].state.problem is None


@virtual_time
async def test_a_watch_that_is_stopped_leaves_nothing_running() -> None:
    fleet = fleet_of(FakeServer(seconds=60.0), canaries={"m": "hello"})
    watching = asyncio.create_task(fleet.watch(interval=5.0, interval_down=1.0))
    await asyncio.sleep(0.5)
    watching.cancel()
    await asyncio.wait([watching])

    assert asyncio.all_tasks() == {asyncio.current_task()}


@virtual_time
async def test_a_model_that_fails_its_canary_is_told_once() -> None:
    heard: list[Event] = []
    fleet = fleet_of(FakeServer(error=ServerFault("worker died")), canaries={"m": "hello"}, heard=heard)
    await fleet.refresh()
    await fleet.refresh()

    assert [type(event).__name__ for event in heard] == ["ServerFound", "ModelFailing"]
    assert fleet.servers[0].summary() == "failed the canary prediction for m/1.0: worker died"


@virtual_time
async def test_a_callers_choice_of_server_decides_the_default_version() -> None:
    other = FakeServer("b", models=(ServedModel("m", "2.0"),))
    fleet = fleet_of(FakeServer("a"), other)
    await fleet.refresh()

    assert fleet.resolve(ModelRef("m"), ServerAddress("127.0.0.1", 8081)) == ModelRef("m", "2.0")


@virtual_time
async def test_a_server_that_answers_is_not_lost_when_it_is_late_once_to_say_how_it_is() -> None:
    server = FakeServer()
    fleet = fleet_of(server)
    watching = asyncio.create_task(fleet.watch(interval=60.0, interval_down=1.0))
    await asyncio.sleep(30.0)
    fleet.servers[0].answered.add(ModelRef("m", "1.0"))
    server.probe_error = ServerTimeout("late")

    await fleet.refresh()
    once = fleet.servers[0].state.problem
    await asyncio.sleep(1.0)
    watching.cancel()

    assert (once, fleet.servers[0].state.problem) == (None, "late")


@virtual_time
async def test_a_server_that_is_late_and_answers_all_the_while_is_not_lost() -> None:
    server = FakeServer()
    fleet = fleet_of(server)
    await fleet.refresh()
    server.probe_error = ServerTimeout("late")

    for _ in range(10):
        fleet.servers[0].answered.add(ModelRef("m", "1.0"))
        await fleet.refresh()

    assert fleet.ready(ModelRef("m")) == list(fleet.servers)


@virtual_time
async def test_a_server_that_was_late_is_out_of_trouble_when_it_says_how_it_is() -> None:
    server = FakeServer()
    fleet = fleet_of(server)
    await fleet.refresh()
    fleet.servers[0].answered.add(ModelRef("m", "1.0"))
    server.probe_error = ServerTimeout("late")
    await fleet.refresh()
    late = fleet.servers[0].in_trouble()
    server.probe_error = None

    await fleet.refresh()

    assert (late, fleet.servers[0].in_trouble()) == (True, False)


@virtual_time
@pytest.mark.parametrize("error", [DOWN, ServerFault("503")])
async def test_a_server_that_says_it_is_unwell_or_cannot_be_reached_is_lost_whatever_it_answered(
    error: ServerError,
) -> None:
    server = FakeServer()
    fleet = fleet_of(server, canaries={"m": "hello"})
    await fleet.refresh()
    fleet.servers[0].answered.add(ModelRef("m", "1.0"))
    server.probe_error = error
    await fleet.refresh()
    lost = fleet.servers[0].state.problem
    server.probe_error = None

    await fleet.refresh()

    assert (lost, len(server.asked)) == (str(error), 2)  # its answers from before spare no canary now


@virtual_time
async def test_a_server_that_somebody_else_finds_down_is_watched_closely_from_then_on() -> None:
    server = FakeServer()
    fleet = fleet_of(server)
    watching = asyncio.create_task(fleet.watch(interval=60.0, interval_down=1.0))
    await asyncio.sleep(30.0)
    server.probe_error = DOWN
    await fleet.refresh()
    server.probe_error = None

    await asyncio.sleep(1.5)
    watching.cancel()

    assert fleet.servers[0].state.problem is None


@virtual_time
async def test_what_a_server_said_is_out_of_date_once_a_version_it_named_is_gone() -> None:
    server = FakeServer(models=(M1,))
    fleet = fleet_of(server)
    await fleet.refresh()
    server.models = (ServedModel("m", "2.0"),)

    await fleet.refresh(max_age=1.0)
    believed = fleet.resolve(ModelRef("m"))
    fleet.gone(fleet.servers[0], ModelRef("m", "1.0"))
    await fleet.refresh(max_age=1.0)

    assert (believed, fleet.resolve(ModelRef("m"))) == (ModelRef("m", "1.0"), ModelRef("m", "2.0"))
    fleet.gone(fleet.servers[0], ModelRef("m", "1.0"))  # whoever comes late with it tells nothing new
    await fleet.refresh(max_age=1.0)
    assert server.probed == 2


@virtual_time
async def test_a_version_that_a_caller_invents_does_not_take_a_model_out_that_is_believed_to_be_served() -> (
    None
):
    fleet = fleet_of(FakeServer(models=(ServedModel("m", None),)))
    await fleet.refresh()

    fleet.gone(fleet.servers[0], ModelRef("m", "7"))

    assert fleet.ready(ModelRef("m", "7")) == []
    with pytest.raises(VersionNotFound, match="Served: not known"):
        fleet.resolve(ModelRef("m", "7"))
    assert fleet.ready(ModelRef("m")) == fleet.ready(ModelRef("m", "1.0")) == list(fleet.servers)
    await fleet.refresh()
    assert fleet.ready(ModelRef("m", "7")) == list(fleet.servers)
