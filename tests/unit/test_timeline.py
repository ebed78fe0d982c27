"""What a mount fetches over time: nothing is lost when stretches become longer; their number is bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from imgfs.content.stats import Cause
from imgfs.content.timeline import Timeline

EVENTS = st.lists(
    st.tuples(
        st.floats(0, 5000, allow_nan=False) | st.floats(0, 1, allow_nan=False),
        st.none() | st.sampled_from(Cause),
        st.integers(0, 1 << 40),
    ),
    max_size=60,
)


@given(EVENTS)
def test_sums_are_kept_and_bounded(events: list[tuple[float, Cause | None, int]]) -> None:
    now = 100.0
    timeline = Timeline(lambda: now)
    wanted: dict[Cause | None, int] = {}
    for pause, cause, size in events:
        now += pause
        wanted[cause] = wanted.get(cause, 0) + size
        timeline.fetched(cause, size) if cause else timeline.read(size)
    found = timeline.snapshot()
    assert sum(found.read) == wanted.pop(None, 0)
    assert {name: sum(sums) for name, sums in found.fetched.items()} == {
        cause.name.lower(): size for cause, size in wanted.items() if cause and size
    }
    assert 1 <= len(found.read) <= 128
    assert all(len(sums) == len(found.read) for sums in found.fetched.values())
    assert len(found.read) == int((now - 100.0) / found.stretch) + 1


def test_a_stretch_has_what_happened_in_it() -> None:
    now = 0.0
    timeline = Timeline(lambda: now)
    timeline.read(1)
    now = 0.3
    timeline.fetched(Cause.MISS, 20)
    timeline.read(5)
    found = timeline.snapshot()
    assert (found.stretch, found.read, found.fetched) == (0.125, (1, 0, 5), {"miss": (0, 0, 20)})
    now = 16.0  # 128 stretches: each is twice as long from now on
    timeline.read(7)
    found = timeline.snapshot()
    assert found.stretch == 0.25
    assert (found.read[:3], found.read[-1], found.fetched["miss"][:3]) == ((1, 5, 0), 7, (0, 20, 0))
