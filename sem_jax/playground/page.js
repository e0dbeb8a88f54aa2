import { drawHistory, drawLegend, drawProfile, rootMeanSquare, unpack } from "/wave.js";

const FIELDS = ["max_tokens", "temperature", "top_k", "top_p", "seed"];
const BARS = 20;
const ROWS = 16; // of the history of a layer
const BRIGHTEST = 2; // times the root mean square of a layer
const get = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const percent = (p) => (p >= 0.0995 ? `${(100 * p).toFixed(0)}%` : p >= 0.001 ? `${(100 * p).toFixed(1)}%` : p > 0 ? "<0.1%" : "–");

/** A new element; what it says is text, never markup. */
function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

/** A token that can be seen: blanks and line breaks as signs, what is no text as its number. */
function visible(label, id) {
  if (label === "") return `#${id}`;
  return label.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\r/g, "␍").replace(/\t/g, "⇥");
}

/** One model: its text, the distribution of a token and the waves behind it. */
class Panel {
  constructor(index, about) {
    this.index = index;
    this.about = about;
    this.root = get("model").content.firstElementChild.cloneNode(true);
    this.find = (selector) => this.root.querySelector(selector);
    this.find("h1").textContent = about.name;
    this.find(".about").textContent =
      `${about.parameters.toLocaleString("en")} parameters · ${about.layers} ${about.layers === 1 ? "layer" : "layers"} of ` +
      `${about.channels} channels · vocabulary ${about.vocabulary} · step ${about.step.toLocaleString("en")}`;
    this.layers = Array.from({ length: about.layers }, (_, layer) => this.addLayer(layer));
    drawLegend(this.find(".hues"), this.find(".lights"));
    this.text = this.find(".text");
    this.text.addEventListener("pointerover", (event) => this.point(event.target.closest(".token")));
    this.text.addEventListener("pointerleave", () => this.select(null));
    this.text.addEventListener("keydown", (event) => this.step(event));
    this.clear("");
  }

  addLayer(layer) {
    const row = make("div", "layer");
    row.append(make("span", "name", `layer ${layer}`));
    const sides = ["before", "after"].map((side) => {
      const figure = make("figure");
      const [profile, history] = [make("canvas", "profile"), make("canvas", "history")];
      [profile.height, history.height] = [48, ROWS];
      profile.setAttribute("role", "img");
      profile.setAttribute("aria-label", `the wave ${side} the ${this.about.kind} of layer ${layer}`);
      history.setAttribute("aria-hidden", "true");
      figure.append(make("figcaption", "", `${side} the ${this.about.kind}`), profile, history);
      row.append(figure);
      return { side, profile, history, shown: null };
    });
    if (layer === this.about.layers - 1) {
      for (const figure of row.querySelectorAll("figure")) {
        const axis = make("p", "axis");
        axis.append(make("span", "", "channel 0"), make("span", "", `${this.about.channels - 1}`));
        figure.append(axis);
      }
    }
    this.find(".layers").append(row);
    return { sides, scale: 0 };
  }

  clear(prompt) {
    this.moments = [];
    this.selected = null;
    this.text.replaceChildren(make("span", "prompt", prompt));
    for (const layer of this.layers) layer.scale = 0;
    this.root.classList.add("blank");
  }

  say(text) { this.find(".state").textContent = text; }

