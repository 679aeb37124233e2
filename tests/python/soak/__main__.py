"""`tests/soak`: see `--help`, and docs/EDGE.md, "Soak"."""

import argparse
import asyncio
import json
import pathlib
import shutil
import sys

import draw
import flat
import run
import self_test
import processes

HELP = """Lets a whole site work at full rate while everything around it breaks, and checks that nothing is lost and nothing grows.

mosquitto, a centre and two devices with the shipped model run as processes; each device labels a folder that loops and a GStreamer test
source as fast as it can. Between every client and the broker stands a proxy that drops, delays, stalls, duplicates, reorders and throttles;
devices, broker, centre and pipelines are killed, stopped and started again. At the end the faults stop and everything has to drain.
Exits with 1 when a promise is broken, and names it. Ctrl-C ends the faults early; a second one ends at once."""


def table(report):
    lines = [f"{report['minutes']:.1f} minutes, seed {report['seed']}, {report['cores']} cores"
             + (", interrupted" if report["interrupted"] else "")]
    lines += ["", "faults"] + [f"  {count:6}  {kind}" for kind, count in sorted(report["faults"].items())]
    lines += [f"  {sum(report['faults'].values()):6}  together"]
    packets = {}
    for counts in report["packets"].values():
        for what, count in counts.items():
            packets[what] = packets.get(what, 0) + count
    lines += ["", "packets and connections"] + [f"  {count:6}  {what}" for what, count in sorted(packets.items())]
    heads = ["device", "lives", "made", "stored", "evicted", "lost", "frames", "sent again", "arrived again", "stored twice"]
    rows = []
    for name, account in report["labels"].items():
        again = report["sent"].get(f"{name} labels", {}).get("repeated", 0)
        rows.append([name, report["lives"][name], account["committed"], account["stored"], account["evicted"], account["lost"],
                     account["frames"], again, account["repeated"], account["stored_twice"]])
    lines += ["", *columns(heads, rows)]
    lines += ["stored twice: the schema forbids it; payloads compared with those first sent"]
    heads = ["process", "minutes", "of it", "start", "end", "a minute", "at most", ""]
    units = {"anon_kib": ("anonymous, MiB", 1024), "rss_kib": ("RSS, MiB", 1024), "fds": ("descriptors", 1), "threads": ("threads", 1)}
    rows = []
    for row in report["flat"]:
        unit, scale = units[row["quantity"]]
        edges = [f"{row[key] / scale:.1f}" for key in ("start", "end")]
        judged = row["most_per_minute"] is not None
        slopes = [f"{row['slope_per_minute'] / scale:.3f}", f"{row['most_per_minute'] / scale:.3f}" if judged else ""]
        verdict = ("flat" if row["flat"] else "GROWS") if judged else "not judged"
        rows.append([row["process"], f"{row['life_minutes']:.1f}", unit, *edges, *slopes, verdict])
    lines += ["", *columns(heads, rows), ""]
    lines += [f"{what}: {value}" for what, value in report["figures"].items()]
    replaced = report["pipelines_replaced"]
    lines += [f"pipelines replaced: {replaced['count']}, the slowest after {replaced['slowest_seconds']} s"]
    for name, live in report["live"].items():
        page = report["pages"][name]
        lines += [f"{name}: {live['labels']} labels of its live camera; again after {live['live_again']} of {live['replaced']} "
                  f"new pipelines, the slowest after {live['slowest_seconds']} s",
                  f"{name}: {page['unanswered']} of {page['asked']} questions for its metrics unanswered"]
    spells = report["spells"]
    lines += [f"{spells['device']}: frames labelled in {spells['seconds']} s: {spells['least']} at least, median {spells['median']}"]
    for name, log in report["logs"].items():
        lines += [f"{name}: {log['warnings']} warnings, {log['errors']} errors logged"] + [f"  {line}" for line in log["last_errors"]]
    lines += ["", "every promise held"] if not report["broken"] else ["", *(f"BROKEN: {promise}" for promise in report["broken"])]
    return "\n".join(lines)


def columns(heads, rows):
    cells = [heads] + [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    return ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip() for row in cells]


def main():
    parser = argparse.ArgumentParser("tests/soak", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="how long, without the time to drain (60)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults (1)")
    parser.add_argument("--out", type=pathlib.Path, default=processes.ROOT / "target/soak",
                        help="folder of report.json, soak.svg and, where a promise is broken, the site with its logs (target/soak)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")
    parser.add_argument("--keep", action="store_true", help="keep the site's folder also when every promise held")
    parser.add_argument("--self-test", action="store_true", help="only break what the checks look at, and list what they found")
    arguments = parser.parse_args()
    broken = self_test.run()
    if arguments.self_test:
        print("broken here, and found:", *broken, sep="\n  ")
        return 0
    if not 2 <= arguments.minutes <= 24 * 60:
        parser.error("--minutes: expected 2 to 1440")
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    try:
        report = asyncio.run(run.Soak(arguments.minutes, arguments.seed, out).run())
    except processes.Missing as missing:
        print(f"tests/soak: {missing}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("tests/soak: ended without a report", file=sys.stderr)
        return 130
    (out / "report.json").write_text(json.dumps(report, indent=1))
    (out / "soak.svg").write_text(draw.picture(report))
    if not report["broken"] and not arguments.keep:
        shutil.rmtree(out / "work")
    if arguments.json:
        print(json.dumps({key: value for key, value in report.items() if key not in ("samples", "rates", "marks")}, indent=1))
    else:
        print(table(report))
        print(f"\n{out / 'report.json'}, {out / 'soak.svg'}" + (f", logs in {out / 'work'}" if (out / "work").exists() else ""))
    return 1 if report["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
