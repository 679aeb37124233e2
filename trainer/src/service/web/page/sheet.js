// ---- The sheet of a review: the picture, the people over it, and what fingers and mice do there ----

const MAX_ZOOM = 24;
// Pixels of the screen: of a keypoint's dot, of what counts as hitting it, of what counts as a movement.
const DOT = 6;
const REACH = matchMedia("(pointer: coarse)").matches ? 24 : 13;
const MOVED = 3;

function fitSheet() {
  const { clientWidth, clientHeight } = $("sheet-frame");
  const { width, height } = review.label;
  review.zoom = Math.min(clientWidth / width, clientHeight / height);
  review.x = (clientWidth - width * review.zoom) / 2;
  review.y = (clientHeight - height * review.zoom) / 2;
}

/** Larger or smaller around a point of the screen. */
function zoomBy(factor, [left, top], shift = [0, 0]) {
  const frame = $("sheet-frame").getBoundingClientRect();
  const { width, height } = review.label;
  const least = Math.min(frame.width / width, frame.height / height);
  const zoom = clamp(review.zoom * factor, least, Math.max(MAX_ZOOM, 4 * least));
  const move = (from, at, by) => at + by - ((at - from) / review.zoom) * zoom;
  review.x = move(review.x, left - frame.left, shift[0]);
  review.y = move(review.y, top - frame.top, shift[1]);
  review.zoom = zoom;
  renderSheet();
}

function zoomMiddle(factor) {
  const { left, top, width, height } = $("sheet-frame").getBoundingClientRect();
  zoomBy(factor, [left + width / 2, top + height / 2]);
}

/** What lies outside of the frame can be pulled in, and not out any further. */
function keepInFrame() {
  const { clientWidth, clientHeight } = $("sheet-frame");
  const [spare_x, spare_y] = [clientWidth - review.label.width * review.zoom, clientHeight - review.label.height * review.zoom];
  review.x = spare_x > 0 ? spare_x / 2 : clamp(review.x, spare_x, 0);
  review.y = spare_y > 0 ? spare_y / 2 : clamp(review.y, spare_y, 0);
}

/** A point of the screen in pixels of the picture. */
function spot({ clientX, clientY }) {
  const { left, top } = $("sheet").getBoundingClientRect();
  return [fine(clamp((clientX - left) / review.zoom, 0, review.label.width)), fine(clamp((clientY - top) / review.zoom, 0, review.label.height))];
}

function renderSheet() {
  keepInFrame();
  const { label, people, person, zoom } = review;
  const sheet = $("sheet");
  Object.assign(sheet.style, { width: `${label.width}px`, height: `${label.height}px` });
  sheet.style.transform = `translate(${review.x}px, ${review.y}px) scale(${zoom})`;
  // Lines and dots stay as thick as they are.
  sheet.style.setProperty("--unit", String(1 / zoom));
  $("sheet-frame").classList.toggle("placing", review.placing !== null);
  $("sheet-marks").setAttribute("viewBox", `0 0 ${label.width} ${label.height}`);
  // The chosen one on top.
  const order = people.map((_, i) => i).sort((a, b) => (a === person) - (b === person));
  $("sheet-marks").replaceChildren(...order.map((i) => drawMarks(people[i], i)));
}

const side = (k) => known(SIDES, skeleton.sides[k], SIDES.centre);

function drawMarks({ box: [x1, y1, x2, y2], keypoints }, i) {
  const unit = 1 / review.zoom;
  const isChosen = i === review.person;
  const group = draw("g", { class: isChosen || review.person < 0 ? "marks" : "marks pale" });
  const stroke = BOXES[i % BOXES.length];
  group.append(draw("rect", { class: "box", x: x1, y: y1, width: x2 - x1, height: y2 - y1, stroke, "data-person": i }));
  for (const [a, b] of skeleton.edges) {
    const [from, to] = [keypoints[a], keypoints[b]];
    if (!from?.[2] || !to?.[2]) continue;
    const ends = { x1: from[0], y1: from[1], x2: to[0], y2: to[1], stroke: between(side(a), side(b)) };
    group.append(draw("line", { class: from[2] + to[2] < 4 ? "limb hidden" : "limb", ...ends, "data-person": i }));
  }
  keypoints.forEach(([x, y, v], k) => {
    if (v === 0) return;
    if (isChosen && k === review.keypoint) group.append(draw("circle", { class: "ring", cx: x, cy: y, r: (DOT + 4) * unit }));
    const [fill, edge] = v === 2 ? [side(k), "#0b0e12"] : ["#0b0e12", side(k)];
    const dot = draw("circle", { class: "joint", cx: x, cy: y, r: DOT * unit, fill, stroke: edge, "data-person": i, "data-keypoint": k });
    dot.append(draw("title", {}, sentence(skeleton.names[k], VISIBILITY[v])));
    group.append(dot);
  });
  if (isChosen && isOperator() && x2 > x1) {
    for (const [x, y] of corners(chosen())) {
      group.append(draw("rect", { class: "corner", x: x - 5 * unit, y: y - 5 * unit, width: 10 * unit, height: 10 * unit, stroke }));
    }
  }
  return group;
}

