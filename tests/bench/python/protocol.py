"""The line protocol of a side: requests as JSON lines on stdin, answers as JSON lines on stdout.

    {"do": "prepare", …task}   -> {}
    {"do": "check"}            -> what the work gave, to be compared with the other sides
    {"do": "run", "repeat": n} -> {"seconds": of one of n repetitions}
    {"do": "memory"}           -> {"idle": bytes before prepare, "peak": bytes}

A failure is answered by {"error": text}. Every side is a process of its own, so that its peak memory is its own.
"""
import json
import os
import pathlib
import sys
import time
import traceback


def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def serve(prepare, extra=None):
    """`prepare(task)` gives an object with `check()` and `run()`; `extra` are further requests, by name."""
    # Libraries print to standard output: that is for answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    idle, work = resident("VmRSS"), None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            kind = request.pop("do")
            if kind == "prepare":
                work, answer = prepare(request), {}
            elif kind == "check":
                answer = work.check()
                # What the comparison took is not what the work takes.
                pathlib.Path("/proc/self/clear_refs").write_text("5")
            elif kind == "run":
                if hasattr(work, "measure"):
                    answer = work.measure(request["repeat"])
                else:
                    start = time.perf_counter()
                    for _ in range(request["repeat"]):
                        work.run()
                    answer = {"seconds": (time.perf_counter() - start) / request["repeat"]}
            elif kind == "memory":
                answer = {"idle": idle, "peak": resident("VmHWM")}
            else:
                answer = extra[kind](request) or {}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
