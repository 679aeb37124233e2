// ---- Labels: pictures with skeletons over them ----

// Those of the command line's drawings: mmpose's sides, and boxes that tell neighbours apart.
const SIDES = { left: "rgb(0,255,0)", right: "rgb(255,128,0)", centre: "rgb(51,153,255)" };
const BOXES = ["#fd3", "#40e0d0", "#ff69b4", "#ba8cff", "#a8ff60", "#ffa07a", "#78beff", "#e6e678", "#ff82ff", "#82f0aa"];

const gallery = { next: null, asked: "", busy: false };

function query() {
  const wanted = new URLSearchParams({ limit: 24 });
  if ($("by-device").value) wanted.set("device", $("by-device").value);
  for (const name of ["score", "agreement"]) {
    const value = Number($(`by-${name}`).value);
    if (value > 0) wanted.set(`min_${name}`, value.toFixed(2));
  }
  return wanted;
}

/** The gallery from its newest label on, or further ones. */
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
    const { labels, next, looked_at } = await get(`labels?${wanted}`);
    const shown = labels.map(figure);
    if (goes_on) $("gallery").append(...shown);
    else $("gallery").replaceChildren(...shown);
    Object.assign(gallery, { next, asked });
    $("older").hidden = next == null;
    const none = $("gallery").children.length === 0 ? "No label is like that" : "";
    write("gallery-note", sentence(none, next == null ? "" : `${many(looked_at, "label", "labels")} looked at`));
  } catch (error) {
    if (error instanceof Locked) lock("");
    write("gallery-note", error.message);
  } finally {
    gallery.busy = false;
  }
  // What was wanted changed meanwhile.
  if (query().toString() !== asked) loadLabels(false);
}

function figure(label) {
  if (label.unreadable) {
    return make("figure", { className: "card" }, make("figcaption", {}, `Label ${label.id} of ${label.device} cannot be read`));
  }
  const kept = label.instances.filter((person) => person.kept).length;
  const dropped = label.instances.length - kept;
  const words = sentence(many(kept, "person", "people"), dropped > 0 ? `${count(dropped)} not kept` : "");
  const overlay = draw("svg", { viewBox: `0 0 ${label.width} ${label.height}`, role: "img", "aria-label": `${label.device}: ${words}` });
  // The best last, on top.
  label.instances.map((person, i) => [person, BOXES[i % BOXES.length]]).reverse().forEach(([person, colour]) => {
    overlay.append(drawPerson(person, colour));
  });
  const stage = make("div", { className: "stage" });
  if (label.frame) stage.append(make("img", { src: `api/v1/labels/${Number(label.id)}/frame.jpg`, loading: "lazy", alt: "" }));
  stage.append(overlay);
  if (!label.frame) stage.append(make("p", {}, "no picture"));
  const best = label.instances[0];
  const scores = best ? `score ${share(best.score)}, views agree ${share(best.agreement)}` : "nobody";
  const changes = label.changes.map((change) => change.replaceAll("_", " "));
  return make("figure", { className: "card" }, stage, make("figcaption", {},
    make("b", {}, sentence(label.device, label.camera)), make("br", {}), sentence(words, scores), make("br", {}),
    make("small", {}, sentence(clock(label.captured_ms || label.received_ms), model(label.model), ...changes, label.refused))));
}

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
  group.append(draw("rect", box, draw("title", {}, `score ${share(person.score)}, views agree ${share(person.agreement)}`)));
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
    const dot = draw("circle", { cx: x, cy: y, r: radius, fill: colour, opacity: p });
    group.append(dot);
    dot.append(draw("title", {}, `${skeleton.names[k]} ${share(p)}`));
  });
  return group;
}

function renderDevices() {
  const names = fleet.devices.map(({ device }) => device);
  const chosen = $("by-device").value;
  fill("by-device", names, () => [make("option", { value: "" }, "all"), ...names.map((name) => make("option", { value: name }, name))]);
  if ($("by-device").value !== chosen) $("by-device").value = names.includes(chosen) ? chosen : "";
}

let filterTimer = 0;
function filtered() {
  write("score-shown", share(Number($("by-score").value)));
  write("agreement-shown", share(Number($("by-agreement").value)));
  clearTimeout(filterTimer);
  filterTimer = setTimeout(() => loadLabels(false), 250);
}
