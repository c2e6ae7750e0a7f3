// What is drawn of the node: the strip of its last steps, and the map of its model's blocks.

const SVG = "http://www.w3.org/2000/svg";

const STEP_WIDTH = 2;
const STEP_GAP = 1;

/** A round number at or above `value`: 1, 2 or 5 times a power of ten. */
function round(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= value * 0.999);
}

export function milliseconds(ms) {
  if (ms >= 10000) return `${(ms / 1000).toFixed(0)} s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms >= 100) return `${ms.toFixed(0)} ms`;
  if (ms >= 1) return `${ms.toFixed(1)} ms`;
  return `${Math.round(ms * 1000)} µs`;
}

function count(n, one, many = `${one}s`) {
  return `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
}

/** A step in words. */
export function describe(step) {
  const parts = [`Step ${step.idx}: ${milliseconds(step.took_ms)}`];
  if (step.prefill_rows) {
    const tokens = count(step.prefill_tokens, "token");
    parts.push(`${count(step.prefill_rows, "prompt")} of ${tokens}`);
  }
  if (step.decode_rows) parts.push(`${count(step.decode_rows, "answer")} a token further`);
  if (step.waiting) parts.push(`${step.waiting} waiting`);
  return parts.join(", ");
}

/**
 * The last steps: how long each took, and what share of its tokens was prompts'. Heights grow with
 * the root of the time, so that short steps can be seen beside long ones.
 */
