"""Where somebody was, as it is remembered."""

from __future__ import annotations

from dpm_edge.watch.whereabouts import Stay, Whereabouts


def test_people_whose_stays_are_older_than_the_memory_take_no_room() -> None:
    where = Whereabouts(memory=100.0)
    where.add("resident", resident := Stay(camera="door", track="0", start=0.0, last=1e9))
    for i in range(10_000):
        where.add(f"P{i}", Stay(camera="door", track=f"{i + 1}", start=float(i), last=i + 0.5))
    known = [i for i in range(10_000) if where.stays(f"P{i}")]
    assert set(known) >= set(range(9_900, 10_000)) and len(known) < 2_100
    assert where.stays("resident") == [resident]
