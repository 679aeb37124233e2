"""Checks docs/examples against the JSON Schema and the CDDL of docs, each message in both encodings; and that both refuse it without any one of
its required keys.

  check_examples.py DOCS
"""

import json
import pathlib
import re
import sys

import cbor2
import jsonschema
import pycddl


def refused(check, message):
    try:
        check(message)
    except (jsonschema.ValidationError, pycddl.ValidationError):
        return True
    return False


def check_all(check, message, required, what):
    check(message)
    check({**message, "new": [1, {"x": None}]})
    for key in required:
        assert refused(check, {k: v for k, v in message.items() if k != key}), f"{what}: taken without {key}"


def main():
    docs = pathlib.Path(sys.argv[1])
    schema = json.loads((docs / "wire.schema.json").read_text())
    cddl = (docs / "wire.cddl").read_text()
    for kind, definition in schema["$defs"].items():
        path = docs / "examples" / f"{kind}.json"
        if not path.exists():
            # A part of a message: it is checked inside the message that has it.
            continue
        rule = re.sub(r"([A-Z])", lambda m: "-" + m[1].lower(), kind)
        root = {"$schema": schema["$schema"], "$ref": f"#/$defs/{kind}", "$defs": schema["$defs"]}
        by_schema = jsonschema.Draft202012Validator(root).validate
        check_all(by_schema, json.loads(path.read_text()), definition["required"], f"{kind} in the schema")
        binary = path.with_suffix(".cbor")
        # The manifest of a release is signed as JSON and has no other form.
        if binary.exists():
            rules = pycddl.Schema(f"start = {rule}\n{cddl}")
            rules.validate_cbor(binary.read_bytes())
            by_cddl = lambda message: rules.validate_cbor(cbor2.dumps(message))
            check_all(by_cddl, cbor2.loads(binary.read_bytes()), definition["required"], f"{kind} in the CDDL")
        print(kind)


if __name__ == "__main__":
    main()
