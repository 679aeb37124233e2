"""A compose file as JSON, with what an environment file says of its variables.

  read_compose.py COMPOSE.yaml ENVIRONMENT
"""

import json
import re
import sys

import yaml

VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def main(compose, environment):
    with open(environment, encoding="utf-8") as file:
        lines = (line.strip() for line in file)
        known = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    def fill(match):
        name, kind, word = match.groups()
        if not known.get(name) and kind != "-":
            sys.exit(f"{compose}: {name} is not in {environment}")
        return known.get(name) or word

    def filled(value):
        if isinstance(value, dict):
            return {key: filled(inside) for key, inside in value.items()}
        if isinstance(value, list):
            return [filled(inside) for inside in value]
        return VARIABLE.sub(fill, value) if isinstance(value, str) else value

    with open(compose, encoding="utf-8") as file:
        print(json.dumps(filled(yaml.safe_load(file))))


main(*sys.argv[1:])
