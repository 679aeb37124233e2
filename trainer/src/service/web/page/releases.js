// ---- Releases and rounds ----

const VERDICTS = { release: "good", refuse: "bad" };
const MODEL_LEVELS = ["good", "wait", "warn", ""];

function renderReleases() {
  const { devices, releases: all, models } = releases;
  const running = models.filter(({ confirmed }) => confirmed > 0).sort((a, b) => b.counter - a.counter);
  // The newest four have a colour each, all older ones share one.
  const parts = running.map(({ counter, confirmed }, i) => [model(counter), confirmed, known(MODEL_LEVELS, i, "")]);
  const nobody = () => [make("p", { className: "soft" }, "No device has been heard of yet.")];
  fill("map", parts, () => (parts.length > 0 ? partsBar(parts, devices) : nobody()));
  $("no-releases").hidden = all.length > 0;
  fill("releases", [all, models, devices, session.role], () => all.map((release, i) => releaseRow(release, i === 0)));
}

function releaseRow(release, isNewest) {
  const { counter } = release;
  const said = releases.models.find((model) => model.counter === counter) ?? { confirmed: 0, trial: 0, refused: 0 };
  const parts = [["confirmed", said.confirmed, "good"], ["on trial", said.trial, "wait"], ["refused", said.refused, "bad"]];
  const progress = make("div", {}, ...partsBar(parts, releases.devices));
  if (parts.every(([, n]) => n === 0)) progress.append(make("small", {}, isNewest ? "no device has it yet" : "no device runs it"));
  const state = release.halted ? `halted: ${release.halted}` : release.complete ? "" : `wave ${release.wave} of ${release.waves}, ${release.share_percent} % of the fleet`;
  if (state) progress.append(make("small", { className: "state" }, state));
  const from = release.round == null ? "by hand" : `of round ${release.round}`;
  return make("tr", {},
    make("th", { scope: "row" }, `${counter} `, make("small", {}, sentence(release.name, from))),
    cell("Signed", "", clock(release.created_ms)),
    cell("Roll-out", "wide", progress),
    cell("", "number acts", ...(isOperator() && isNewest ? actions(release) : [])));
}

function actions({ counter, halted, complete }) {
  const named = [
    ...(halted ? [["Resume", "resume", `Offer release ${counter} to the devices again?`]]
      : [["Halt", "halt", `Offer release ${counter} to no further device?`]]),
    ...(halted || complete ? [] : [["Promote", "promote", `Offer release ${counter} to the next wave without proof of this one?`]]),
    ["Recall", "recall", `Recall release ${counter}? The model before it is released again, under a new counter.`],
  ];
  return named.map(([words, action, question]) => {
    const button = make("button", { type: "button" }, words);
    button.addEventListener("click", () => wish(question, `releases/${counter}/${action}`));
    return button;
  });
}

function renderRounds() {
  $("no-rounds").hidden = rounds.length > 0;
  $("start").hidden = !isOperator();
  fill("ap", [rounds, chartWidth()], () => [apChart(rounds)]);
  fill("rounds", rounds, () => [...rounds].reverse().map(roundRow));
}

function verdict(round) {
  if (round.decision === "release") return ["good", round.released == null ? "passes" : `release ${round.released}`];
  if (round.decision === "refuse") return ["bad", "refused"];
  if (round.failed) return ["warn", `fails, ${many(round.failures, "time", "times")}`];
  if (round.ended) return ["bad", "ended without a model"];
  return ["wait", round.trained ? "being judged" : "under way"];
}

/** By how many points of AP the student is above the running model, and the 95 % interval of that. */
function difference(round) {
  if (round.difference == null) return [];
  const points = (value) => `${value < 0 ? "−" : "+"}${Math.abs(percent(value)).toFixed(1)}`;
  const { ap, interval: [low, high] } = round.difference;
  return [make("small", {}, `AP ${points(ap)} (95 %: ${points(low)} to ${points(high)})`)];
}

function roundRow(round) {
  const [level, words] = verdict(round);
  const ap = (value) => (value == null ? "–" : percent(value).toFixed(1));
  const tau = (value) => (value == null ? "–" : value.toFixed(2));
  return make("tr", {},
    make("th", { scope: "row" }, `${round.round} `, make("small", {}, `labels of ${model(round.teacher)}`)),
    cell("Verdict", "", toned(make("span", { className: "toned" }, words), level), ...difference(round)),
    cell("Running", "number", ap(round.running_ap)), cell("Student", "number", ap(round.candidate_ap)),
    cell("τ", "number", tau(round.thresholds?.instance)), cell("τk", "number", tau(round.thresholds?.keypoint)),
    cell("Why", "wide", round.failed ?? round.reason ?? ""));
}
