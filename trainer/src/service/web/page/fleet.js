// ---- Fleet: tiles, labels per second, devices ----

const SPAN_MS = 600000;
const BIN_MS = 5000;
// What the fleet brought is told so much later at the most.
const LATE_MS = 6000;

const model = (counter) => (counter > 0 ? `release ${counter}` : "first model");

/** What is wrong with a device: [level, words]. */
function troubles(device) {
  const found = [];
  if (!device.online) found.push(["bad", `last heard ${duration((fleet.at_ms - device.seen_ms) / 1000)} ago`]);
  const refused = device.refused == null ? "" : `refused release ${device.refused}`;
  if (refused || device.reason) found.push(["warn", sentence(refused, device.reason)]);
  if (device.evicted > 0) found.push(["warn", `${many(device.evicted, "label", "labels")} evicted on the device`]);
  if (device.conflicts > 0) found.push(["warn", `${many(device.conflicts, "label", "labels")} came again with other bytes`]);
  const changed = drifts(device).filter((one) => one.drifted);
  if (changed.length > 0) found.push(["warn", `labels have changed: ${changed.map(changeOf).join(", ")}`]);
  return found;
}

/** How a device's newest day of labels differs from its model's first days. */
const drifts = (device) => device.drift?.statistics ?? [];

const changeOf = (one) => `${one.name} ${share(one.before)} → ${share(one.after)}`;

/** The largest of them, those above the limit first. */
function driftCell(device) {
  const largest = [...drifts(device)].sort((a, b) => b.drifted - a.drifted || b.distance - a.distance)[0];
  const node = cell("Drift", largest?.drifted ? "number toned" : "number", largest ? share(largest.distance) : "–");
  node.title = drifts(device).map((one) => `${changeOf(one)}: ${share(one.distance)}`).join("\n");
  if (!largest && device.drift) node.title = `compared from ${clock(device.drift.reference_until_ms)} on`;
  return largest?.drifted ? toned(node, "warn") : node;
}

function renderFleet() {
  const { devices } = fleet;
  const online = devices.filter((device) => device.online).length;
  const missing = sum(devices, (device) => device.missing);
  const pending = sum(devices, (device) => device.pending);
  const lost = Math.max(0, missing - pending);
  const tiles = [
    ["Devices online", `${count(online)} of ${count(devices.length)}`, online < devices.length ? "warn" : "good"],
    ["Labels stored", count(sum(devices, (device) => device.stored)), ""],
    ["Frames stored", count(sum(devices, (device) => device.frames)), ""],
    ["On their way", count(Math.min(missing, pending)), ""],
    ["Lost", count(lost), lost > 0 ? "bad" : "good"],
    ["Evicted on devices", count(sum(devices, (device) => device.evicted)), ""],
  ];
  fill("tiles", tiles, () => tiles.map(([name, value, level]) => {
    return toned(make("div", { className: "card tile" }, make("b", {}, value), make("small", {}, name)), level);
  }));
  const shown = $("ailing").checked ? devices.filter((device) => troubles(device).length > 0) : devices;
  $("no-devices").hidden = devices.length > 0;
  fill("devices", [shown, Math.floor(fleet.at_ms / 60000)], () => shown.map(deviceRow));
  renderPace();
}

function deviceRow(device) {
  const found = troubles(device);
  const state = toned(make("span", { className: "toned" }, device.online ? "online" : "away"), device.online ? "good" : "bad");
  const words = found.map(([level, words]) => toned(make("small", { className: "toned" }, words), level));
  const trial = device.trial == null ? [] : [toned(make("small", { className: "toned" }, `release ${device.trial} on trial`), "wait")];
  const number = (name, n, level) => {
    const node = cell(name, n > 0 && level ? "number toned" : "number", count(n));
    return level ? toned(node, level) : node;
  };
  return make("tr", {},
    make("th", { scope: "row" }, device.device),
    cell("State", "", make("div", {}, state, ...words)),
    cell("Model", "", make("div", {}, model(device.confirmed), ...trial)),
    number("Stored", device.stored), number("Frames", device.frames), number("Pending", device.pending),
    number("Lost", Math.max(0, device.missing - device.pending), "bad"), number("Evicted", device.evicted, "warn"),
    number("Again", device.duplicates), driftCell(device));
}

/** The last span of BIN_MS of which all is told by now. */
const lastBin = () => Math.floor((fleet.at_ms - LATE_MS) / BIN_MS);

/** From the log: how many labels each span of BIN_MS brought, per second. */
function pace() {
  const to_bin = lastBin();
  const from_bin = to_bin - SPAN_MS / BIN_MS;
  const bins = new Map();
  const add = (bin, labels) => {
    if (bin >= from_bin) bins.set(bin, (bins.get(bin) ?? 0) + labels);
  };
  let before;
  for (const { at_ms, stored, new: own, seconds } of log.fleet) {
    // Of other collectors' labels, and of those that a line would have told that never came, the total tells.
    const labels = before === undefined ? own : Math.max(own, stored - before);
    before = stored;
    const [begun, span] = [at_ms - 1000 * seconds, Math.max(1, 1000 * seconds)];
    for (let bin = Math.max(from_bin, Math.floor(begun / BIN_MS)); bin * BIN_MS <= at_ms; bin += 1) {
      const part = Math.min(begun + span, (bin + 1) * BIN_MS) - Math.max(begun, bin * BIN_MS);
      add(bin, (labels * Math.max(0, part)) / span);
    }
  }
  // What was written by a centre that did not tell of the fleet: from the totals of each device. What came before its first is not known.
  const since_ms = log.fleet.length > 0 ? log.fleet[0].at_ms - 1000 * log.fleet[0].seconds : Infinity;
  const totals = new Map();
  for (const { event, at_ms, device, stored } of log.events) {
    if (event !== "labels" || at_ms > since_ms) continue;
    const before = totals.get(device);
    totals.set(device, stored);
    if (before !== undefined) add(Math.floor(at_ms / BIN_MS), Math.max(0, stored - before));
  }
  const oldest_ms = Math.min(since_ms, log.events.length > 0 ? log.events[0].at_ms : to_bin * BIN_MS);
  const from = Math.max(from_bin, Math.floor(oldest_ms / BIN_MS));
  const length = Math.max(0, to_bin - from);
  return Array.from({ length }, (_, i) => [(from + i + 0.5) * BIN_MS, ((bins.get(from + i) ?? 0) * 1000) / BIN_MS]);
}

function renderPace() {
  const to_ms = lastBin() * BIN_MS;
  const values = pace();
  fill("pace", [values, to_ms, chartWidth()], () => [paceChart(values, to_ms - SPAN_MS, to_ms)]);
  const latest = values.slice(-6);
  const now = latest.length > 0 ? sum(latest, ([, value]) => value) / latest.length : 0;
  write("pace-span", `${now.toFixed(1)} now, over the last ${duration(SPAN_MS / 1000)}`);
}
