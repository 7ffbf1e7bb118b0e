from __future__ import annotations

import pytest

from domain.concurrency_limit import Forecast, Gradient2, Window


def window(latency: float, *, requests: int = 100, drops: int = 0, peak: int = 1000) -> Window:
    seen = Window(0.0, 0.0)
    for i in range(requests):
        seen.add((i + 1) / requests, latency, 0 if i < drops else 1, peak)
    return seen


def after(limit: Gradient2, *windows: Window) -> int:
    for each in windows:
        limit.update(each)
    return limit.limit


def test_the_limit_grows_while_latency_stays_what_it_is() -> None:
    assert 28 <= after(Gradient2(initial=20), *[window(0.1)] * 12) <= 30


def test_the_limit_shrinks_when_latency_is_far_above_the_long_run() -> None:
    limit = Gradient2(initial=100)
    settled = after(limit, *[window(0.1)] * 20)

    assert after(limit, *[window(0.4)] * 5) < 0.8 * settled


def test_a_latency_within_the_tolerance_does_not_shrink_the_limit() -> None:
    limit = Gradient2(initial=100)
    settled = after(limit, *[window(0.1)] * 20)

    assert after(limit, *[window(0.14)] * 5) >= settled


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    assert after(Gradient2(initial=20), *[window(0.1, peak=9)] * 50) == 20


def test_dropped_requests_shrink_the_limit_by_half_their_share_and_growth_rests() -> None:
    limit = Gradient2(initial=100)

    assert after(limit, window(0.1, drops=50)) == 75
    assert after(limit, *[window(0.1)] * 15) == 75
    assert after(limit, *[window(0.1)] * 15) > 75


def test_one_drop_in_a_hundred_is_tolerated() -> None:
    assert after(Gradient2(initial=100), window(0.1, drops=1)) == 100


def test_the_limit_stays_between_its_floor_and_its_maximum() -> None:
    assert after(Gradient2(initial=20), *[window(0.1, drops=100)] * 50) == 1
    assert after(Gradient2(initial=20, floor=lambda: 64), *[window(0.1, drops=100)] * 50) == 64
    assert after(Gradient2(initial=20, maximum=30), *[window(0.1)] * 50) == 30


def test_one_is_let_in_where_no_worker_is_ready_as_somebody_has_to_try() -> None:
    assert after(Gradient2(initial=20, floor=lambda: 0), *[window(0.1, drops=100)] * 50) == 1


def test_the_floor_is_asked_again_because_servers_come_and_go() -> None:
    floor = [64]
    limit = Gradient2(floor=lambda: floor[0])
    floor[0] = 128

    assert after(limit, window(0.1, peak=1)) == 128


def test_a_long_run_that_was_slow_is_soon_forgotten_when_latency_is_back() -> None:
    limit = Gradient2(initial=100, maximum=100)
    after(limit, *[window(5.0)] * 50, *[window(0.1)] * 60)

    assert after(limit, *[window(0.4)] * 5) < 100


def test_latencies_of_zero_on_a_coarse_clock_are_no_error() -> None:
    assert after(Gradient2(initial=20), window(0.0)) == 20


def test_a_window_is_never_cut_inside_a_batch() -> None:
    seen = Window(0.0, 0.0)
    for batch in (0.2, 0.4, 0.6):
        for _ in range(32):
            seen.add(batch, 0.4, 1, 64)

    assert not seen.complete(0.6, 0.5)
    assert seen.complete(0.8, 0.5)
    assert not seen.complete(0.8, 0.7)


def test_nothing_known_is_hope() -> None:
    assert Forecast().seconds(64, 1000.0, 32) == 0.0


def test_the_forecast_is_the_work_ahead_at_the_observed_rate() -> None:
    forecast = Forecast()
    forecast.learn(window(0.1, requests=140), pressure=True)

    assert forecast.seconds(64, 212.0, 4) == pytest.approx(280 / 140)


def test_the_forecast_is_no_less_than_the_usual_time_unless_nearly_all_work_is_gone() -> None:
    forecast = Forecast()
    forecast.learn(window(0.4, peak=64), pressure=True)

    assert forecast.seconds(20, 0.0, 1) == pytest.approx(0.4)
    assert forecast.seconds(10, 0.0, 1) == pytest.approx(0.11)


def test_where_the_urgent_pass_those_in_flight_only_who_waits_before_them_counts() -> None:
    forecast = Forecast(in_order=False)
    forecast.learn(window(0.4, requests=100, peak=64), pressure=True)

    assert forecast.seconds(200, 0.0, 1) == 0.0
    assert forecast.seconds(200, 30.0, 1) == pytest.approx(0.3)


def test_a_low_rate_is_news_only_under_pressure() -> None:
    calm, pressed = Forecast(), Forecast()
    for forecast, pressure in ((calm, False), (pressed, True)):
        forecast.learn(window(0.1, requests=100), pressure=True)
        forecast.learn(window(0.1, requests=10), pressure=pressure)

    assert calm.rate == 100
    assert pressed.rate < 50


def test_a_window_without_any_answer_is_a_very_low_rate() -> None:
    forecast = Forecast()
    forecast.learn(window(1.0, drops=100), pressure=True)

    assert forecast.rate == 1.0
