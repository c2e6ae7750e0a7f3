// The conversation: questions, answers as they come, their reasoning folded, a stop.

import { ask, events, Refused } from "./stream.js";
import { write } from "./prose.js";

const $ = (id) => document.getElementById(id);

/** What the model family's authors recommend. */
const RECOMMENDED = {
  on: { temperature: 0.6, top_p: 0.95 },
  off: { temperature: 0, top_p: 1 },
};

const messages = [];
let running = null;
let needKey = () => {};

function make(name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function number(id) {
  const { value } = $(id);
  return value === "" || !Number.isFinite(Number(value)) ? undefined : Number(value);
}

function request() {
  const thinks = $("thinking").checked;
  const usual = thinks ? RECOMMENDED.on : RECOMMENDED.off;
  return {
    messages,
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
    chat_template_kwargs: { thinking: thinks },
    temperature: number("temperature") ?? usual.temperature,
    top_p: number("top-p") ?? usual.top_p,
    max_tokens: number("max-tokens"),
    seed: number("seed"),
  };
}

function isAtEnd() {
  const log = $("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 48;
}

function toEnd() {
  $("log").scrollTop = $("log").scrollHeight;
}

/** An answer on the page. */
class Answer {
  constructor() {
    this.root = make("article", "turn answer");
    this.root.setAttribute("aria-label", "Answer");
    this.root.setAttribute("aria-busy", "true");
    this.thought = make("details", "thought");
    this.thought.hidden = true;
    this.summary = make("summary", "", "Thinking");
    this.reasoning = make("div", "reasoning");
    this.thought.append(this.summary, this.reasoning);
    this.text = make("div", "prose");
    this.foot = make("p", "foot", "…");
    this.root.append(this.thought, this.text, this.foot);
    this.said = { reasoning: "", content: "" };
    this.asked = performance.now();
    this.isDrawn = true;
  }

  take(chunk) {
    const now = performance.now();
    const delta = chunk.choices?.[0]?.delta;
    if (delta) {
      this.first ??= now;
      this.said.reasoning += delta.reasoning ?? delta.reasoning_content ?? "";
      this.said.content += delta.content ?? "";
      if (this.said.content) this.answered ??= now;
    }
    this.usage = chunk.usage ?? this.usage;
    this.reason = chunk.choices?.[0]?.finish_reason ?? this.reason;
    if (delta?.content || delta?.reasoning) this.last = now;
    this.draw();
  }

  /** At most once a frame: tokens may come faster than anybody sees. */
  draw() {
    if (!this.isDrawn) return;
    this.isDrawn = false;
    // A page that is not shown has no frames.
    const soon = document.hidden ? (draw) => setTimeout(draw, 200) : requestAnimationFrame;
    soon(() => {
      this.isDrawn = true;
      this.drawNow();
    });
  }

  drawNow() {
    const follows = isAtEnd();
    const { reasoning, content } = this.said;
    this.thought.hidden = !reasoning;
    if (reasoning) {
      const { n, s } = this.thinking();
      const thinks = this.root.getAttribute("aria-busy") === "true" && !content;
      this.thought.dataset.live = thinks;
      this.summary.textContent =
        `${thinks ? "Thinking" : "Thought"} · ${n} tokens · ${s.toFixed(1)} s`;
      if (this.reasoning.textContent !== reasoning) this.reasoning.textContent = reasoning;
    }
    write(this.text, content);
    this.foot.textContent = this.note();
    if (follows) toEnd();
  }

  thinking() {
    const end = this.answered ?? this.last ?? performance.now();
    const n = this.usage?.completion_tokens_details?.reasoning_tokens ?? 0;
    return { n, s: (end - (this.first ?? end)) / 1000 };
  }

  note() {
    if (!this.first) return "…";
    const n = this.usage?.completion_tokens ?? 0;
    const parts = [`${n} token${n === 1 ? "" : "s"}`];
    const s = ((this.last ?? this.first) - this.first) / 1000;
    if (n > 1 && s > 0) parts.push(`${((n - 1) / s).toFixed(s > 1 ? 1 : 0)} tokens/s`);
    parts.push(`first after ${Math.round(this.first - this.asked)} ms`);
    const cached = this.usage?.prompt_tokens_details?.cached_tokens;
    if (cached) parts.push(`${cached} of ${this.usage.prompt_tokens} prompt tokens cached`);
    if (this.reason === "length") parts.push("cut off by its length");
    return parts.join(" · ");
  }

  end(problem) {
    this.root.setAttribute("aria-busy", "false");
    this.drawNow();
    if (!problem) return;
    this.foot.textContent = this.first ? `${this.note()} · ${problem}` : problem;
    this.foot.classList.toggle("problem", problem !== "stopped");
  }
}

function setRunning(controller) {
  running = controller;
  const send = $("send");
  send.textContent = controller ? "Stop" : "Send";
  send.dataset.stops = Boolean(controller);
  $("clear").hidden = Boolean(controller) || messages.length === 0;
}

/** Refusals of a chunk: a stream that breaks off says why in its last event. */
function read(data) {
  const chunk = JSON.parse(data);
  if (chunk.error) throw new Refused(500, chunk.error.message);
  return chunk;
}

async function follow(answer, controller) {
  const response = await ask("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(request()),
    signal: controller.signal,
  });
  for await (const { data } of events(response)) {
    if (data === "[DONE]") return;
    answer.take(read(data));
  }
  throw new Refused(0, "the connection broke off");
}

async function answerWith(controller) {
  const answer = new Answer();
  $("log").append(answer.root);
  toEnd();
  let problem;
  try {
    await follow(answer, controller);
  } catch (error) {
    const wasStopped = controller.signal.aborted;
    problem = wasStopped ? "stopped" : error.message;
    if (error.status === 401) needKey();
  }
  answer.end(problem);
  // What the model thought is not said again: its template would drop it.
  if (answer.said.content) messages.push({ role: "assistant", content: answer.said.content });
  else messages.pop();
  $("announce").textContent = problem
    ? `The answer ended: ${problem}. ${answer.said.content}`
    : `Answer: ${answer.said.content}`;
}

async function send(question) {
  if (running || !question.trim()) return;
  $("welcome").hidden = true;
  const turn = make("article", "turn question", question);
  turn.setAttribute("aria-label", "Your message");
  $("log").append(turn);
  messages.push({ role: "user", content: question });
  const controller = new AbortController();
  setRunning(controller);
  $("announce").textContent = "Waiting for the answer";
  await answerWith(controller);
  setRunning(null);
}

function clear() {
  messages.length = 0;
  $("log").querySelectorAll(".turn").forEach((turn) => turn.remove());
  $("welcome").hidden = false;
  $("clear").hidden = true;
  $("announce").textContent = "A new chat";
  $("question").focus();
}

function fit() {
  const question = $("question");
  question.style.height = "auto";
  question.style.height = `${Math.min(question.scrollHeight, 200)}px`;
}

function submit() {
  const question = $("question").value;
  $("question").value = "";
  fit();
  send(question);
}

function showRecommended() {
  const usual = $("thinking").checked ? RECOMMENDED.on : RECOMMENDED.off;
  $("temperature").placeholder = usual.temperature;
  $("top-p").placeholder = usual.top_p;
}

/** What the server says of its model. */
export function introduce(node) {
  $("hello-model").textContent = node.model;
  $("examples").replaceChildren(
    ...node.examples.map((example) => {
      const button = make("button", "example", example);
      button.type = "button";
      button.addEventListener("click", () => {
        send(example);
        $("question").focus();
      });
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
}

export function start(onNeedKey) {
  needKey = onNeedKey;
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) running.abort();
    else submit();
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!running) submit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running && !$("key-dialog").open) running.abort();
  });
  $("question").addEventListener("input", fit);
  $("thinking").addEventListener("change", showRecommended);
  $("clear").addEventListener("click", clear);
  $("sampling-button").addEventListener("click", () => {
    const isOpen = $("sampling").hidden;
    $("sampling").hidden = !isOpen;
    $("sampling-button").setAttribute("aria-expanded", isOpen);
  });
  showRecommended();
}