const corners = ({ box: [x1, y1, x2, y2] }) => [[x1, y1], [x2, y1], [x1, y2], [x2, y2]];

// ---- Pointers: mouse, pen, fingers ----

/** What lies under a point: a keypoint before a corner, the chosen person's before others'. */
function hit([x, y]) {
  const reach = REACH / review.zoom;
  let best = null;
  const offer = (to_x, to_y, weight, found) => {
    const distance = Math.hypot(x - to_x, y - to_y);
    if (distance <= reach && (!best || distance * weight < best.distance)) best = { ...found, distance: distance * weight };
  };
  review.people.forEach(({ keypoints }, person) => {
    const weight = person === review.person ? 1 : 3;
    keypoints.forEach(([kx, ky, v], keypoint) => v > 0 && offer(kx, ky, weight, { kind: "keypoint", person, keypoint }));
  });
  if (chosen()) corners(chosen()).forEach(([cx, cy], corner) => offer(cx, cy, 2, { kind: "corner", person: review.person, corner }));
  return best;
}

function pointerDown(event) {
  if (event.button !== 0 || review.busy || event.target.closest("button")) return;
  event.preventDefault();
  $("sheet-frame").setPointerCapture(event.pointerId);
  review.pointers.set(event.pointerId, [event.clientX, event.clientY]);
  if (review.pointers.size > 1) {
    // What one finger began, two do not go on with.
    review.drag = null;
    return;
  }
  const found = review.placing ? null : hit(spot(event));
  const over = event.target.dataset.person;
  const drag = found ?? { kind: "sheet", person: over === undefined ? -1 : Number(over) };
  // Where it was taken: a dot does not jump to the pointer.
  const [x, y] = spot(event);
  const from = drag.kind === "keypoint" ? review.people[drag.person].keypoints[drag.keypoint] : [x, y];
  review.drag = { ...drag, was: drag.person === review.person && drag.keypoint === review.keypoint, isMoved: false, start: [event.clientX, event.clientY],
    grip: [x - from[0], y - from[1]] };
  if (drag.kind === "keypoint") choosePerson(drag.person, drag.keypoint);
}

function pointerMove(event) {
  const before = review.pointers.get(event.pointerId);
  if (!before) return;
  const now = [event.clientX, event.clientY];
  review.pointers.set(event.pointerId, now);
  if (review.pointers.size === 2) {
    const [other] = [...review.pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    const apart = (a, b) => Math.max(1, Math.hypot(a[0] - b[0], a[1] - b[1]));
    const shift = [(now[0] - before[0]) / 2, (now[1] - before[1]) / 2];
    return zoomBy(apart(now, other) / apart(before, other), [(before[0] + other[0]) / 2, (before[1] + other[1]) / 2], shift);
  }
  const { drag } = review;
  if (!drag) return;
  const isEdit = drag.kind !== "sheet" && isOperator();
  if (!drag.isMoved) {
    if (Math.hypot(now[0] - drag.start[0], now[1] - drag.start[1]) < MOVED) return;
    drag.isMoved = true;
    if (isEdit) remember();
  }
  if (isEdit) moveMark(drag, spot(event));
  else zoomBy(1, now, [now[0] - before[0], now[1] - before[1]]);
}

function moveMark({ kind, person, keypoint, corner, grip }, [x, y]) {
  const { width, height } = review.label;
  const one = review.people[person];
  if (kind === "keypoint") {
    const [to_x, to_y] = [fine(clamp(x - grip[0], 0, width)), fine(clamp(y - grip[1], 0, height))];
    one.keypoints[keypoint] = [to_x, to_y, one.keypoints[keypoint][2]];
    hold(one, to_x, to_y);
  } else {
    const [x1, y1, x2, y2] = one.box;
    // A box has two pixels at least, and no corner passes another.
    one.box = [
      corner % 2 === 0 ? clamp(x, 0, x2 - 2) : x1, corner < 2 ? clamp(y, 0, y2 - 2) : y1,
      corner % 2 === 1 ? clamp(x, x1 + 2, width) : x2, corner >= 2 ? clamp(y, y1 + 2, height) : y2,
    ];
  }
  renderSheet();
}

function pointerUp(event) {
  if (!review.pointers.delete(event.pointerId)) return;
  const { drag } = review;
  review.drag = null;
  if (!drag) return;
  if (!drag.isMoved && event.type === "pointerup") {
    if (review.placing) return place(spot(event), event.shiftKey);
    if (drag.kind === "keypoint" && drag.was) return cycle();
    if (drag.kind === "sheet") return choosePerson(drag.person, -1);
  }
  renderReview();
}

$("sheet-frame").addEventListener("pointerdown", pointerDown);
$("sheet-frame").addEventListener("pointermove", pointerMove);
for (const ended of ["pointerup", "pointercancel"]) $("sheet-frame").addEventListener(ended, pointerUp);
$("sheet-frame").addEventListener("wheel", (event) => {
  event.preventDefault();
  zoomBy(Math.exp(-event.deltaY / 400), [event.clientX, event.clientY]);
}, { passive: false });