  /** Asks the server for a text and shows it as it comes. */
  async write(values, pace, signal) {
    this.clear(values.prompt);
    this.say("reading the prompt …");
    const begin = performance.now();
    let told = "";
    const response = await fetch("/generate", {
      method: "POST", signal, headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...values, model: this.index }),
    });
    if (!response.ok) throw new Error((await response.json()).error);
    try {
      for await (const line of lines(response.body)) {
        if (line.error) throw new Error(line.error);
        if ("done" in line) {
          this.text.append(line.text);
          told = line.done;
          break;
        }
        const due = performance.now() + (pace ? 1000 / pace : 0);
        this.add(line);
        const seconds = (performance.now() - begin) / 1000;
        this.say(`${this.moments.length} tokens · ${(this.moments.length / seconds).toFixed(0)} a second`);
        if (pace) await wait(due - performance.now());
        signal.throwIfAborted();
      }
    } finally {
      const state = this.find(".state").textContent.replace(/^reading.*/, "");
      this.say([state, told || (signal.aborted ? "stopped" : "")].filter(Boolean).join(" · "));
    }
  }

  add(line) {
    const moment = { ...line, before: unpack(line.before), after: unpack(line.after) };
    moment.span = make("span", "token", line.text);
    moment.span.dataset.index = this.moments.length;
    this.moments.push(moment);
    this.layers.forEach((layer, i) => { layer.scale = Math.max(layer.scale, BRIGHTEST * rootMeanSquare(moment.after[i])); });
    const low = this.text.scrollHeight - this.text.scrollTop - this.text.clientHeight < 40;
    this.text.append(moment.span);
    if (low) this.text.scrollTop = this.text.scrollHeight;
    this.root.classList.remove("blank");
    if (this.selected === null) this.draw();
  }

  point(span) { if (span) this.select(Number(span.dataset.index)); }

  step(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !this.moments.length) return;
    event.preventDefault();
    const last = this.moments.length - 1;
    this.select(Math.min(Math.max((this.selected ?? last) + by, 0), last));
  }

  select(index) {
    this.selected = index;
    if (this.moments.length) this.draw();
  }

  get now() { return this.selected ?? this.moments.length - 1; }

  draw() {
    this.asked ??= requestAnimationFrame(() => {
      this.asked = null;
      if (this.moments.length) this.paint();
    });
  }

  paint() {
    const moment = this.moments[this.now];
    this.text.querySelector(".chosen")?.classList.remove("chosen");
    moment.span.classList.add("chosen");
    if (this.painted !== moment) {
      this.paintBars(moment);
      const waves = this.moments.slice(Math.max(this.now + 1 - ROWS, 0), this.now + 1).reverse();
      this.layers.forEach(({ sides, scale }, i) => {
        for (const { side, history } of sides) drawHistory(history, waves.map((m) => m[side][i]), scale || 1);
      });
      this.painted = moment;
    }
    let moving = false;
    this.layers.forEach((layer, i) => {
      for (const side of layer.sides) moving = glide(side, moment[side.side][i], layer.scale) || moving;
    });
    if (moving) this.draw();
  }

  paintBars(moment) {
    const drawn = [moment.token, moment.label, moment.probability, moment.chance];
    const shown = moment.likeliest.slice(0, BARS);
    if (!shown.some(([token]) => token === moment.token)) shown[shown.length - 1] = drawn;
    const most = Math.max(...shown.map(([, , probability, chance]) => Math.max(probability, chance)));
    const rows = shown.map(([token, label, probability, chance]) => {
      const row = make("li", token === moment.token ? "drawn" : chance ? "" : "out");
      const [track, bar, mark] = [make("span", "track"), make("span", "bar"), make("span", "mark")];
      bar.style.width = `${(100 * chance) / most}%`;
      mark.style.left = `${(100 * probability) / most}%`;
      track.append(bar, mark);
      row.append(make("span", "label", visible(label, token)), track, make("span", "value", percent(chance)));
      row.title = `token ${token}: the model gives ${percent(probability)}, drawn with ${percent(chance)}`;
      return row;
    });
    this.find(".bars").replaceChildren(...rows);
    this.find(".lead").textContent = `token ${this.now + 1} of ${this.moments.length}`;
  }
}

/** Moves what is shown of a wave a little towards it; whether that must go on. */
function glide(side, wave, scale) {
  const fresh = !side.shown || side.shown.length !== wave.length || calm.matches;
  if (fresh) side.shown = Float32Array.from(wave);
  let rest = 0;
  for (let i = 0; i < wave.length; i++) {
    side.shown[i] += 0.35 * (wave[i] - side.shown[i]);
    rest = Math.max(rest, Math.abs(wave[i] - side.shown[i]));
  }
  const moving = rest > 0.01 * scale;
  if (!moving) side.shown.set(wave);
  drawProfile(side.profile, side.shown, scale || 1);
  return moving;
}

/** The JSON values of a stream of lines. */
async function* lines(body) {
  const [reader, decoder] = [body.getReader(), new TextDecoder()];
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = parts.pop();
      for (const part of parts) yield JSON.parse(part);
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

let running = null;
let panels = [];

function complain(texts) {
  get("problem").textContent = [...new Set(texts)].join(" ");
  get("problem").hidden = !texts.length;
}

async function write() {
  if (running || !panels.length || !get("controls").reportValidity()) return;
  running = new AbortController();
  [get("write").disabled, get("stop").disabled] = [true, false];
  complain([]);
  const values = Object.fromEntries(FIELDS.map((name) => [name, get(name).valueAsNumber]));
  values.prompt = get("prompt").value;
  const { signal } = running;
  const results = await Promise.allSettled(panels.map((panel) => panel.write(values, Number(get("pace").value), signal)));
  if (!signal.aborted) complain(results.filter((r) => r.status === "rejected").map((r) => r.reason.message));
  running = null;
  [get("write").disabled, get("stop").disabled] = [false, true];
}

get("controls").addEventListener("submit", (event) => { event.preventDefault(); write(); });
get("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) write();
  if (event.key === "Escape") running?.abort();
});

const models = await (await fetch("/models")).json();
panels = models.map((about, index) => new Panel(index, about));
get("models").append(...panels.map((panel) => panel.root));
get("models").classList.toggle("two", panels.length > 1);
document.title = `${models.map((about) => about.run).join(" and ")} · sem_jax play`;
for (const name of [...FIELDS, "prompt"]) get(name).value = models[0].defaults[name];
get("write").disabled = false;
get("prompt").focus();
