// ---- Review: one label large, with the people on it as somebody sees them ----

const MAX_PEOPLE = 20;
const MAX_UNDO = 200;
// By COCO's v.
const VISIBILITY = ["not there", "hidden", "visible"];

const review = {
  at: -1, label: null, version: 0, verdict: null, proposed: [], others: [],
  people: [], loaded: "[]", undo: [], person: -1, keypoint: -1, placing: null,
  zoom: 1, x: 0, y: 0, pointers: new Map(), drag: null, busy: false, isGuided: false, isPictured: false,
};

const clamp = (value, low, high) => Math.min(Math.max(value, low), Math.max(low, high));
/** To a hundredth of a pixel. */
const fine = (value) => Math.round(value * 100) / 100;
const isChanged = () => JSON.stringify(review.people) !== review.loaded;
const isProposed = () => JSON.stringify(review.people) === JSON.stringify(review.proposed);
const chosen = () => review.people[review.person];

function remark(level, words) {
  toned($("review-note"), level).hidden = words === "";
  write("review-note", words);
}

// ---- From label to label ----

/** Nothing is judged or changed while something is asked of the centre: by then it could be another label. */
async function alone(does) {
  if (review.busy) return;
  review.busy = true;
  renderReview();
  try {
    await does();
  } finally {
    review.busy = false;
    renderReview();
  }
}

const openReview = (at) => alone(() => show(at));

async function show(at) {
  const label = gallery.labels[at];
  if (!label) return;
  let isPictured = true;
  try {
    const { version, verdict, proposed, others } = await get(`labels/${Number(label.id)}/verdict`);
    const people = structuredClone(verdict?.instances ?? proposed);
    // Until it has come, the picture before it would be seen under these marks.
    $("sheet-picture").src = picture(label);
    await $("sheet-picture").decode().catch(() => { isPictured = false; });
    Object.assign(review, { at, label, version, verdict, proposed, others, people, loaded: JSON.stringify(people), undo: [], isPictured });
    Object.assign(review, { person: people.length === 1 ? 0 : -1, keypoint: -1, placing: null, drag: null });
  } catch (error) {
    if (error instanceof Locked) return lock("The session has ended.");
    return ($("review").open ? remark : tell)("bad", error.message);
  }
  if (!$("review").open) $("review").showModal();
  remark("wait", "");
  if (!isPictured) remark("bad", "The picture has not come: without it nothing can be judged.");
  fitSheet();
}

/** Undecided labels, the most doubtful first. */
async function startReview() {
  $("by-verdict").value = "none";
  $("by-order").value = "doubt";
  await loadLabels(false);
  // Another look may have been under way.
  for (let tries = 0; tries < 50 && gallery.asked !== query().toString(); tries += 1) await new Promise((done) => setTimeout(done, 100));
  Object.assign(review, { at: -1, label: null, people: [], loaded: "[]", placing: null });
  await step(1);
}

const mayLeave = () => !isChanged() || confirm("Leave this label without saving what you changed?");

async function step(by) {
  if (!review.busy && mayLeave()) await alone(() => move(by));
}

async function move(by) {
  const next = () => {
    let at = review.at + by;
    while (gallery.labels[at] && !isJudgeable(gallery.labels[at])) at += by;
    return at;
  };
  // One request looks at so many labels, and may find none.
  for (let tries = 0; tries < 5 && by > 0 && !gallery.labels[next()] && gallery.next != null; tries += 1) await loadLabels(true);
  if (gallery.labels[next()]) return show(next());
  const words = by > 0 ? "No further label is like that." : "This is the first one.";
  if ($("review").open) remark("wait", words);
  else tell("wait", words);
}

function leave() {
  if (review.placing) return endPlacing();
  if (mayLeave()) $("review").close();
}

// ---- Verdicts ----

/** Tells the centre; true when it holds. Who was slower than another keeps what is on the screen, and may say it again. */
async function say(method, path, body) {
  if (review.busy || !isOperator()) return false;
  const { label } = review;
  const sent = JSON.stringify(review.people);
  review.busy = true;
  renderReview();
  try {
    const { version, verdict } = await ask(`api/v1/labels/${Number(label.id)}/verdict${path}`, { method, body });
    Object.assign(label, { version, verdict });
    Object.assign(review, { version, verdict, loaded: sent, undo: [] });
    $("gallery").children[review.at].replaceWith(figure(label, review.at));
    return true;
  } catch (error) {
    if (error instanceof Locked) {
      lock("The session has ended.");
    } else if (error.status === 409) {
      const { version, verdict } = await get(`labels/${Number(label.id)}/verdict`).catch(() => review);
      Object.assign(review, { version, verdict });
      remark("warn", `Somebody else judged it meanwhile: ${verdict?.verdict ?? "undecided"}. Say yours again if it is to hold.`);
    } else {
      remark("bad", error.message);
    }
    return false;
  } finally {
    review.busy = false;
    renderReview();
  }
}

