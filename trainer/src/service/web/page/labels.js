// ---- Labels: pictures with skeletons over them ----

// Those of the command line's drawings: mmpose's sides, and boxes that tell neighbours apart.
const SIDES = { left: "rgb(0,255,0)", right: "rgb(255,128,0)", centre: "rgb(51,153,255)" };
const BOXES = ["#fd3", "#40e0d0", "#ff69b4", "#ba8cff", "#a8ff60", "#ffa07a", "#78beff", "#e6e678", "#ff82ff", "#82f0aa"];

const VERDICT_LEVELS = { accepted: "good", corrected: "good", rejected: "bad" };
// What is asked for, and the value that asks for nothing.
const RANGES = { min_score: 0, max_score: 1, min_agreement: 0, max_agreement: 1 };
const CHOICES = { verdict: "any", order: "newest" };

const gallery = { labels: [], next: null, asked: "", busy: false };

function query() {
  const wanted = new URLSearchParams({ limit: 24 });
  if ($("by-device").value) wanted.set("device", $("by-device").value);
  for (const [name, idle] of Object.entries(RANGES)) {
    const value = Number($(name).value);
    if (value !== idle) wanted.set(name, value.toFixed(2));
  }
  for (const [name, idle] of Object.entries(CHOICES)) {
    if ($(`by-${name}`).value !== idle) wanted.set(name, $(`by-${name}`).value);
  }
  return wanted;
}

/** The gallery from its first label on, or further ones. */
async function loadLabels(isMore) {
  if (gallery.busy) return;
  const wanted = query();
  const asked = wanted.toString();
  const goes_on = isMore && asked === gallery.asked && gallery.next != null;
  if (goes_on) wanted.set("before", gallery.next);
  gallery.busy = true;
  write("gallery-note", "Looking…");
  try {
    skeleton ??= await get("skeleton");
    const { labels, next, looked_at, sorted } = await get(`labels?${wanted}`);
    if (!goes_on) gallery.labels = [];
    const first = gallery.labels.length;
    gallery.labels.push(...labels);
    const shown = labels.map((label, i) => figure(label, first + i));
    if (goes_on) $("gallery").append(...shown);
    else $("gallery").replaceChildren(...shown);
    Object.assign(gallery, { next, asked });
    $("older").hidden = next == null;
    const none = $("gallery").children.length === 0 ? "No label is like that" : "";
    const further = next == null ? "" : `${many(looked_at, "label", "labels")} looked at`;
    write("gallery-note", sentence(none, further, sorted ? "" : "not all are sorted by doubt yet, look again"));
  } catch (error) {
    if (error instanceof Locked) lock("");
    write("gallery-note", error.message);
  } finally {
    gallery.busy = false;
  }
  // What was wanted changed meanwhile.
  if (query().toString() !== asked) loadLabels(false);
}

/** Whether somebody may say what a label is worth. */
const isJudgeable = (label) => label.frame && !label.refused && !label.unreadable;

/** Whom a label shows: by a person where one said it, otherwise by its device. */
function shownPeople(label) {
  const said = label.verdict?.instances;
  if (!said) return label.instances;
  return said.map(({ box, keypoints }) => ({ box, kept: true, keypoints: keypoints.map(([x, y, v]) => [x, y, v > 0 ? 1 : 0]) }));
}

