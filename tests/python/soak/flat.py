"""Whether a process grows.

The slope of a life is Theil and Sen's (the median of the slopes between all pairs of samples) over its last two thirds. It passes over
what is no leak: the beginning, in which code is paged in and buffers take their size, and the humps of an outage, in which labels and
connections wait. Up to 29 % of the samples may lie anywhere.

An allocator takes memory in steps and gives it back late, and a device that labels faster holds more: within twelve minutes of a device
that did not grow, windows of two minutes gave from -4 to +7 MiB each. That bounds what a run of some length can tell: growth of 10 MiB
over the window. In an hour (a window of 40 minutes) that is 256 KiB a minute, at 40 labels a second 110 bytes a label; in ten minutes,
six times as much.

Descriptors and threads are numbers of a few dozen that go up by one or two while something is opened anew. A leak of one for each
reconnection or pipeline adds more than two even in ten minutes.
"""

import dataclasses

import numpy

GROWTH = {"rss_kib": 10240, "fds": 2, "threads": 2}
# With fewer samples in the window no slope is worth a word.
SAMPLES = 12


@dataclasses.dataclass
class Verdict:
    start: float
    end: float
    minutes: float
    slope_per_minute: float
    most_per_minute: float
    flat: bool


def theil_sen(at, values):
    at, values = numpy.asarray(at, float), numpy.asarray(values, float)
    first, second = numpy.triu_indices(len(at), 1)
    return float(numpy.median((values[second] - values[first]) / (at[second] - at[first])))


def judge(at, values, growth):
    """Of samples `values` at seconds `at` of one life; None when there are too few."""
    window = [(second / 60, value) for second, value in zip(at, values) if second >= at[0] + (at[-1] - at[0]) / 3]
    if len(window) < SAMPLES:
        return None
    minutes, values = zip(*window)
    slope, length, edge = theil_sen(minutes, values), minutes[-1] - minutes[0], max(3, len(values) // 8)
    most = growth / length
    start, end = numpy.median(values[:edge]), numpy.median(values[-edge:])
    return Verdict(float(start), float(end), length, slope, most, slope <= most)