const give = async (verdict, instances) => {
  if (await say("PUT", "", { version: review.version, verdict, instances })) await step(1);
};

function accept() {
  if (!isProposed()) return remark("warn", "You changed it: save it, or go back to the device's label.");
  give("accepted");
}

function save() {
  if (review.placing) endPlacing();
  if (isProposed()) return remark("warn", "Nothing is changed: accept it.");
  give("corrected", review.people);
}

const reject = () => give("rejected");

async function takeBack() {
  if (review.verdict && (await say("DELETE", `?version=${review.version}`))) remark("good", "It is undecided again.");
}

// ---- Changes, each of which can be undone ----

function remember() {
  const { people, person, keypoint, placing } = review;
  review.undo.push(structuredClone({ people, person, keypoint, placing }));
  if (review.undo.length > MAX_UNDO) review.undo.shift();
}

function undo() {
  const before = review.undo.pop();
  if (!before) return;
  Object.assign(review, before, { drag: null });
  renderReview();
}

function backToDevice() {
  remember();
  Object.assign(review, { people: structuredClone(review.proposed), person: -1, keypoint: -1, placing: null });
  renderReview();
}

function choosePerson(person, keypoint) {
  if (review.placing) endPlacing();
  Object.assign(review, { person, keypoint });
  renderReview();
}

/** visible → hidden → not there. */
function cycle() {
  const keypoint = chosen()?.keypoints[review.keypoint];
  if (!keypoint || keypoint[2] === 0 || !isOperator()) return;
  remember();
  keypoint[2] -= 1;
  if (keypoint[2] === 0) [keypoint[0], keypoint[1]] = [0, 0];
  renderReview();
}

function removePerson(person) {
  if (!review.people[person] || !isOperator()) return;
  remember();
  review.people.splice(person, 1);
  Object.assign(review, { person: -1, keypoint: -1, placing: null });
  renderReview();
}

function addOther(other) {
  if (review.placing) endPlacing();
  if (review.people.length >= MAX_PEOPLE) return remark("warn", `A label has at most ${MAX_PEOPLE} people.`);
  remember();
  review.people.push(structuredClone(other));
  choosePerson(review.people.length - 1, -1);
}