function figure(label, at) {
  if (label.unreadable) {
    return make("figure", { className: "card" }, make("figcaption", {}, `Label ${label.id} of ${label.device} cannot be read`));
  }
  const people = shownPeople(label);
  const kept = people.filter((person) => person.kept).length;
  const dropped = people.length - kept;
  const words = sentence(many(kept, "person", "people"), dropped > 0 ? `${count(dropped)} not kept` : "");
  const overlay = draw("svg", { viewBox: `0 0 ${label.width} ${label.height}`, role: "img", "aria-label": `${label.device}: ${words}` });
  // The best last, on top.
  people.map((person, i) => [person, BOXES[i % BOXES.length]]).reverse().forEach(([person, colour]) => {
    overlay.append(drawPerson(person, colour));
  });
  const stage = isJudgeable(label) ? make("button", { type: "button", className: "stage", title: "Look at it large" })
    : make("div", { className: "stage" });
  if (isJudgeable(label)) stage.addEventListener("click", () => openReview(at));
  if (label.frame) stage.append(make("img", { src: picture(label), loading: "lazy", alt: "" }));
  stage.append(overlay);
  if (!label.frame) stage.append(make("p", {}, "no picture"));
  const best = label.instances[0];
  const scores = best ? `score ${share(best.score)}, views agree ${share(best.agreement)}` : "nobody";
  const changes = label.changes.map((change) => change.replaceAll("_", " "));
  const caption = make("figcaption", {},
    make("b", {}, sentence(label.device, label.camera)), make("br", {}), sentence(words, scores), make("br", {}),
    make("small", {}, sentence(clock(label.captured_ms || label.received_ms), model(label.model), ...changes, label.refused)));
  if (label.verdict) {
    const { verdict, at_ms } = label.verdict;
    caption.append(make("br", {}), toned(make("small", { className: "toned" }, sentence(verdict, clock(at_ms))), known(VERDICT_LEVELS, verdict, "")));
  }
  return make("figure", { className: "card" }, stage, caption);
}

const picture = (label) => `api/v1/labels/${Number(label.id)}/frame.jpg`;

/** A limb to the middle is of its side, one across of none. */
function between(a, b) {
  if (a === b || b === SIDES.centre) return a;
  return a === SIDES.centre ? b : SIDES.centre;
}

function drawPerson(person, colour) {
  const group = draw("g", { opacity: person.kept ? 1 : 0.6 });
  const [x1, y1, x2, y2] = person.box;
  const [width, height] = [Math.max(0, x2 - x1), Math.max(0, y2 - y1)];
  const box = { class: person.kept ? "box" : "box dropped", x: x1, y: y1, width, height, stroke: colour };
  const words = person.score == null ? "by hand" : `score ${share(person.score)}, views agree ${share(person.agreement)}`;
  group.append(draw("rect", box, draw("title", {}, words)));
  const joints = person.keypoints.map(([x, y, p], k) => ({ x, y, p, colour: known(SIDES, skeleton.sides[k], SIDES.centre) }));
  for (const [a, b] of skeleton.edges) {
    const [from, to] = [joints[a], joints[b]];
    if (!from || !to) continue;
    // As sure as the less sure of its ends.
    const limb = { class: "limb", x1: from.x, y1: from.y, x2: to.x, y2: to.y, stroke: between(from.colour, to.colour) };
    group.append(draw("line", { ...limb, opacity: Math.min(from.p, to.p) }));
  }
  const radius = Math.max(1.5, Math.hypot(x2 - x1, y2 - y1) / 90);
  joints.forEach(({ x, y, p, colour }, k) => {
    if (p === 0) return;
    const dot = draw("circle", { cx: x, cy: y, r: radius, fill: colour, opacity: p });
    group.append(dot);
    dot.append(draw("title", {}, `${skeleton.names[k]} ${share(p)}`));
  });
  return group;
}

function renderDevices() {
  const names = fleet.devices.map(({ device }) => device);
  const chosen = $("by-device").value;
  $("review-start").hidden = !isOperator();
  fill("by-device", names, () => [make("option", { value: "" }, "all"), ...names.map((name) => make("option", { value: name }, name))]);
  if ($("by-device").value !== chosen) $("by-device").value = names.includes(chosen) ? chosen : "";
}

let filterTimer = 0;
function filtered() {
  for (const name of Object.keys(RANGES)) write(`${name}-shown`, share(Number($(name).value)));
  clearTimeout(filterTimer);
  filterTimer = setTimeout(() => loadLabels(false), 250);
}
