"""Reads a Grafana board with the types that Grafana's makers publish for it, writes it again, and complains about whatever was lost or
changed on the way: a misspelt option, one of another kind of panel, a value of another type. Prints how many panels there are.

  check_board.py BOARD.json
"""

import json
import sys

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard

# What Grafana itself writes and the published types do not have.
UNTYPED = {"/id", "/annotations/list[0]/builtIn"}


def differences(before, after, at=""):
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if key in after:
                yield from differences(value, after[key], f"{at}/{key}")
            elif f"{at}/{key}" not in UNTYPED:
                yield f"{at}/{key} is unknown: {value!r}"
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after)):
            yield from differences(one, other, f"{at}[{index}]")
    elif before != after:
        yield f"{at} is {before!r}, read as {after!r}"


def main(path):
    plugins.register_default_plugins()
    with open(path, encoding="utf-8") as file:
        board = json.load(file)
    again = json.loads(JSONEncoder().encode(dashboard.Dashboard.from_json(board)))
    found = list(differences(board, again))
    if found:
        sys.exit("\n".join(found))
    print(len(board["panels"]), "panels")


main(*sys.argv[1:])