/** A box around what is placed, with room for what lies around joints. */
function boxAround(keypoints) {
  const { width, height } = review.label;
  const placed = keypoints.filter(([, , v]) => v > 0);
  const [xs, ys] = [placed.map(([x]) => x), placed.map(([, y]) => y)];
  const [x1, y1, x2, y2] = [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
  const room = 2 + 0.1 * Math.max(x2 - x1, y2 - y1);
  return [clamp(x1 - room, 0, width), clamp(y1 - room, 0, height), clamp(x2 + room, 0, width), clamp(y2 + room, 0, height)].map(fine);
}

// ---- Placing keypoints one after another ----

function addPerson() {
  if (!isOperator()) return;
  if (review.people.length >= MAX_PEOPLE) return remark("warn", `A label has at most ${MAX_PEOPLE} people.`);
  remember();
  const keypoints = skeleton.names.map(() => [0, 0, 0]);
  review.people.push({ box: [0, 0, 0, 0], keypoints });
  Object.assign(review, { person: review.people.length - 1, keypoint: -1, placing: { rest: keypoints.map((_, k) => k), isNew: true } });
  renderReview();
}

function placeOne(keypoint) {
  Object.assign(review, { keypoint: -1, placing: { rest: [keypoint], isNew: chosen().box.every((edge) => edge === 0) } });
  renderReview();
}

function place([x, y], isHidden) {
  const { placing } = review;
  remember();
  const person = chosen();
  const keypoint = placing.rest.shift();
  person.keypoints[keypoint] = [x, y, isHidden ? 1 : 2];
  if (placing.isNew) person.box = boxAround(person.keypoints);
  else hold(person, x, y);
  review.keypoint = keypoint;
  if (placing.rest.length === 0) endPlacing();
  renderReview();
}

function skip() {
  remember();
  review.placing.rest.shift();
  if (review.placing.rest.length === 0) endPlacing();
  renderReview();
}

function endPlacing() {
  review.placing = null;
  // Of whom nothing was placed, nobody is there.
  if (chosen()?.keypoints.every(([, , v]) => v === 0) && chosen().box.every((edge) => edge === 0)) {
    review.people.splice(review.person, 1);
    review.person = -1;
  }
  renderReview();
}

/** A box holds the keypoints that somebody puts outside of it. */
function hold(person, x, y) {
  const [x1, y1, x2, y2] = person.box;
  person.box = [Math.min(x1, x), Math.min(y1, y), Math.max(x2, x), Math.max(y2, y)];
}

// ---- Beside the sheet ----

function renderReview() {
  if (!review.label) return;
  const { label, verdict, placing, busy } = review;
  const said = verdict ? `${verdict.verdict} by an ${verdict.role}, ${clock(verdict.at_ms)}` : "undecided";
  write("review-title", sentence(label.device, label.camera, `label ${label.id}`));
  write("review-about", sentence(said, clock(label.captured_ms || label.received_ms), model(label.model), ...label.changes.map((c) => c.replaceAll("_", " "))));
  const may = isOperator() && !busy && review.isPictured;
  $("review-people").inert = busy;
  const able = {
    accept: may && isProposed(), save: may && !isProposed(), reject: may, undo: review.undo.length > 0, add: may,
    device: may && !isProposed(), back: may && verdict != null,
  };
  for (const [name, is] of Object.entries(able)) $(`review-${name}`).disabled = !is;
  for (const name of ["review-verdicts", "review-tools", "review-help"]) $(name).hidden = !isOperator();
  if (placing) {
    const name = skeleton.names[placing.rest[0]].replaceAll("_", " ");
    remark("wait", `Click the ${name}, with Shift where it is hidden. Esc: that is enough.`);
  } else if (review.isGuided) {
    remark("wait", "");
  }
  review.isGuided = placing !== null;
  $("review-add").firstChild.data = placing ? "It is not there " : "Add a person ";
  $("review-people").replaceChildren(...review.people.map(personCard), ...otherCards());
  renderSheet();
}

function swatch(colour) {
  const node = make("i", { className: "swatch" });
  node.style.background = colour;
  return node;
}

function act(words, does, className = "") {
  const button = make("button", { type: "button", className }, ...[words].flat());
  button.addEventListener("click", does);
  return button;
}

function personCard({ keypoints }, i) {
  const isChosen = i === review.person;
  const placed = keypoints.filter(([, , v]) => v > 0).length;
  const name = act([swatch(BOXES[i % BOXES.length]), `Person ${i + 1}`, make("small", {}, `${placed} of ${keypoints.length} keypoints`)],
    () => choosePerson(isChosen ? -1 : i, -1), "name");
  name.setAttribute("aria-expanded", String(isChosen));
  const head = make("div", { className: "row" }, name);
  if (isOperator()) head.append(act("Remove", () => removePerson(i)));
  const card = make("div", { className: isChosen ? "person chosen" : "person" }, head);
  if (isChosen) card.append(make("div", { className: "keypoints" }, ...keypoints.map((keypoint, k) => keypointButton(keypoint, k))));
  return card;
}

function keypointButton([, , v], k) {
  const state = make("small", {}, VISIBILITY[v]);
  const button = act([swatch(v > 0 ? side(k) : "transparent"), skeleton.names[k].replaceAll("_", " "), state], () => {
    if (v === 0) return placeOne(k);
    review.keypoint = k;
    cycle();
  });
  button.title = v === 0 ? "Place it" : `Make it ${VISIBILITY[v - 1]}`;
  button.disabled = !isOperator();
  button.setAttribute("aria-pressed", String(k === review.keypoint));
  return button;
}

/** Whom the device saw and did not keep. */
function otherCards() {
  const taken = review.people.map(({ box }) => JSON.stringify(box));
  const left = review.others.filter(({ box }) => !taken.includes(JSON.stringify(box)));
  if (left.length === 0 || !isOperator()) return [];
  const rows = left.map((other, i) => make("div", { className: "row" }, make("span", {}, `Not kept ${i + 1}`), act("Add", () => addOther(other))));
  return [make("p", { className: "soft" }, "The device saw these, too, and was not sure:"), ...rows];
}

const KEYS = {
  a: accept, s: save, r: reject, u: undo, v: cycle, n: () => (review.placing ? skip() : addPerson()),
  Delete: () => removePerson(review.person), Backspace: () => removePerson(review.person), Escape: leave,
  ArrowLeft: () => step(-1), ArrowRight: () => step(1), "+": () => zoomMiddle(1.25), "=": () => zoomMiddle(1.25), "-": () => zoomMiddle(0.8),
  0: () => { fitSheet(); renderSheet(); },
};

function pressed(event) {
  if (!$("review").open || event.altKey || review.busy) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const isUndo = (event.ctrlKey || event.metaKey) && key === "z";
  if ((event.ctrlKey || event.metaKey) && !isUndo) return;
  const does = isUndo ? undo : known(KEYS, key, null);
  if (!does || (event.repeat && !["+", "=", "-"].includes(key))) return;
  event.preventDefault();
  does();
}

const BUTTONS = {
  accept, save, reject, undo, add: KEYS.n, device: backToDevice, back: takeBack, previous: () => step(-1), next: () => step(1), close: leave,
};
for (const [name, does] of Object.entries(BUTTONS)) $(`review-${name}`).addEventListener("click", () => does());
$("zoom-in").addEventListener("click", () => zoomMiddle(1.25));
$("zoom-out").addEventListener("click", () => zoomMiddle(0.8));
$("zoom-fit").addEventListener("click", KEYS[0]);
$("review").addEventListener("cancel", (event) => {
  event.preventDefault();
  leave();
});
document.addEventListener("keydown", pressed);
addEventListener("resize", () => {
  if (!$("review").open) return;
  fitSheet();
  renderSheet();
});