export class Strip {
  constructor(canvas, readout, scales) {
    Object.assign(this, { canvas, readout, scales, steps: [], chosen: null });
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerdown", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => this.choose(null));
    canvas.addEventListener("blur", () => this.choose(null));
    canvas.addEventListener("keydown", (event) => this.press(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  /** Steps that fit, the newest at the right. */
  shown() {
    const n = Math.floor(this.canvas.clientWidth / (STEP_WIDTH + STEP_GAP));
    return n > 0 ? this.steps.slice(-n) : [];
  }

  show(steps) {
    this.steps = steps;
    this.draw();
  }

  point(event) {
    const shown = this.shown();
    const fromRight = this.canvas.clientWidth - event.offsetX;
    const step = shown[shown.length - 1 - Math.floor(fromRight / (STEP_WIDTH + STEP_GAP))];
    this.choose(step ?? null);
  }

  press(event) {
    const shown = this.shown();
    const last = shown.length - 1;
    const place = shown.findIndex((step) => step.idx === this.chosen);
    const at = place < 0 ? last : place;
    const to = {
      ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1,
      PageDown: at - 10, PageUp: at + 10, Home: 0, End: last,
    }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.choose(shown[Math.max(0, Math.min(last, to))]);
  }

  choose(step) {
    this.chosen = step?.idx ?? null;
    this.draw();
  }

  /** What is said of the strip: the step that was chosen, else all of them. */
  say(shown) {
    const step = shown.find((step) => step.idx === this.chosen);
    if (!step) this.chosen = null;
    const times = shown.map((step) => step.took_ms).sort((a, b) => a - b);
    const all = times.length
      ? `Last ${count(times.length, "step")}: half took at most ` +
        `${milliseconds(times[Math.floor((times.length - 1) / 2)])}, the longest ` +
        `${milliseconds(times[times.length - 1])}.`
      : "No step yet.";
    const text = step ? describe(step) : all;
    this.readout.textContent = text;
    const { canvas } = this;
    canvas.setAttribute("aria-valuemin", shown[0]?.idx ?? 0);
    canvas.setAttribute("aria-valuemax", shown.at(-1)?.idx ?? 0);
    canvas.setAttribute("aria-valuenow", step?.idx ?? shown.at(-1)?.idx ?? 0);
    canvas.setAttribute("aria-valuetext", text);
  }

  draw() {
    const { canvas } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !height) return;
    const ratio = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const cx = canvas.getContext("2d");
    cx.setTransform(ratio, 0, 0, ratio, 0, 0);
    cx.clearRect(0, 0, width, height);
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name);
    const shown = this.shown();
    this.say(shown);
    const top = round(Math.max(0.1, ...shown.map((step) => step.took_ms)));
    const [whole, half] = this.scales;
    whole.textContent = shown.length ? milliseconds(top) : "";
    half.textContent = shown.length ? milliseconds(top / 4) : "";
    this.lines(cx, { width, height, colour: style.borderTopColor });
    const [prefill, decode] = [style.color, style.outlineColor];
    shown.forEach((step, at) => {
      const x = width - (shown.length - at) * (STEP_WIDTH + STEP_GAP);
      const tall = Math.max(2, Math.sqrt(step.took_ms / top) * (height - 2));
      const n = step.prefill_tokens + step.decode_tokens;
      const prompt = n ? tall * (step.prefill_tokens / n) : 0;
      cx.globalAlpha = this.chosen === null || this.chosen === step.idx ? 1 : 0.35;
      cx.fillStyle = decode;
      cx.fillRect(x, height - tall, STEP_WIDTH, tall - prompt);
      cx.fillStyle = prefill;
      cx.fillRect(x, height - prompt, STEP_WIDTH, prompt);
    });
    cx.globalAlpha = 1;
  }

  lines(cx, { width, height, colour }) {
    cx.fillStyle = colour;
    for (const share of [0, 0.5]) cx.fillRect(0, Math.round(height * share), width, 1);
    cx.fillRect(0, height - 1, width, 1);
  }
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const CELL = { width: 18, height: 44, attention: 12, gap: 3 };

/** What a block has, in words. */
export function blockWords(block) {
  const parts = [];
  if (block.n_kv_heads) {
    const window = block.window ? `, window ${block.window}` : "";
    parts.push(`attention (${block.n_q_heads} heads on ${block.n_kv_heads} KV${window})`);
  }
  if (block.is_mixer_linear) parts.push("a linear mixer");
  if (block.ffn) parts.push(`FFN of ${block.ffn.toLocaleString("en")}`);
  if (block.is_ffn_linear) parts.push("a linear FFN");
  return parts.join(" and ") || "empty";
}

export function isEmpty(block) {
  return !block.n_kv_heads && !block.is_mixer_linear && !block.ffn && !block.is_ffn_linear;
}

/** A block as a cell: attention above, its FFN below, as tall as it is wide. */
function cell(block, idx, widest) {
  const svg = shape("svg", { viewBox: `0 0 ${CELL.width} ${CELL.height}`, "aria-hidden": "true" });
  svg.dataset.idx = idx;
  const bar = { x: 1, width: CELL.width - 2, rx: 2 };
  const has = { attention: block.n_kv_heads || block.is_mixer_linear };
  if (has.attention) {
    const kind = block.n_kv_heads ? "attention" : "linear";
    svg.append(shape("rect", { ...bar, y: 0, height: CELL.attention, class: kind }));
  }
  const room = CELL.height - CELL.attention - CELL.gap;
  if (block.ffn) {
    // By the root of the width: the widest is eighty times the narrowest.
    const tall = Math.max(3, room * Math.sqrt(block.ffn / widest));
    const y = CELL.attention + CELL.gap;
    svg.append(shape("rect", { ...bar, y, height: tall, class: "ffn" }));
  } else if (block.is_ffn_linear) {
    svg.append(shape("rect", { ...bar, y: CELL.attention + CELL.gap, height: 3, class: "linear" }));
  }
  if (isEmpty(block)) {
    const at = { cx: CELL.width / 2, cy: CELL.attention / 2 };
    svg.append(shape("circle", { ...at, r: 2.5, class: "none" }));
  }
  svg.append(shape("rect", { x: 0, y: 0, width: CELL.width, height: CELL.height, class: "hit" }));
  return svg;
}

/** All blocks of a model as a map, and what is said of them. */
export function drawBlocks(into, readout, blocks) {
  const widest = Math.max(1, ...blocks.map((block) => block.ffn ?? 0));
  const is = {
    both: (block) => block.n_kv_heads && block.ffn,
    attention: (block) => block.n_kv_heads && !block.ffn && !block.is_ffn_linear,
    ffn: (block) => block.ffn && !block.n_kv_heads && !block.is_mixer_linear,
    empty: isEmpty,
  };
  const n = (kind) => blocks.filter(is[kind]).length;
  const kinds = [
    [n("both"), "with attention and FFN"],
    [n("attention"), "with attention only"],
    [n("ffn"), "with FFN only"],
    [blocks.length - n("both") - n("attention") - n("ffn") - n("empty"), "with linear parts"],
    [n("empty"), "empty"],
  ];
  const said = kinds.filter(([n]) => n).map(([n, what]) => `${n} ${what}`);
  const all = `${count(blocks.length, "block")}: ${said.join(", ")}.`;
  readout.textContent = all;
  into.setAttribute("role", "img");
  into.setAttribute("aria-label", all);
  into.replaceChildren(...blocks.map((block, idx) => cell(block, idx, widest)));
  into.onpointermove = into.onpointerdown = (event) => {
    const idx = event.target.closest("svg")?.dataset.idx;
    readout.textContent = idx === undefined ? all : `Block ${idx}: ${blockWords(blocks[idx])}.`;
  };
  into.onpointerleave = () => (readout.textContent = all);
}
