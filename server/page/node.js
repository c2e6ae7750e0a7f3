// The node as it lives: figures, steps, blocks, pages, ranks, queue, latency.

import { blockWords, drawBlocks, milliseconds, Strip } from "./charts.js";

const $ = (id) => document.getElementById(id);

/** Steps that the page remembers. */
const N_STEPS = 512;

/** Steps that ranks' bars are the mean of. */
const N_RANK_STEPS = 50;

/** Milliseconds over which tokens a second are counted. */
const RATE_MS = 3000;

let about = null;
let now = null;
let steps = [];
let samples = [];
let strip = null;

function make(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function whole(n) {
  return n >= 1e6 ? `${(n / 1e6).toFixed(2)} M` : n.toLocaleString("en");
}

function percent(share) {
  return `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
}

/** Tokens a second over the last samples: `[generated, prompt]`. */
function rates() {
  const [first, last] = [samples[0], samples.at(-1)];
  if (!first || last.at - first.at < 100) return [0, 0];
  const s = (last.at - first.at) / 1000;
  return [(last.generated - first.generated) / s, (last.prompt - first.prompt) / s];
}

function figures() {
  const [generated, prompt] = rates();
  const pages = now.groups.reduce((n, group) => n + group.n_pages, 0);
  const used = now.groups.reduce((n, group) => n + group.n_used, 0);
  const { first_token: first, token_gap: gap } = now.latency;
  const time = (quantiles, ms) => (quantiles.n ? milliseconds(ms) : "–");
  const shown = [
    ["Answers", generated < 10 ? generated.toFixed(1) : whole(Math.round(generated)), "tokens/s"],
    ["Prompts", whole(Math.round(prompt)), "tokens/s"],
    ["Running", `${now.n_running}`, `of ${about.n_slots}`],
    ["KV in use", percent(pages ? used / pages : 0), `of ${whole(pages)} pages`],
    ["First token", time(first, first.p50_ms), first.n ? `p95 ${milliseconds(first.p95_ms)}` : ""],
    ["Token gap", time(gap, gap.p50_ms), gap.n ? `p95 ${milliseconds(gap.p95_ms)}` : ""],
  ];
  const cells = shown.map(([name, value, note]) => {
    const cell = make("div");
    const dd = make("dd");
    dd.append(make("span", "value", value), make("span", "note", ` ${note}`));
    cell.append(make("dt", "", name), dd);
    return cell;
  });
  $("figures").replaceChildren(...cells);
}

/** A bar of parts: `[class, share, words]`. */
function bar(parts, words) {
  const made = make("div", "bar");
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", words);
  for (const [className, share] of parts) {
    const part = make("span", className);
    part.style.width = `${Math.max(0, Math.min(100, 100 * share)).toFixed(2)}%`;
    made.append(part);
  }
  return made;
}

function line(name, value, drawn) {
  const made = make("div", "line");
  made.append(make("span", "name", name), make("span", "value", value));
  if (drawn) made.append(drawn);
  return made;
}

function groupName(group) {
  return group.window ? `Window of ${whole(group.window)}` : "Full attention";
}

function pages() {
  const lines = now.groups.map((group, idx) => {
    const { n_pages: all, n_used: used, n_cached: cached, n_host: host } = group;
    const blocks = about.groups[idx].n_blocks;
    const held = `${whole(used)} in use, ${whole(cached)} cached`;
    const words = `${held}, of ${whole(all)} pages for ${blocks} blocks`;
    const drawn = bar([["used", used / all], ["cached", cached / all]], words);
    const onHost = host ? `, ${whole(host)} on the host` : "";
    return line(groupName(about.groups[idx]), `${held}${onHost}`, drawn);
  });
  if (!lines.length) lines.push(make("p", "readout", "This model keeps no KV."));
  const { prompt, cached } = now.tokens;
  if (prompt + cached > 0) {
    const hit = cached / (prompt + cached);
    const words = `${whole(cached)} of ${whole(prompt + cached)} tokens`;
    lines.push(line("Cache hits", words, bar([["cached hit", hit]], percent(hit))));
  }
  $("pages").replaceChildren(...lines);
}

function queue() {
  const taken = now.n_running / about.n_slots;
  const running = bar([["used", taken]], percent(taken));
  const lines = [line("Slots", `${now.n_running} of ${about.n_slots}`, running)];
  const levels = now.n_waiting_by_level;
  const waiting = (name, n) => {
    const share = about.n_waiting_max ? n / about.n_waiting_max : 0;
    return line(name, `${n} of ${about.n_waiting_max}`, bar([["wait", share]], percent(share)));
  };
  if (levels.length > 1) {
    levels.forEach((n, idx) => lines.push(waiting(`Waiting, priority ${idx + 1}`, n)));
  } else {
    lines.push(waiting("Waiting", now.n_waiting));
  }
  if (now.n_preemptions) lines.push(line("Gave way for want of pages", whole(now.n_preemptions)));
  $("queue").replaceChildren(...lines);
}

/** Means of the ranks' last steps, in milliseconds. */
function rankTimes() {
  const last = steps.slice(-N_RANK_STEPS);
  return Array.from({ length: about.n_ranks }, (_, rank) => {
    const mean = (what) =>
      last.reduce((sum, step) => sum + (step.ranks[rank]?.[what] ?? 0), 0) / (last.length || 1);
    const [served, exchanged, waited] = ["served_ms", "exchanged_ms", "waited_ms"].map(mean);
    return { served, exchanging: Math.max(0, exchanged - waited), waited };
  });
}

function ranks() {
  const times = rankTimes();
  const most = Math.max(...times.map((time) => time.served), 1e-6);
  const exchanges = about.n_ranks > 1;
  const lines = times.map(({ served, exchanging, waited }, rank) => {
    const computing = served - exchanging - waited;
    const words = exchanges
      ? `${milliseconds(computing)} + ${milliseconds(exchanging)} + ${milliseconds(waited)}`
      : milliseconds(served);
    const said = exchanges
      ? `computes ${milliseconds(computing)}, exchanges ${milliseconds(exchanging)}, ` +
        `waits ${milliseconds(waited)}`
      : `busy ${milliseconds(served)}`;
    const shares = { used: computing, exchange: exchanging, wait: waited };
    const parts = Object.entries(shares).map(([name, ms]) => [name, ms / most]);
    return line(`Rank ${rank}`, steps.length ? words : "–", bar(parts, said));
  });
  const legend = $("ranks-legend");
  if (exchanges && !legend.childElementCount) {
    legend.append(
      make("span", "key decode"), "computes ",
      make("span", "key exchange"), "exchanges ",
      make("span", "key wait"), "waits",
    );
  } else if (!exchanges) {
    legend.textContent = "a step";
  }
  $("ranks").replaceChildren(...lines);
}

function latency() {
  const rows = [
    ["First token", now.latency.first_token],
    ["Token gap", now.latency.token_gap],
    ["Whole answer", now.latency.total],
    ["In the queue", now.latency.queued],
  ];
  const head = make("tr");
  for (const name of ["", "p50", "p95", "p99"]) {
    const cell = name ? make("th", "", name) : make("td");
    if (name) cell.scope = "col";
    head.append(cell);
  }
  const body = rows.map(([name, { n, p50_ms, p95_ms, p99_ms }]) => {
    const row = make("tr");
    const title = make("th", "", name);
    title.scope = "row";
    const shown = (ms) => (n ? milliseconds(ms) : "–");
    const times = [p50_ms, p95_ms, p99_ms].map((ms) => make("td", "", shown(ms)));
    row.append(title, ...times);
    return row;
  });
  $("latency").replaceChildren(head, ...body);
}

/** The blocks as a table, runs of equal ones in a row. */
function table(blocks) {
  const rows = [];
  blocks.forEach((block, idx) => {
    const words = blockWords(block);
    const last = rows.at(-1);
    if (last?.words === words) last.to = idx;
    else rows.push({ from: idx, to: idx, words });
  });
  const head = make("tr");
  for (const name of ["Blocks", "What they have"]) {
    const cell = make("th", "", name);
    cell.scope = "col";
    head.append(cell);
  }
  const body = rows.map(({ from, to, words }) => {
    const row = make("tr");
    row.append(make("td", "", from === to ? `${from}` : `${from}–${to}`), make("td", "", words));
    return row;
  });
  $("blocks-table").replaceChildren(head, ...body);
}

function keep(told) {
  const newest = steps.at(-1)?.idx ?? -1;
  // A server that was started anew counts from 0 again.
  if (told.n_steps <= newest) [steps, samples] = [[], []];
  const last = steps.at(-1)?.idx ?? -1;
  steps = steps.concat(told.steps.filter((step) => step.idx > last)).slice(-N_STEPS);
  const at = told.uptime_s * 1000;
  const { generated, prompt } = told.tokens;
  samples.push({ at, generated, prompt });
  // One older than asked for stays: rates are between two samples.
  while (samples.length > 2 && at - samples[1].at > RATE_MS) samples.shift();
}

/** How the node stands now. */
export function take(told) {
  if (!about) return;
  now = told;
  keep(told);
  redraw();
}

/** What the node is, said first and whenever the line to it was lost. */
export function introduce(told) {
  about = told;
  [steps, samples] = [[], []];
  drawBlocks($("blocks"), $("blocks-readout"), told.blocks);
  table(told.blocks);
  take(told.now);
}

export function redraw() {
  if (!now) return;
  for (const draw of [figures, pages, queue, ranks, latency]) draw();
  strip.show(steps);
}

export function start() {
  strip = new Strip($("strip"), $("strip-readout"), [$("strip-top"), $("strip-middle")]);
}
