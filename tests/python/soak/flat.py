"""Whether a process grows.

Judged is anonymous memory, resident or swapped out (RssAnon and VmSwap): what a program allocates and never frees stays there. The rest of
VmRSS are pages of files (the program, its libraries, the database), which the kernel takes back when it needs room: they are no leak. VmRSS
is shown beside it.

The slope of a life is Theil and Sen's (the median of the slopes between all pairs of samples) over its last two thirds. It passes over
what is no leak: the beginning, in which code is paged in and buffers take their size, and the humps of an outage, in which labels and
connections wait. Up to 29 % of the samples may lie anywhere.

Why 4 MiB over that window: less could not be told from noise in ten minutes, more would let a leak through that an hour can tell.
The memory of a device goes up and down by 20 MiB (rss.txt; standard deviation 3 MiB; samples half a minute apart know nothing of each
other). In lives of ten minutes drawn from this noise the slope amounts to 1.3 MiB in standard deviation, and in one of a thousand to more
than 4. In an hour, whose window is 40 minutes, 4 MiB are 0.10 MiB a minute. The centre's noise is smaller, and so is its window, because
it is killed in the first part of a run. In a window of a minute the noise alone gives more than 4 MiB in 9 of 100 lives: what is shorter
than 4 minutes is not judged.

One recorded run breaks this bound (rss.txt); self_test.py holds that it does. The cause is not known.

Descriptors and threads are numbers of a few dozen that go up by one or two while something is opened anew. A leak of one for each
reconnection or pipeline adds more than two even in ten minutes.
"""

import dataclasses

import numpy

# Over the window, at most. `None`: shown, not judged.
GROWTH = {"anon_kib": 4096, "rss_kib": None, "fds": 2, "threads": 2}
# Minutes that the window has at least; a shorter one is shown, not judged.
SHORTEST = {"anon_kib": 4}
# KiB a minute that are found in every life that self_test.py draws, in the shortest window that a run of so many minutes has.
FOUND = {"steady": {10: 1280, 60: 164}, "centre": {10: 1229, 60: 195}}
# With fewer samples in the window no slope is worth a word.
SAMPLES = 12


@dataclasses.dataclass
class Verdict:
    start: float
    end: float
    minutes: float
    slope_per_minute: float
    most_per_minute: float | None
    flat: bool


def theil_sen(at, values):
    at, values = numpy.asarray(at, float), numpy.asarray(values, float)
    first, second = numpy.triu_indices(len(at), 1)
    return float(numpy.median((values[second] - values[first]) / (at[second] - at[first])))


def judge(at, values, growth, shortest=0):
    """Of samples `values` at seconds `at` of one life; None when there are too few."""
    window = [(second / 60, value) for second, value in zip(at, values) if second >= at[0] + (at[-1] - at[0]) / 3]
    if len(window) < SAMPLES:
        return None
    minutes, values = zip(*window)
    slope, length, edge = theil_sen(minutes, values), minutes[-1] - minutes[0], max(3, len(values) // 8)
    most = None if growth is None or length < shortest else growth / length
    start, end = numpy.median(values[:edge]), numpy.median(values[-edge:])
    return Verdict(float(start), float(end), length, slope, most, most is None or slope <= most)
