// ---- The event log ----

const LEVELS = { error: "bad", refused: "warn", frame_refused: "warn", conflict: "warn", rejected: "warn", drift: "warn", released: "good" };
const LINES = 400;
// Many, and each worth little.
const COUNTS = ["labels", "train"];
const log = { events: [], next: null };

async function followLog() {
  const { events, next } = await get(log.next === null ? "events" : `events?after=${log.next}`);
  log.next = next;
  log.events = log.events.concat(events).slice(-4000);
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
