// ---- What is on, and how it is kept up to date ----

const TABS = ["fleet", "releases", "rounds", "labels", "log"];

let fleet = null;
let releases = null;
let rounds = [];
let skeleton = null;
let locked = false;
let polling = false;
let timer = 0;

const tab = () => (TABS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "fleet");

/** What a tab needs of the centre, and how it is shown. The log tells of labels per second, too. */
const NEEDS = {
  fleet: async () => {
    [fleet] = await Promise.all([get("fleet"), followLog()]);
    renderFleet();
  },
  releases: async () => {
    releases = await get("releases");
    renderReleases();
  },
  rounds: async () => {
    ({ rounds } = await get("rounds"));
    renderRounds();
  },
  labels: async () => {
    fleet = await get("fleet");
    renderDevices();
    if (gallery.asked === "") await loadLabels(false);
  },
  log: async () => {
    await followLog();
    renderLog();
  },
};

function choose() {
  for (const name of TABS) $(`tab-${name}`).hidden = name !== tab();
  for (const link of $("tabs").children) link.setAttribute("aria-current", link.hash === `#${tab()}` ? "page" : "false");
  tell("good", "");
  poll();
}

/** Never twice at a time, and not while nobody looks or the token is missing. */
async function poll() {
  clearTimeout(timer);
  if (polling || locked || document.hidden) return;
  polling = true;
  const shown = tab();
  try {
    if (session === null) await meet();
    await NEEDS[shown]();
    stand("good", `Up to date at ${clock(Date.now())}`);
  } catch (error) {
    if (error instanceof Locked) lock(session === null ? "" : "The session has ended.");
    else stand("bad", error instanceof Trouble ? error.message : `The page failed: ${error.message}`);
  } finally {
    polling = false;
    // Another tab was opened meanwhile.
    timer = setTimeout(poll, shown === tab() ? POLL_MS : 0);
  }
}

function stand(level, words) {
  toned($("state"), level);
  write("state", words);
}

/** Who the centre thinks that we are. */
async function meet() {
  session = await get("session");
  write("site", session.site);
  document.title = `${session.site} · Omnilabel centre`;
  write("who", sentence(session.role, session.version));
  $("leave").hidden = session.csrf === null;
  $("enter").hidden = session.csrf !== null || !session.log_in;
  $("login").hidden = true;
  $("tabs").hidden = false;
  document.querySelector("main").hidden = false;
}

function lock(refusal) {
  if ($("review").open) $("review").close();
  locked = true;
  session = null;
  stand("wait", "A token is needed");
  write("who", "");
  for (const node of [$("tabs"), document.querySelector("main"), $("leave"), $("enter")]) node.hidden = true;
  $("login").hidden = false;
  write("refusal", refusal);
  $("token").focus();
}

async function logIn(event) {
  event.preventDefault();
  const token = $("token").value.trim();
  $("token").value = "";
  try {
    await ask("login", { method: "POST", body: { token } });
    locked = false;
    session = null;
    keys.clear();
    poll();
  } catch (error) {
    write("refusal", error.message);
  }
}

async function logOut() {
  try {
    await ask("logout", { method: "POST" });
  } catch (error) {
    if (!(error instanceof Locked)) return tell("bad", error.message);
  }
  session = null;
  keys.clear();
  poll();
}

$("login").addEventListener("submit", logIn);
$("leave").addEventListener("click", logOut);
$("enter").addEventListener("click", () => lock(""));
$("filter").addEventListener("submit", (event) => event.preventDefault());
for (const name of ["device", "verdict", "order"]) $(`by-${name}`).addEventListener("change", () => loadLabels(false));
for (const name of Object.keys(RANGES)) $(name).addEventListener("input", filtered);
$("overlay").addEventListener("change", () => $("gallery").classList.toggle("plain", !$("overlay").checked));
$("review-start").addEventListener("click", startReview);
$("newest").addEventListener("click", () => loadLabels(false));
$("older").addEventListener("click", () => loadLabels(true));
$("ailing").addEventListener("change", () => fleet && renderFleet());
$("trouble").addEventListener("change", renderLog);
$("counts").addEventListener("change", renderLog);
$("start").addEventListener("click", () => wish("Start a round with the labels that are there?", "rounds/start"));
document.addEventListener("visibilitychange", poll);
addEventListener("hashchange", choose);
choose();
