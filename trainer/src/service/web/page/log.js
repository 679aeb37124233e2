// ---- The event log ----

const LEVELS = { error: "bad", refused: "warn", frame_refused: "warn", conflict: "warn", rejected: "warn", drift: "warn", released: "good" };
const LINES = 400;
// Many, and each worth little.
const COUNTS = ["labels", "fleet", "train"];
// Of pieces that are at least so large there are more.
const MORE_BYTES = 200000;
const PIECES = 16;
/** The newest events, and of those that tell of the whole fleet's labels as many as the chart needs. */
const log = { events: [], fleet: [], next: null };

async function followLog() {
  for (let piece = 0; piece < PIECES; piece += 1) {
    const { events, next } = await get(log.next === null ? "events" : `events?after=${log.next}`);
    const bytes = log.next === null ? 0 : next - log.next;
    // Another log, or one that lost its end: what comes is all that there is.
    if (bytes < 0) [log.events, log.fleet] = [[], []];
    log.next = next;
    log.events = log.events.concat(events).slice(-4000);
    log.fleet = log.fleet.concat(events.filter(({ event }) => event === "fleet")).slice(-300);
    if (bytes < MORE_BYTES) return;
  }
}

function level(event) {
  if (event.event === "broker" && !event.connected) return "warn";
  return known(LEVELS, event.event, event.refused != null ? "warn" : "");
}

/** An event's fields, the sentence first. */
function words(event) {
  const { at_ms: _at, event: _name, reason, message, ...rest } = event;
  const plain = (value) => {
    if (typeof value === "number") return Number.isInteger(value) ? String(value) : value.toPrecision(4);
    return typeof value === "object" && value !== null ? JSON.stringify(value) : String(value);
  };
  const fields = Object.entries(rest).filter(([, value]) => value !== null).map(([key, value]) => `${key}\u00a0${plain(value)}`);
  return sentence(message, reason, ...fields);
}

function renderLog() {
  const [counts, trouble] = [$("counts").checked, $("trouble").checked];
  const isShown = (event) => (counts || !COUNTS.includes(event.event)) && (!trouble || ["warn", "bad"].includes(level(event)));
  fill("lines", [log.next, counts, trouble], () => log.events.filter(isShown).slice(-LINES).reverse().map((event) => {
    const name = make("span", { className: level(event) ? "toned" : "" }, String(event.event).replaceAll("_", " "));
    return toned(make("li", {}, make("time", {}, clock(event.at_ms)), name, make("p", {}, words(event))), level(event));
  }));
}
