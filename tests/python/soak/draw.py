"""A run as a picture: memory, descriptors, labels and faults over time."""

WIDTH, LEFT, RIGHT, PANEL, GAP, TOP = 1120, 70, 200, 150, 46, 40
COLOURS = {"steady": "#1f6fb2", "struck": "#d1495b", "centre": "#2e8b57"}
INK, GRID = "#333", "#ddd"


class Canvas:
    def __init__(self, minutes):
        self.minutes, self.top, self.parts = minutes, TOP, []

    def x(self, at):
        return LEFT + at / 60 / self.minutes * (WIDTH - LEFT - RIGHT)

    def text(self, x, y, words, colour=INK, anchor="start", size=12):
        words = str(words).replace("&", "&amp;").replace("<", "&lt;")
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}">{words}</text>')

    def line(self, x1, y1, x2, y2, colour=GRID, width=1):
        self.parts.append(f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}" stroke-width="{width}" fill="none"/>')

    def panel(self, title, lines):
        """`lines`: (name, list of (seconds, value) for each life)."""
        top, bottom = self.top, self.top + PANEL
        highest = max((value for _, lives in lines for life in lives for _, value in life), default=1) or 1
        step = nice(highest / 4)
        ceiling = step * (int(highest / step) + 1)
        y = lambda value: bottom - value / ceiling * PANEL  # noqa: E731
        self.text(LEFT, top - 8, title, size=13)
        for index in range(int(ceiling / step + 0.5) + 1):
            self.line(LEFT, y(index * step), WIDTH - RIGHT, y(index * step))
            self.text(LEFT - 6, y(index * step) + 4, f"{index * step:g}", anchor="end", size=11)
        self.minutes_below(bottom)
        for place, (name, lives) in enumerate(lines):
            for life in lives:
                if len(life) == 1:
                    life = [life[0], (life[0][0] + 1, life[0][1])]
                points = "L".join(f"{self.x(at):.1f} {y(value):.1f}" for at, value in life)
                self.parts.append(f'<path d="M{points}" stroke="{COLOURS[name]}" stroke-width="1.5" fill="none"/>')
            self.text(WIDTH - RIGHT + 10, top + 14 + 16 * place, name, COLOURS[name])
        self.top = bottom + GAP

    def minutes_below(self, bottom):
        step = nice(self.minutes / 8)
        for index in range(int(self.minutes / step) + 1):
            self.text(self.x(index * step * 60), bottom + 15, f"{index * step:g} min", anchor="middle", size=11)

    def lanes(self, title, marks):
        kinds = sorted({mark["kind"] for mark in marks})
        self.text(LEFT, self.top - 8, title, size=13)
        for row, kind in enumerate(kinds):
            y = self.top + 16 * row
            self.line(LEFT, y + 8, WIDTH - RIGHT, y + 8)
            mine = [mark for mark in marks if mark["kind"] == kind]
            for mark in mine:
                x, length = self.x(mark["at"]), max(2.0, self.x(mark.get("seconds", 0)) - self.x(0))
                fill = f'fill="{COLOURS.get(mark["target"], INK)}" fill-opacity="0.7"'
                self.parts.append(f'<rect x="{x:.1f}" y="{y + 2:.1f}" width="{length:.1f}" height="12" {fill}/>')
            self.text(WIDTH - RIGHT + 10, y + 12, f"{len(mine)} {kind}", size=11)
        self.top += 16 * len(kinds)
        self.minutes_below(self.top)
        self.top += GAP

    def svg(self):
        return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{self.top}" font-family="sans-serif">'
                f'<rect width="100%" height="100%" fill="#fff"/>{"".join(self.parts)}</svg>\n')


def nice(step):
    """1, 2 or 5 times a power of ten, not below `step`."""
    power = 10.0
    while power / 10 >= step:
        power /= 10
    while power < step:
        power *= 10
    return next(factor * power for factor in (0.1, 0.2, 0.5, 1) if factor * power >= step * 0.999)


def lives(rows, name, key, value):
    found = {}
    for row in rows:
        if row[key] == name:
            found.setdefault(row["life"], []).append((row["at"], value(row)))
    return list(found.values())


def rates(rows, name):
    """Labels per second between samples of one life."""
    found = []
    for life in lives(rows, name, "device", lambda row: row["labels"]):
        pairs = zip(life, life[1:])
        found.append([((a + b) / 2, (after - before) / (b - a)) for (a, before), (b, after) in pairs] or [(life[0][0], 0)])
    return found


def picture(report):
    last = max([row["at"] for row in report["samples"]] + [60])
    canvas = Canvas(last / 60)
    samples = report["samples"]
    names = list(dict.fromkeys(row["process"] for row in samples))
    devices = list(dict.fromkeys(row["device"] for row in report["rates"]))
    canvas.panel("anonymous memory, MiB", [(n, lives(samples, n, "process", lambda row: row["anon_kib"] / 1024)) for n in names])
    canvas.panel("open descriptors", [(n, lives(samples, n, "process", lambda row: row["fds"])) for n in names])
    canvas.panel("labels made per second", [(n, rates(report["rates"], n)) for n in devices])
    canvas.panel("labels that wait for the centre", [(n, lives(report["rates"], n, "device", lambda row: row["pending"])) for n in devices])
    canvas.lanes("faults, in the colour of whom they hit", report["marks"])
    return canvas.svg()
