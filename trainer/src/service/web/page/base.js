"use strict";

const ANSWER_MS = 8000;
// Signing a release, or judging one, takes its time.
const WISH_MS = 120000;
const POLL_MS = 2000;
const SVG = "http://www.w3.org/2000/svg";

// ---- Small helpers. Words from devices only ever become text nodes and attribute values. ----

const $ = (id) => document.getElementById(id);
const known = (table, key, other) => (Object.hasOwn(table, key) ? table[key] : other);

function make(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function draw(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function toned(node, level) {
  node.dataset.level = level;
  return node;
}

/** A cell of a table; on a narrow page its column's name stands beside it. */
function cell(name, className, ...children) {
  const node = make("td", { className }, ...children);
  if (name) node.dataset.name = name;
  return node;
}

/** Writes only what is new, so that a selection on the page survives the next second. */
function write(id, words) {
  if ($(id).textContent !== words) $(id).textContent = words;
}

/** Replaces the children of `id` when `key` is another than last time. */
const keys = new Map();
function fill(id, key, children) {
  const whole = JSON.stringify(key);
  if (keys.get(id) === whole) return;
  keys.set(id, whole);
  $(id).replaceChildren(...children());
}

const count = (n) => (n ?? 0).toLocaleString("en");
const many = (n, one, more) => `${count(n)} ${n === 1 ? one : more}`;
const share = (n) => (n ?? 0).toFixed(2);
const sentence = (...parts) => parts.filter(Boolean).join(" · ");
const percent = (n) => 100 * (n ?? 0);
const sum = (rows, of) => rows.reduce((total, row) => total + of(row), 0);

function duration(secs) {
  const whole = Math.floor(Math.max(secs, 0));
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const [unit, name] = parts.find(([unit]) => whole >= unit) ?? parts[3];
  return `${Math.floor(whole / unit)} ${name}`;
}

function clock(ms) {
  const time = new Date(ms);
  const two = (n) => String(n).padStart(2, "0");
  const day = `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`;
  const hour = `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
  return time.toDateString() === new Date().toDateString() ? hour : `${day} ${hour}`;
}

// ---- Talking to the centre ----

/** An answer that is no use; its message is for the reader. */
class Trouble extends Error {}
/** The centre wants a token first. */
class Locked extends Error {}

let session = null;

async function ask(path, { method = "GET", body, wait_ms = ANSWER_MS } = {}) {
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if (method !== "GET" && session?.csrf) headers["X-CSRF-Token"] = session.csrf;
  const sent = { method, headers, cache: "no-store", signal: AbortSignal.timeout(wait_ms), body: body && JSON.stringify(body) };
  const answer = await fetch(path, sent).catch(() => {
    throw new Trouble("The centre does not answer");
  });
  const told = await answer.json().catch(() => ({}));
  if (answer.status === 401) throw new Locked(told.error);
  if (!answer.ok) {
    const trouble = new Trouble(told.error ?? `The centre answers with error ${answer.status}`);
    throw Object.assign(trouble, { status: answer.status });
  }
  return told;
}

const get = (path) => ask(`api/v1/${path}`);

const isOperator = () => session?.role === "operator";

/** Tells of something that was done, or was not. */
function tell(level, words) {
  toned($("told"), level).hidden = words === "";
  write("told", words);
}

/** Does what an operator wants, after a question. */
async function wish(question, path) {
  if (!confirm(question)) return;
  try {
    const { done } = await ask(`api/v1/${path}`, { method: "POST", wait_ms: WISH_MS });
    tell("good", `Done: ${done}`);
  } catch (error) {
    tell("bad", error instanceof Locked ? "You are not logged in any more." : error.message);
    if (error instanceof Locked) lock("");
  }
  poll();
}
