// ---- Charts: a list of series over a common axis, drawn as SVG ----

const CHART = { height: 180, left: 44, right: 12, top: 10, bottom: 24 };

/** Drawn as wide as it is shown, so that its letters keep their size. */
const chartWidth = () => Math.max(280, document.querySelector("main").clientWidth - 34);

/** Where a value of [low, high] lies between two ends. */
const scaler = (low, high, from, to) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);

/** Round numbers over [low, high]. */
function ticks(low, high, wanted) {
  const rough = Math.max((high - low) / wanted, 1e-9);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough);
  const first = Math.ceil(low / step) * step;
  return Array.from({ length: Math.floor((high - first) / step + 1e-6) + 1 }, (_, i) => first + i * step);
}

/** An empty chart with its axes; `x` and `y` place values in it. */
function axes(label, [x_low, x_high], [y_low, y_high], marks, digits) {
  const { height, left, right, top, bottom } = CHART;
  const width = chartWidth();
  const x = scaler(x_low, x_high, left, width - right);
  const y = scaler(y_low, y_high, height - bottom, top);
  const svg = draw("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const value of ticks(y_low, y_high, 4)) {
    const at = y(value).toFixed(1);
    svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: at, y2: at }));
    svg.append(draw("text", { x: left - 6, y: at, "text-anchor": "end", "dominant-baseline": "middle" }, value.toFixed(digits)));
  }
  for (const [value, words] of marks) {
    svg.append(draw("text", { x: x(value).toFixed(1), y: height - 6, "text-anchor": "middle" }, words));
  }
  return { svg, x, y };
}

const points = (values, x, y) => values.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join("L");

/** Values over time, from 0 on: [ms, value]. */
function paceChart(values, from_ms, to_ms) {
  const most = Math.max(1, ...values.map(([, value]) => value));
  const marks = [0.2, 0.4, 0.6, 0.8].map((part) => {
    return [from_ms + part * (to_ms - from_ms), `−${duration(Math.round(((1 - part) * (to_ms - from_ms)) / 1000))}`];
  });
  const label = `Labels per second, at most ${most.toFixed(1)}`;
  const { svg, x, y } = axes(label, [from_ms, to_ms], [0, most * 1.1], marks, most < 5 ? 1 : 0);
  if (values.length === 0) return svg;
  const line = points(values, x, y);
  const [first, last] = [x(values[0][0]).toFixed(1), x(values.at(-1)[0]).toFixed(1)];
  svg.append(draw("path", { class: "area", d: `M${first},${y(0)}L${line}L${last},${y(0)}Z` }));
  svg.append(draw("path", { class: "line", d: `M${line}` }));
  return svg;
}

/** AP of the running model and of the student, round by round. */
function apChart(rounds) {
  const judged = rounds.filter((round) => round.running_ap != null || round.candidate_ap != null);
  if (judged.length === 0) return make("p", { className: "soft" }, "No model has been judged yet.");
  const all = judged.flatMap((round) => [round.running_ap, round.candidate_ap]).filter((ap) => ap != null).map(percent);
  const [low, high] = [Math.max(0, Math.min(...all) - 5), Math.min(100, Math.max(...all) + 5)];
  const [first, last] = [judged[0].round, judged.at(-1).round];
  const step = Math.max(1, Math.ceil(judged.length / 12));
  const marks = judged.filter((_, i) => i % step === 0).map((round) => [round.round, String(round.round)]);
  const label = `AP by round: ${judged.map((round) => `${round.round}: ${percent(round.candidate_ap).toFixed(1)}`).join(", ")}`;
  const { svg, x, y } = axes(label, [first - 0.5, last + 0.5], [low, high], marks, 0);
  for (const [name, key] of [["line running", "running_ap"], ["line candidate", "candidate_ap"]]) {
    const values = judged.filter((round) => round[key] != null).map((round) => [round.round, percent(round[key])]);
    if (values.length > 0) svg.append(draw("path", { class: name, d: `M${points(values, x, y)}` }));
  }
  for (const round of judged.filter(({ candidate_ap }) => candidate_ap != null)) {
    const dot = draw("circle", { cx: x(round.round).toFixed(1), cy: y(percent(round.candidate_ap)).toFixed(1), r: 5 });
    dot.append(draw("title", {}, sentence(`Round ${round.round}`, round.reason ?? "not decided")));
    svg.append(toned(dot, known(VERDICTS, round.decision, "wait")));
  }
  return svg;
}

/** Parts of a whole as one bar with its key: [words, number, level]. */
function partsBar(parts, whole) {
  const shown = parts.filter(([, n]) => n > 0);
  const bar = make("div", { className: "bar" });
  const key = make("div", { className: "key" });
  for (const [words, n, level] of shown) {
    const part = toned(make("span", {}), level);
    part.style.width = `${(100 * n) / Math.max(whole, 1)}%`;
    bar.append(part);
    key.append(make("span", {}, toned(make("i", {}), level), `${words}: ${count(n)}`));
  }
  return [bar, key];
}
