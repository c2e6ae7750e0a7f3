// The page as a whole: its key, its colours, its two views, and the line to the node.

import * as chat from "./chat.js";
import * as node from "./node.js";
import { ask, events, key, setKey } from "./stream.js";

const $ = (id) => document.getElementById(id);

/** Milliseconds before the line to the node is tried again: twice as long each time. */
const RETRY = { first: 400, most: 8000 };

let line = null;

function say(state, text) {
  $("status").dataset.state = state;
  if ($("status-text").textContent !== text) $("status-text").textContent = text;
}

function askForKey() {
  $("key-button").hidden = false;
  $("key-problem").textContent = key() ? "The server does not know this key." : "";
  say("refused", "needs a key");
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

const PHASES = {
  serving: ["live", "live"],
  leaving: ["waiting", "shutting down soon"],
  draining: ["waiting", "shutting down"],
  unready: ["waiting", "not ready"],
};

function take({ kind, data }) {
  const told = JSON.parse(data);
  if (kind === "node") {
    $("model").textContent = told.model;
    document.title = `${told.model} · lnserve`;
    chat.introduce(told);
    node.introduce(told);
  } else if (kind === "state") {
    node.take(told);
  }
  const [state, text] = PHASES[(told.now ?? told).phase] ?? PHASES.unready;
  say(state, text);
}

/** Keeps a line to the node, for as long as the page is looked at. */
async function watch() {
  line?.abort();
  const mine = (line = new AbortController());
  let pause = RETRY.first;
  while (!mine.signal.aborted) {
    try {
      const response = await ask("/v1/node/events", { signal: mine.signal });
      pause = RETRY.first;
      for await (const event of events(response)) take(event);
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error.status === 401) return askForKey();
      if (error instanceof SyntaxError) console.error(error);
    }
    if (mine.signal.aborted) return;
    say("lost", "reconnecting");
    await new Promise((resolve) => setTimeout(resolve, pause * (0.75 + Math.random() / 2)));
    pause = Math.min(pause * 2, RETRY.most);
  }
}

function startKey() {
  $("key-button").hidden = !key();
  $("key-button").addEventListener("click", () => {
    $("key-problem").textContent = "";
    $("key-dialog").showModal();
  });
  $("key-dialog").addEventListener("close", () => {
    const given = $("key").value.trim();
    $("key").value = "";
    if ($("key-dialog").returnValue === "use" && given) {
      setKey(given);
      watch();
    }
    $("question").focus();
  });
  // Enter in the field uses the key: the first button of the form would be taken otherwise.
  $("key").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    $("key-use").click();
  });
}

const THEMES = {
  system: { mark: "◐", next: "light", label: "as the system has them" },
  light: { mark: "☀", next: "dark", label: "light" },
  dark: { mark: "☾", next: "system", label: "dark" },
};

function setTheme(name) {
  const theme = THEMES[name] ?? THEMES.system;
  document.documentElement.dataset.theme = name;
  $("theme-mark").textContent = theme.mark;
  $("theme").setAttribute("aria-label", `Colours: ${theme.label}`);
  localStorage.setItem("lnserve-theme", name);
  node.redraw();
}

function startTheme() {
  setTheme(localStorage.getItem("lnserve-theme") ?? "system");
  $("theme").addEventListener("click", () => {
    setTheme((THEMES[document.documentElement.dataset.theme] ?? THEMES.system).next);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => node.redraw());
}

function setView(view) {
  document.body.dataset.view = view;
  $("view-chat").setAttribute("aria-pressed", view === "chat");
  $("view-node").setAttribute("aria-pressed", view === "node");
  node.redraw();
}

chat.start(askForKey);
node.start();
startKey();
startTheme();
$("view-chat").addEventListener("click", () => setView("chat"));
$("view-node").addEventListener("click", () => setView("node"));
document.addEventListener("visibilitychange", () => {
  if (document.hidden) line?.abort();
  else watch();
});
$("question").focus({ preventScroll: true });
if (!document.hidden) watch();
