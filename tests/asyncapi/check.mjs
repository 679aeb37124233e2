// check.mjs FILE: parses an AsyncAPI document with the specification's own parser; errors and warnings fail.
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";

const file = process.argv[2];
const { document, diagnostics } = await new Parser().parse(readFileSync(file, "utf8"), { source: file });
const serious = diagnostics.filter((d) => d.severity < 2);
serious.forEach((d) => console.error(`${file}: ${d.path.join(".")}: ${d.message}`));
if (!document || serious.length > 0) process.exit(1);
console.log(`${file}: AsyncAPI ${document.version()}, ${document.channels().all().length} channels`);
